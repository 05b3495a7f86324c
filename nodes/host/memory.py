"""What a training step will take in memory, traced on tensors without data, and the plan for steps that follows from it."""

import copy
import logging
import math
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...palp_train.alignment import alignment_score, prediction_count
from ...palp_train.config import LossConfig, TrainConfig
from ...palp_train.denoiser import Query
from ...palp_train.errors import InputError
from ...palp_train.plan import Plan, in_parts, plans
from ...palp_train.tracing import EvenMasks, LiveMemory, ShapesOnly, kernels_of, without_data
from ...palp_train.trainer import Task, constant_conditionings
from .families import family_of
from .foreseen import Pass, digest, recalled, remember, surroundings
from .weights import exchanged_tensors

GIB = 2**30
MARGIN = 1.1
"""What has to be free for one byte that is needed: kernels' workspaces and the gaps of CUDA's allocator come on top."""
HEAP = {"cpu": 1.3}
"""Bytes that a process takes for each of its tensors' bytes, by device. glibc's heap keeps gaps: measured 1.25 to 1.5, and 1.00 with a fixed mmap threshold."""
MOMENTS, GRADIENT, COPY = 8, 4, 2
"""Bytes of each trained number, float32: Adam's two moments, the gradient that waits where a step takes several batches,
and the copy of it that a network computes with in 16 bits."""


