"""What ``bench --full`` prints: a Markdown row for each contender, and the ratios that we want something of."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import GIB, table

NOT_KNOWN = "–"
GPU_COUNTS = ("kernels a step", "waits a step", "GPU busy")
CPU_COUNTS = ("operations a step without the optimizer", "reads of scalars")
HOST, HOST_CHECKPOINTING = "host plain", "host plain, checkpointing"
RATIOS = (  # numerator, denominator, what we want it to be at most: for sd15 and sdxl on a GPU, at batch 1
    ("ours PALP", HOST, 0.9),
    ("ours PALP, no word", HOST, 0.7),
    ("ours plain", HOST, 0.45),
    ("ours plain, no word", HOST, 0.45),
    ("ours PALP, checkpointing", HOST_CHECKPOINTING, 0.6),
    ("ours PALP, no word, checkpointing", HOST_CHECKPOINTING, 0.6),
    ("ours plain, checkpointing", HOST_CHECKPOINTING, 0.6),
    ("ours plain, no word, checkpointing", HOST_CHECKPOINTING, 0.6),
    ("ours plain, no word", "diffusers + peft plain", None),
    ("ours PALP", "forward pass", None),
    ("ours PALP, no word", "forward pass", None),
)


def head(result: Mapping[str, Any]) -> list[str]:
    """The machine, the model and the head of the table of rows."""
    counts = GPU_COUNTS if result["gpu"] else CPU_COUNTS
    columns = ["contender", "batch", "s a step", *counts, "peak GiB", "foreseen GiB", "s before the first step", ""]
    lines = table(columns, [[""] * len(columns)])[:-1]
    model = f"{result['model']} ({result['size']}), random weights, files in {result['files']}"
    return [result["machine"], "", model, *lines]


def figures_row(row: Mapping[str, Any], *, gpu: bool) -> str:
    """A line of that table; what went wrong is its last cell."""
    cells = [row["contender"], str(row["batch"]), _cell(row, "step", ".3f")]
    cells += [_cell(row, "kernels", ".0f"), _cell(row, "waits", ".0f")]
    if gpu:
        cells.append(_cell(row, "busy", ".0%"))
    cells += [_cell(row, "peak", ".2f", GIB), _cell(row, "foreseen", ".2f", GIB)]
    cells += [_cell(row, "before the first step", ".1f"), row.get("error", "").replace("|", "/")]
    return f"| {' | '.join(cells)} |"


def _cell(row: Mapping[str, Any], key: str, form: str, unit: float = 1) -> str:
    value = row.get(key)
    return NOT_KNOWN if value is None else format(value / unit, form)


def ratios(rows: Sequence[Mapping[str, Any]], *, wanted: bool) -> list[dict[str, Any]]:
    """Each ratio of seconds a step whose two contenders were measured, by batch.

    Args:
        rows: of the table.
        wanted: whether what we want holds for this model on this machine.
    """
    step = {(row["contender"], row["batch"]): row["step"] for row in rows if "step" in row}
    found: list[dict[str, Any]] = []
    for batch_size in sorted({row["batch"] for row in rows}):
        for above, below, most in RATIOS:
            both = step.get((above, batch_size)), step.get((below, batch_size))
            if both[0] and both[1]:
                limit = most if wanted and batch_size == 1 else None
                title = f"{above} / {below}"
                found.append({"ratio": title, "batch": batch_size, "measured": both[0] / both[1], "wanted": limit})
    return found


def ratio_report(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of ratios."""
    rows: list[list[str]] = []
    for one in found:
        rows.append([one["ratio"], str(one["batch"]), _cell(one, "measured", ".2f"), _cell(one, "wanted", "g")])
    return table(("ratio of seconds a step", "batch", "measured", "wanted, at most"), rows)
