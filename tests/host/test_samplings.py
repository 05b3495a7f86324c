"""Samplings that users patch in: the loss of each, that they train, and what is refused."""

from dataclasses import replace

import pytest
import torch
from host_calls import family, train


def patched(models, node, *arguments):
    """The models with the MODEL that one of the host's ModelSampling nodes makes of theirs."""
    import comfy_extras.nodes_model_advanced as advanced

    with torch.inference_mode():
        return replace(models, model=getattr(advanced, node)().patch(models.model, *arguments)[0])


def eps(x, noise, sigma):
    return noise


def v(x, noise, sigma, s=1.0):
    """Salimans & Ho 2022 with data of deviation s: at s = 1, alpha noise - sigma' x, where alpha^2 + sigma'^2 = 1."""
    return (s * noise - sigma / s * x) / (s**2 + sigma**2).sqrt()


def edm(x, noise, sigma, s=0.5):
    """Karras et al. 2022: (x - c_skip noised) / c_out."""
    return (x - s**2 / (sigma**2 + s**2) * (x + sigma * noise)) * (sigma**2 + s**2).sqrt() / (sigma * s)


def image(x, noise, sigma):
    return x


def velocity(x, noise, sigma):
    return noise - x


SAMPLINGS = {
    "eps": ("sd15", eps, None),
    "v": ("sd15-v", v, None),
    "eps, zero terminal SNR": ("sd15", eps, ("ModelSamplingDiscrete", "eps", True)),
    "v, zero terminal SNR": ("sd15", v, ("ModelSamplingDiscrete", "v_prediction", True)),
    "the consistency sampling, whose boundary its schedule leaves out": ("sd15", eps, ("ModelSamplingDiscrete", "lcm", False)),
    "x0": ("sd15", image, ("ModelSamplingDiscrete", "x0", False)),
    "continuous v": ("sd15", v, ("ModelSamplingContinuousEDM", "v_prediction", 80.0, 0.002)),
    "continuous eps": ("sd15", eps, ("ModelSamplingContinuousEDM", "eps", 80.0, 0.002)),
    "EDM": ("sd15", edm, ("ModelSamplingContinuousEDM", "edm", 80.0, 0.002)),
    "EDM of Playground 2.5": ("sdxl", edm, ("ModelSamplingContinuousEDM", "edm_playground_v2.5", 80.0, 0.002)),
    "flow": ("sd3", velocity, None),
    "flow, shifted": ("sd3", velocity, ("ModelSamplingSD3", 9.0)),
    "flow of AuraFlow, shifted": ("auraflow", velocity, ("ModelSamplingAuraFlow", 5.0)),
    "flow of Flux, shifted": ("flux", velocity, ("ModelSamplingFlux", 1.15, 0.5, 1024, 1024)),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_personalization_loss_is_the_one_that_the_networks_raw_output_was_trained_with(part, name):
    tiny, target, patch = SAMPLINGS[name]
    models = family(tiny)
    models = patched(models, *patch) if patch else models
    method, seen, generator = part("palp_train.denoiser"), [], torch.Generator().manual_seed(0)
    import tiny_families

    with part("nodes.host.session").training_session(models.model, models.clip) as held, torch.no_grad():
        denoiser = part("nodes.host.denoiser").HostDenoiser(held.model)
        conditioning = part("nodes.host.text_encoder").HostTextEncoder(held.clip, [])("a cat")
        shape = tiny_families.latent_shape(models.model)
        x, noise = torch.randn(2, 3, *shape, generator=generator).to(held.device).double()
        sigma = denoiser.sigmas[[len(denoiser.sigmas) * part // 10 for part in (1, 5, 9)]].double()
        handle = held.model.model.diffusion_model.register_forward_hook(lambda *all: seen.append(all[-1]))
        noised = method.add_noise(x, noise, sigma, denoiser.parametrization)
        denoised = denoiser(noised, sigma, [method.Query(conditioning=conditioning, personalized=False)] * 3)
        handle.remove()
        loss = part("palp_train.losses").personalization_loss(denoised, x, sigma, denoiser.parametrization)
    expected = (seen[0].double() - target(x, noise, method.per_sample(sigma, x))).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, (_, _, patch) in SAMPLINGS.items() if patch])
def test_a_model_with_a_patched_sampling_trains(nodes, output, name):
    tiny, _, patch = SAMPLINGS[name]
    losses = train(nodes, patched(family(tiny), *patch))[2]["loss"]
    assert len(losses) == 3 and all(0 < loss < 1e4 for loss in losses)


@pytest.mark.parametrize(
    "patch",
    [("ModelSamplingDiscrete", "img_to_img", False), ("ModelSamplingContinuousEDM", "cosmos_rflow", 80.0, 0.002)],
    ids=lambda patch: patch[1],
)
def test_a_sampling_that_is_none_of_these_is_refused(nodes, models, errors, output, patch):
    with pytest.raises(errors.InputError, match=r"^model: its sampling"):
        train(nodes, patched(models, *patch))


def test_the_refiner_and_models_that_take_a_picture_are_refused_by_name(nodes, models, errors, output):
    import comfy.model_base
    import comfy.supported_models
    import tiny_models

    with torch.inference_mode():
        unet = tiny_models._unet(model_channels=64, context_dim=48, use_linear_in_transformer=True, adm_in_channels=48 + 5 * 256, num_classes="sequential")
        refiner = comfy.model_base.SDXLRefiner(comfy.supported_models.SDXLRefiner(unet | {"dtype": torch.float32}))
    with pytest.raises(errors.InputError, match=r"^model: an SDXL refiner cannot be trained"):
        train(nodes, replace(models, model=tiny_models._patcher(refiner, 0)))
