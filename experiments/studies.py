"""The studies: the paper's own ablation, and the questions that it leaves open."""

from __future__ import annotations

from experiments.study import Condition, Study

UNRESCALED = {"rescale": False}
BASE = Condition(name="base", pictures="pre-trained")
DRAWN = Condition(name="drawn", pictures="drawn")
"""What a perfect personalization would make: how much of a prompt can be told in such pictures at all, and how much they differ."""
NONE = Condition(name="none", loss={"method": "none"})
SDS = Condition(name="sds", loss={"method": "sds", **UNRESCALED})
NFSD = Condition(name="nfsd", loss={"method": "nfsd", **UNRESCALED})
PALP = Condition(name="palp")
INDEPENDENT_UNRESCALED = Condition(name="palp independent noise unrescaled", loss={"noise": "independent", **UNRESCALED})
SAME_UNRESCALED = Condition(name="palp same noise unrescaled", loss=UNRESCALED)
INDEPENDENT = Condition(name="palp independent noise", loss={"noise": "independent"})
ALPHA, BETA = "alignment_scale", "personalization_scale"
COMPOSED = Condition(name="palp", loss_factors={ALPHA: 7.5 / 15, BETA: 1 / 7.5})
"""Appendix C's guidance scales for several subjects, 7.5 and 1, against those for one, 15 and 7.5."""
FACTORS = (0.25, 0.5, 1.0, 2.0)
"""Of alpha and of beta, in their grid."""


def scaled(alpha: float, beta: float) -> Condition:
    """PALP with that many times alpha and beta."""
    return PALP if alpha == beta == 1 else Condition(name=f"alpha x {alpha:g} beta x {beta:g}", loss_factors={ALPHA: alpha, BETA: beta})


_ALL = (
    Study(
        name="ablation",
        title="Ablation",
        question="What does each part of the method do for the prompt and for the subject? The paper's Figure 6 and Table 2.",
        conditions=(BASE, NONE, SDS, NFSD, INDEPENDENT_UNRESCALED, SAME_UNRESCALED, PALP, DRAWN),
        looks=(100, 200, 300, 400, 500),
        along="step",
    ),
    Study(
        name="scales",
        title="Guidance scales",
        question="How do alpha and beta trade the prompt against the subject?",
        conditions=(BASE, NONE, *(scaled(alpha, beta) for alpha in FACTORS for beta in FACTORS)),
        along="grid",
        prompts=2,
    ),
    Study(
        name="steps",
        title="Early stopping",
        question="After how many steps should training end?",
        conditions=(BASE, NONE, PALP),
        looks=(25, 50, 100, 150, 200, 300, 400, 500, 750, 1000),
        along="step",
    ),
    Study(
        name="noise",
        title="Noise",
        question="Does the alignment branch do better with the step's own noise than with a fresh draw?",
        conditions=(BASE, NONE, INDEPENDENT, PALP),
        looks=(100, 200, 300, 400, 500),
        along="step",
        seeds=3,
    ),
    Study(
        name="diversity",
        title="Diversity",
        question="Does alignment make all pictures alike (mode collapse)?",
        conditions=(BASE, NONE, SDS, NFSD, PALP),
        samples=16,
    ),
    Study(
        name="complexity",
        title="Prompt complexity",
        question="How does it hold as prompts ask for more?",
        conditions=(BASE, NONE, PALP),
        along="elements",
        asks="complexity",
        prompts=0,
        seeds=1,
    ),
    Study(
        name="categories",
        title="Categories",
        question="Does it hold alike for animals, objects and vehicles?",
        conditions=(BASE, NONE, PALP),
        along="category",
    ),
    Study(
        name="subjects",
        title="Several subjects and art",
        question="Does it hold for two subjects at once and for a subject inspired by an artwork, against joint training without alignment?",
        conditions=(BASE, NONE, COMPOSED),
        cases="composed",
        along="case",
    ),
)
STUDIES = {study.name: study for study in _ALL}
