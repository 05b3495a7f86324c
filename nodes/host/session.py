"""The host's MODEL and CLIP, borrowed for training and given back untouched."""

import itertools
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ...palp_train.errors import InputError
from .checks import ran_out_of_memory
from .denoiser import differentiable_attention, differentiable_kernels
from .families import family_of
from .text_encoder import (
    learning_transformers,
    other_encoders_remembering,
    output_stays,
    quantized_encoders,
    quick_gelu_in_one_kernel,
)
from .weights import HostWeights, casts_that_last, is_quantized, narrow_weights_kept, owned_weights

GIB = 2**30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Session:
    """Private clones of the host's patchers, loaded; they share their weights with the user's.

    Where the host brings in weights as they are used (dynamic VRAM), so does training.
    """

    model: Any
    """comfy.model_patcher.ModelPatcher"""
    clip: Any
    """comfy.sd.CLIP; None where no gradient goes into the text encoders, which then need not stay loaded."""
    teacher: Any
    """comfy.model_patcher.ModelPatcher, or None; only ever run forward."""

    @property
    def networks(self) -> list[nn.Module]:
        """The diffusion models, the teacher's too."""
        return [patcher.model for patcher in (self.model, self.teacher) if patcher is not None]

    @property
    def device(self) -> torch.device:
        """Where the diffusion model runs."""
        return self.model.load_device


@contextmanager
def training_session(
    model: Any, clip: Any = None, teacher: Any = None, precision: str = "auto", learned: Collection[str] = ()
) -> Generator[Session, None, None]:
    """Within: autograd works through the user's models. After, also on an error or a cancel: they are as they were.

    Args:
        model: the graph's MODEL.
        clip: the graph's CLIP; None if its text encoders are not trained through.
        teacher: another MODEL that is to be loaded as well.
        precision: what the model computes in, "auto" for what the host chose.
        learned: keys of the text encoders that learn, see ``text_encoder.learned_encoders``.

    Raises:
        InputError: the model cannot be trained, or does not fit into memory whole.
    """
    refuse_untrainable(model.model)
    session = Session(model=model.clone(), clip=clip and clip.clone(), teacher=teacher and teacher.clone())
    loaded = {"model": session.model, "clip": session.clip and session.clip.patcher, "teacher_model": session.teacher}
    patchers = {name: patcher for name, patcher in loaded.items() if patcher is not None}
    _load(patchers)
    with ExitStack() as stack:
        stack.enter_context(trainable_networks())
        stack.enter_context(owned_weights(session.model.model))
        stack.enter_context(_computing_in(session.model.model, precision))
        stack.enter_context(narrow_weights_kept(session.model.model.diffusion_model, HostWeights()))
        if session.clip is not None:
            stack.enter_context(_learning(session.clip, learned))
            stack.enter_context(_encoder_options_kept(session.clip.cond_stage_model))
            stack.enter_context(output_stays(session.clip.patcher.load_device))
            stack.enter_context(other_encoders_remembering(session.clip, learned))
        for patcher in (session.model, session.teacher):
            if patcher is not None:
                stack.enter_context(_running(patcher))
        yield session


@contextmanager
def _running(patcher: Any) -> Generator[None, None, None]:
    """Within: what other nodes do around sampling is done.

    The model does not learn whose it is: of a patcher that brings in weights as they are used it would fetch those of
    the next block ahead, which a backward pass needs in the opposite order.
    """
    patcher.pre_run()
    try:
        if is_dynamic(patcher):
            patcher.model.current_patcher = None
        yield
    finally:
        patcher.cleanup()


def is_dynamic(patcher: Any) -> bool:
    """Whether the host brings in weights as they are used (dynamic VRAM), which newer ones do."""
    return getattr(patcher, "is_dynamic", lambda: False)()


@contextmanager
def trainable_networks() -> Generator[None, None, None]:
    """Within: autograd is on, and the host's networks compute by operations that have a backward pass."""
    with ExitStack() as stack:
        contexts = (torch.inference_mode(False), torch.enable_grad(), _host_in_training(), differentiable_attention())
        kernels = (differentiable_kernels(), _differentiable_fp8(), _full_accumulation())
        for context in (*contexts, *kernels, casts_that_last()):
            stack.enter_context(context)
        yield


