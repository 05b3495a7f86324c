"""What stands where: models that have to leave, outputs that stay, devices that do not match."""

import pytest
import torch
from host_calls import family


def test_room_for_a_t5_that_would_learn_is_counted_as_if_other_models_had_left(part, models):
    import comfy.model_management
    import comfy.model_patcher

    text, flux = part("nodes.host.text_encoder"), family("flux")
    other = family("sd15").model
    other.offload_device = torch.device("meta")  # away from where it runs

    class Large:
        def model_size(self):
            return 2**59

        def loaded_size(self):
            return 0

    assert text.learned_encoders(flux.clip, flux.model, Large()) == {"clip_l"}
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([other])
    other.model.model_loaded_weight_memory = 2**60
    try:
        assert text.learned_encoders(flux.clip, flux.model, Large()) == {"clip_l", "t5xxl"}
        assert text.learned_encoders(flux.clip, other, Large()) == {"clip_l"}  # it is to be trained: it stays
    finally:
        comfy.model_management.current_loaded_models.clear()


def test_what_text_encoders_write_stays_on_their_device(part, models):
    import comfy.model_management

    session, text = part("nodes.host.session"), part("nodes.host.text_encoder")
    before = comfy.model_management.intermediate_device
    with session.training_session(models.model, models.clip, learned={"clip_l"}) as held:
        there = held.clip.patcher.load_device
        assert comfy.model_management.intermediate_device() == there
        written = text.HostTextEncoder(held.clip, [])("a cat")
        assert {written[name].device for name in ("cross_attn", "pooled_output")} == {there}
    assert comfy.model_management.intermediate_device is before


def test_a_teacher_on_another_device_is_refused(part, errors, models):
    checks, teacher = part("nodes.host.checks"), family("sd15").model
    teacher.load_device = torch.device("meta")
    with pytest.raises(errors.InputError, match=r"^teacher_model: it runs on meta, and the model on .*one device"):
        checks.refuse_foreign_teacher(models.model, teacher)


class OutOfMemoryOnTheWay:
    """A patcher's load that fails as drivers say it who have no exception for it."""

    def __init__(self, message):
        self.message = message

    def __call__(self, *_, **__):
        raise RuntimeError(self.message)


SAID = ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory"]


@pytest.mark.parametrize("message", SAID)
def test_models_that_do_not_fit_are_named_however_the_driver_says_so(part, errors, models, monkeypatch, message):
    import comfy.model_management

    session = part("nodes.host.session")
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", OutOfMemoryOnTheWay(message))
    with pytest.raises(errors.InputError, match=r"^model: what training needs does not fit .*word_vectors to 0"):
        with session.training_session(models.model, models.clip):
            pass


def test_another_error_in_loading_is_not_taken_for_too_little_memory(part, models, monkeypatch):
    import comfy.model_management

    session = part("nodes.host.session")
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", OutOfMemoryOnTheWay("device-side assert"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        with session.training_session(models.model):
            pass


def test_products_of_half_precision_add_up_in_float32_in_training(part, models):
    session, products = part("nodes.host.session"), torch.backends.cuda.matmul
    before = products.allow_fp16_accumulation
    products.allow_fp16_accumulation = True  # as --fast fp16_accumulation does
    try:
        with session.trainable_networks():
            assert not products.allow_fp16_accumulation
        assert products.allow_fp16_accumulation
    finally:
        products.allow_fp16_accumulation = before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_host_told_to_keep_its_diffusion_models_in_half_precision_trains(pack, part, dtype):
    """By --fp16-unet or --bf16-unet, also on a CPU."""
    from host_calls import short_job

    with torch.inference_mode():
        outcome = part("nodes.host.training").run(short_job(pack, family("sd15", dtype=dtype), steps=1))
    assert outcome.dtype == str(dtype).removeprefix("torch.")
    assert all(tensor.isfinite().all() for tensor in outcome.lora.values())