class StepMemory:
    """Bytes that a step takes beside the models' weights. Each part is traced when it is first needed, and remembered."""

    def __init__(
        self,
        task: Task,
        networks: Sequence[Any],
        train: TrainConfig,
        loss: LossConfig,
        device: str | None = None,
    ) -> None:
        """Take the largest picture.

        Args:
            task: what the trainer is given, with the host's denoisers.
            networks: the host's BaseModels behind them.
            train: for the batch size.
            loss: for the predictions that it needs.
            device: the type of the device whose memory is foreseen; None: of the one that the pictures are on.
        """
        self._task, self._networks, self._loss = task, networks, loss
        self._picture = max(task.pictures, key=lambda picture: picture.latent.numel())
        self._batch_size = train.batch_size
        self._device = device or self._picture.latent.device.type
        prompts = {picture.prompt for picture in task.pictures}
        task.text_encoder(self._picture.prompt)  # what encoders keep for the run is made now
        with LiveMemory() as live:
            encoded = task.text_encoder(self._picture.prompt)
            text = live.now * min(len(prompts), train.batch_size)
        personal = {name: _leaf(value) if isinstance(value, Tensor) else value for name, value in encoded.items()}
        self._prompts = replace(constant_conditionings(task, loss), personal=[personal] * train.batch_size)
        self._inputs = self._model_inputs()
        self._depends_on = self._shapes()
        trained = sum(p.numel() for network in networks for p in network.parameters() if p.requires_grad)
        gradient = GRADIENT if train.gradient_accumulation > 1 else 0
        copy_of_it = COPY if task.denoiser.dtype.itemsize == COPY else 0
        self.fixed = text + trained * (MOMENTS + gradient + copy_of_it)
        """Bytes that do not depend on the plan or the pictures."""

    def peak(self, plan: Plan) -> int:
        """The most that is alive at any time of a step by this plan."""
        training = self._training_pass(plan.checkpointing)
        alignment = self._alignment(plan.rows)
        beside = alignment.peak if plan.estimate_first else training.kept + alignment.peak
        return self.fixed + max(training.peak, beside)

    def least(self, plan: Plan) -> int:
        """What a step by this plan takes at least: what it takes without an alignment."""
        return self.fixed + self._training_pass(plan.checkpointing).peak

    def _training_pass(self, checkpointing: bool) -> Pass:
        """Forward and backward."""

        def run(live: LiveMemory, task: Task, noised: Tensor, sigma: Tensor) -> int:
            denoiser = task.checkpointed if checkpointing and task.checkpointed else task.denoiser
            queries = [Query(conditioning=prompt, personalized=True) for prompt in self._prompts.personal]
            denoised = denoiser(noised, sigma, queries)
            kept = live.now
            torch.autograd.backward(denoised.square().mean())
            return kept

        return self._trace(("training", checkpointing), run)

    def _alignment(self, rows: int | None) -> Pass:
        """The alignment branch, no more than so many rows at once. Between one and all of them, memory grows by as much with each."""
        most = prediction_count(self._loss) * self._batch_size
        if most == 0:
            return Pass()
        if rows in (None, 1) or rows >= most:
            depends_on = (self._loss.method, self._loss.alignment_scale == 1, self._loss.personalization_scale == 1)
            return self._trace(("alignment", rows and min(rows, most), *depends_on), partial(self._align, rows))
        one, all_of_them = self._alignment(1).peak, self._alignment(None).peak
        return Pass(peak=one + (all_of_them - one) * (rows - 1) // (most - 1))

    def _align(self, rows: int | None, live: LiveMemory, task: Task, noised: Tensor, sigma: Tensor) -> int:
        teacher = in_parts(task.teacher.denoiser, rows) if task.teacher else None
        alignment_score(in_parts(task.denoiser, rows), noised, noised, sigma, self._prompts, self._loss, teacher)
        return live.now

    def _trace(self, part: Hashable, run: Callable[..., int]) -> Pass:
        key = digest(part, self._depends_on)
        found = recalled(key)
        if found is None:
            found = self._traced(run)
            remember(key, found)
        return found

    def _traced(self, run: Callable[..., int]) -> Pass:
        latent = self._picture.latent
        with _no_data(self._networks, self._device) as empty:
            noised = empty(latent.expand(self._batch_size, *latent.shape))
            sigma = empty(latent.new_empty(self._batch_size))
            inputs = {which: _without_data(one, empty) for which, one in self._inputs.items()}
            with LiveMemory(ShapesOnly()) as live:
                kept = run(live, _to_trace(self._task, inputs, empty), noised, sigma)
        return Pass(kept=kept, peak=live.peak)

    def _model_inputs(self) -> dict[int, dict[str, Any]]:
        """What the models make of each conditioning, by its id; made now, since its data may decide what shape that has."""
        prompts, latent = self._prompts, self._picture.latent[None]
        denoiser: Any = self._task.denoiser  # the host's
        pretrained: Any = self._task.teacher.denoiser if self._task.teacher else denoiser
        own = {id(c): denoiser.model_inputs(c, latent) for c in (*prompts.personal[:1], prompts.personal_empty)}
        read = [prompt for prompt in (prompts.clean, prompts.empty, prompts.bad) if prompt is not None]
        return own | {id(prompt): pretrained.model_inputs(prompt, latent) for prompt in read}

    def _shapes(self) -> str:
        """All that a trace of these networks depends on."""
        held = [tensor for network in self._networks for tensor in (*network.parameters(), *network.buffers())]
        conds = [sorted((name, cond.cond) for name, cond in inputs.items()) for inputs in self._inputs.values()]
        leaves = pytree.tree_leaves(conds)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [leaf for leaf in leaves if leaf is None or isinstance(leaf, bool | int | float | str)]
        shapes = [(tuple(t.shape), t.stride(), t.dtype, t.requires_grad) for t in (*tensors, *held)]
        models = [(type(n).__name__, str(n.model_config.unet_config), n.manual_cast_dtype) for n in self._networks]
        latent = self._picture.latent
        size = latent.shape, latent.dtype, self._batch_size, self._device
        return repr((models, shapes, others, size, surroundings(self._networks)))


def planned(
    memory: StepMemory,
    config: TrainConfig,
    loss: LossConfig,
    free: float,
    device: str,
) -> tuple[list[Plan], int | None]:
    """Ways to make a step, from the fastest that fits on, and the bytes that the first of them takes.

    Args:
        memory: tells what a plan takes.
        config: whether checkpointing is wanted.
        loss: the alignment branch.
        free: bytes.
        device: its type.

    Returns:
        The plans, and the bytes; None where an operation of the model, in this version of the host, cannot be traced.

    Raises:
        InputError: no plan fits.
    """
    possible, heap = (
        plans(config.gradient_checkpointing, prediction_count(loss) * config.batch_size),
        HEAP.get(device, 1.0),
    )
    try:
        for number, plan in enumerate(possible):
            if MARGIN * heap * memory.least(plan) > free:  # the alignment need not be traced
                continue
            needed = heap * memory.peak(plan)
            if MARGIN * needed <= free:
                return possible[number:], int(needed)
        needed = heap * memory.peak(possible[-1])
    except comfy.model_management.InterruptProcessingException:  # an Exception on some hosts
        raise
    except Exception as error:  # a network may do what has no meaning without data, and train all the same
        advice = "PALP: this model's memory cannot be foreseen; training tries what fits. %s"
        logging.warning(advice, error, exc_info=True)
        return possible, None
    if needed > free:
        raise _too_large(config, needed, heap * memory.fixed, max(free, 0))
    return possible[-1:], int(needed)


def free_memory(device: torch.device) -> float:
    """Bytes; without end on DirectML, of which the host does not know."""
    return math.inf if device.type == "privateuseone" else comfy.model_management.get_free_memory(device)


def _too_large(config: TrainConfig, needed: float, fixed: float, free: float) -> InputError:
    """The error whose name is the setting that helps most; bytes that a step needs, those of them that no setting here changes, and that are free."""
    problem = f"a step needs {needed / GIB:.1f} GiB beside the models, and {free / GIB:.1f} GiB are free."
    if config.gradient_checkpointing == "off":
        return InputError("gradient_checkpointing", f"without it {problem} Set it to auto.")
    if config.batch_size > 1:
        one = (fixed + (needed - fixed) / config.batch_size) / GIB
        lower = f"Set it to 1, where a step needs about {one:.1f} GiB, and gradient_accumulation {config.batch_size} times as high."
        return InputError("batch_size", f"{problem} {lower}")
    share = max(free / MARGIN - fixed, 0) / (needed - fixed)  # what depends on the pictures grows with their area
    side = int(config.resolution * share**0.5) // 64 * 64
    lower = f"Set it to {side}." if side >= 64 else "Use a smaller model, or free memory."
    return InputError("resolution", f"at {config.resolution} {problem} {lower}")


def _leaf(tensor: Tensor) -> Tensor:
    """The same values without the graph behind them, which would stay in memory."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


@contextmanager
def _no_data(models: Sequence[nn.Module], device: str) -> Generator[Callable[[Any], Any], None, None]:
    """Within: the models' tensors have no data, nor does anything computed; yields what takes it from the tensors in a structure."""
    with ExitStack() as stack:
        stack.enter_context(kernels_of(device))
        share = min(family_of(model).expert_share for model in models)
        if share < 1:
            stack.enter_context(EvenMasks(share))
        for model in models:
            stack.enter_context(exchanged_tensors(model, without_data))
        yield lambda tree: pytree.tree_map_only(Tensor, without_data, tree)


def _without_data(conds: Mapping[str, Any], empty: Callable[[Any], Any]) -> dict[str, Any]:
    """The host's conds, holding tensors without data."""
    clones = {name: copy.copy(cond) for name, cond in conds.items()}
    for clone in clones.values():
        clone.cond = empty(clone.cond)
    return clones


def _to_trace(task: Task, inputs: Mapping[int, Any], empty: Callable[[Any], Any]) -> Task:
    """The task with denoisers that can be traced."""

    def traceable(denoiser: Any) -> Any:
        return denoiser.to_trace(inputs, empty(denoiser.sigmas))

    teacher = task.teacher and replace(task.teacher, denoiser=traceable(task.teacher.denoiser))
    return replace(
        task,
        denoiser=traceable(task.denoiser),
        checkpointed=task.checkpointed and traceable(task.checkpointed),
        teacher=teacher,
    )