@contextmanager
def _full_accumulation() -> Generator[None, None, None]:
    """Within: products of float16 matrices add up in float32, also on a host started with --fast fp16_accumulation.

    Sums over all pixels, as gradients are, would lose most of their digits.
    """
    products: Any = torch.backends.cuda.matmul
    if not hasattr(products, "allow_fp16_accumulation"):  # PyTorch before 2.7
        yield
        return
    before = products.allow_fp16_accumulation
    try:
        products.allow_fp16_accumulation = False
        yield
    finally:
        products.allow_fp16_accumulation = before


@contextmanager
def _differentiable_fp8() -> Generator[None, None, None]:
    """Within: layers with scaled 8-bit weights widen them, as they do on older GPUs, instead of computing in 8 bits, which has no backward pass."""
    fast = getattr(comfy.ops, "fp8_linear", None)
    if fast is None:
        yield
        return
    try:
        comfy.ops.fp8_linear = lambda *_: None
        yield
    finally:
        comfy.ops.fp8_linear = fast


def refuse_untrainable(model: Any) -> None:
    """Return quietly if we know how to train this model.

    Raises:
        InputError: its family is not supported, its weights are quantized, or its layers have no backward pass.
    """
    for path, layer in model.diffusion_model.named_modules():
        if is_quantized(layer):
            problem = f"{_quantization(layer)} (its layer {path}), which cannot be trained."
            raise InputError("model", f"{problem} {USE_INSTEAD}")
        if any(kind.__name__ == "CublasLinear" for kind in type(layer).__mro__):
            raise InputError("model", f"no gradient passes through {path}. Start ComfyUI without --fast cublas_ops.")
    family_of(model)


USE_INSTEAD = (
    "Load a version of the model in fp16, bf16, fp32 or plain fp8 with Load Diffusion Model or Load Checkpoint; "
    "what is trained on it can be applied to the quantized one, too."
)


def _quantization(layer: nn.Module) -> str:
    """What the weights of a quantized layer are, as users know it."""
    weight = layer._parameters.get("weight")
    if weight is None:
        return "it is quantized for Nunchaku"
    if hasattr(weight, "tensor_type"):
        return "it is a GGUF model"
    kind = getattr(layer, "quant_format", None) or f"{type(weight).__name__} of {weight.dtype}"
    return f"its weights are quantized ({kind})"


def _load(patchers: Mapping[str, Any]) -> None:
    """Load all of them whole, whatever else has to leave.

    Raises:
        InputError: they do not fit.
    """
    try:
        with torch.inference_mode():  # the host loads models in this mode, and moving weights made in it needs it
            _make_room(patchers.values())
            # Asking for more than there is makes the host unload everything else first: training needs the room.
            comfy.model_management.load_models_gpu(list(patchers.values()), memory_required=1e20, force_full_load=True)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        comfy.model_management.unload_all_models()
        sizes = ", ".join(f"{name} {patcher.model_size() / GIB:.1f} GiB" for name, patcher in patchers.items())
        raise InputError(
            "model", f"what training needs does not fit onto {patchers['model'].load_device} together: {sizes}. {_largest_saving(patchers)}"
        ) from error
    _refuse_partly_loaded({name: patcher for name, patcher in patchers.items() if not is_dynamic(patcher)})


def _make_room(patchers: Iterable[Any]) -> None:
    """Let everything leave the GPUs where weights are to be brought in as they are used.

    The host would leave other such models there until their place is needed, and count it as taken.
    """
    devices = {patcher.load_device for patcher in patchers if is_dynamic(patcher)}
    for device in devices - {torch.device("cpu")}:
        comfy.model_management.free_memory(1e30, device)


def _refuse_partly_loaded(patchers: Mapping[str, Any]) -> None:
    """Return quietly if every model is whole on its device; the message says what is missing and which change frees most."""
    for name, patcher in patchers.items():
        loaded, size = patcher.loaded_size(), patcher.model_size()
        if getattr(patcher.model, "model_lowvram", False) or loaded < size:
            raise InputError(
                name,
                f"{(size - loaded) / GIB:.1f} of its {size / GIB:.1f} GiB did not fit onto {patcher.load_device}, and training needs it whole. "
                f"{_largest_saving(patchers)} Start ComfyUI without --lowvram and --novram.",
            )


def _largest_saving(patchers: Mapping[str, Any]) -> str:
    """The change of settings that frees most memory."""
    sizes = {name: patcher.model_size() / GIB for name, patcher in patchers.items()}
    savings = {
        "teacher_model": f"Disconnect teacher_model: that frees {sizes.get('teacher_model', 0):.1f} GiB.",
        "clip": f"Set word_vectors to 0: the CLIP need not stay loaded then, which frees {sizes.get('clip', 0):.1f} GiB.",
    }
    possible = [name for name in savings if name in sizes]
    if not possible:
        return f"Load the model with weight_dtype fp8_e4m3fn: that frees about {sizes['model'] / 2:.1f} GiB if it is 16 bits wide now."
    return savings[max(possible, key=lambda name: sizes[name])]


@contextmanager
def _learning(clip: Any, learned: Collection[str]) -> Generator[None, None, None]:
    """Let gradients pass through the text encoders; those that learn keep no wide copies of their matrices.

    They compute in float32, whatever their weights are stored in. Biases and norms, which are small, are widened once.
    """
    transformers = learning_transformers(clip, learned)
    quantized = quantized_encoders(clip)
    left = [tensor for encoder in quantized for tensor in itertools.chain(encoder.parameters(), encoder.buffers())]
    with ExitStack() as stack:
        stack.enter_context(quick_gelu_in_one_kernel(transformers))
        vectors = itertools.chain(*(_vectors(transformer) for transformer in transformers))
        stack.enter_context(owned_weights(clip.cond_stage_model, float32=vectors, left=left))
        for transformer in transformers:
            stack.enter_context(narrow_weights_kept(transformer, HostWeights()))
        yield


def _vectors(network: nn.Module) -> list[Tensor]:
    """Biases, norms and the like; without those that the host brings in as they are used, of the type it has noted."""
    tables = [layer._parameters for layer in network.modules() if not hasattr(layer, "_v")]
    parameters = [parameter for table in tables for parameter in table.values() if parameter is not None]
    return [parameter for parameter in parameters if parameter.ndim == 1 and parameter.is_floating_point()]


@contextmanager
def _computing_in(model: Any, precision: str) -> Generator[None, None, None]:
    """Within: the network computes in this precision, casting each weight that is kept in another as it is used."""
    dtype = DTYPES.get(precision)
    if dtype is None or dtype == (model.manual_cast_dtype or model.get_dtype()):
        yield
        return
    before = model.manual_cast_dtype
    layers = [layer for layer in model.diffusion_model.modules() if hasattr(layer, "comfy_cast_weights")]
    own = [vars(layer).get("comfy_cast_weights") for layer in layers]
    try:
        model.manual_cast_dtype = dtype
        for layer in layers:
            layer.comfy_cast_weights = True
        yield
    finally:
        model.manual_cast_dtype = before
        for layer, value in zip(layers, own, strict=True):
            if value is None:
                del layer.comfy_cast_weights  # the class's own value shows again
            else:
                layer.comfy_cast_weights = value


@contextmanager
def _host_in_training() -> Generator[None, None, None]:
    """Within: hosts that have a flag for it (from v0.13) avoid kernels that have no backward pass."""
    host = comfy.model_management
    if not hasattr(host, "in_training"):
        yield
        return
    before = host.in_training
    host.in_training = True
    try:
        yield
    finally:
        host.in_training = before


@contextmanager
def _encoder_options_kept(text_encoders: nn.Module) -> Generator[None, None, None]:
    """Encoding leaves the chosen output layer and the like on the encoders; put back what was there."""
    encoders = [module for module in text_encoders.modules() if hasattr(module, "set_clip_options")]
    before = [{name: value for name, value in vars(module).items() if not name.startswith("_")} for module in encoders]
    try:
        yield
    finally:
        for module, values in zip(encoders, before, strict=True):
            vars(module).update(values)
