"""Settings: the paper's defaults, and every field refused by name outside its range."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palp_train.config import METHODS, LossConfig, TrainConfig, check_value
from palp_train.errors import InputError

FIELDS = [(config, item) for config in (LossConfig, TrainConfig) for item in dataclasses.fields(config)]
NUMBERS = [(config, item) for config, item in FIELDS if "low" in item.metadata]
WHOLE = [(config, item) for config, item in NUMBERS if isinstance(item.default, int)]
CHOICES = [(config, item) for config, item in FIELDS if "options" in item.metadata]


def each(pairs):
    return pytest.mark.parametrize(("config", "item"), pairs, ids=lambda p: getattr(p, "name", None))


def refusal(config, name, value):
    """The error's text; it names the field."""
    with pytest.raises(InputError) as error:
        config(**{name: value})
    assert error.value.name == name and str(error.value).startswith(f"{name}: ")
    return str(error.value)


# Defaults


def test_defaults_of_training_are_appendix_c():
    config = TrainConfig()
    assert (config.steps, config.learning_rate, config.word_learning_rate, config.rank) == (500, 5e-5, 5e-5, 32)


def test_default_guidance_scales_are_appendix_c():
    assert (LossConfig().alignment_scale, LossConfig().personalization_scale) == (15.0, 7.5)


def test_the_default_method_is_the_papers_best_same_noise_and_rescaled_on_every_step_and_level():
    config = LossConfig()
    chosen = (config.method, config.noise, config.rescale, config.alignment_weight, config.every, config.start_percent, config.end_percent)
    assert chosen == ("palp", "same", True, 1.0, 1, 0.0, 1.0)


def test_our_own_defaults_are_one_picture_a_step_and_one_vector_a_word():
    config = TrainConfig()
    assert (config.batch_size, config.word_vectors, config.seed, config.resolution) == (1, 1, 0, 512)


@each(FIELDS)
def test_every_field_tells_what_it_means(config, item):
    assert len(item.metadata["about"]) > 20


# Ranges


def beyond(item, end, sign):
    """The nearest value outside one end of a field's range."""
    return end + sign if isinstance(item.default, int) else math.nextafter(end, sign * math.inf)


@each(NUMBERS)
def test_a_number_below_its_range_is_refused_by_name_and_told_the_range(config, item):
    low, high = item.metadata["low"], item.metadata["high"]
    assert f"from {low:g} to {high:g}" in refusal(config, item.name, beyond(item, low, -1))


@each(NUMBERS)
def test_a_number_above_its_range_is_refused_by_name_and_told_the_range(config, item):
    low, high = item.metadata["low"], item.metadata["high"]
    assert f"from {low:g} to {high:g}" in refusal(config, item.name, beyond(item, high, 1))


@each(NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, False, "1", None, [1], 1j], ids=repr)
def test_what_is_no_number_is_refused_by_name(config, item, value):
    assert "number" in refusal(config, item.name, value)


@each(WHOLE)
@pytest.mark.parametrize("value", [1.5, 64.0])
def test_a_fraction_is_refused_where_a_whole_number_is_needed(config, item, value):
    assert "whole number" in refusal(config, item.name, value)


@each(NUMBERS)
def test_both_ends_of_a_range_are_allowed(config, item):
    room = {"start_percent": {"end_percent": 1.0}, "end_percent": {"start_percent": 0.0}}.get(item.name, {})
    ends = {item.metadata["low"], item.metadata["high"]} - ({1.0} if item.name == "start_percent" else {0.0} if item.name == "end_percent" else set())
    assert {getattr(config(**{**room, item.name: end}), item.name) for end in ends} == ends


@each([(config, item) for config, item in NUMBERS if not item.name.endswith("_percent")])
@given(data=st.data())
def test_every_number_within_its_range_is_kept_as_it_is(config, item, data):
    low, high = item.metadata["low"], item.metadata["high"]
    value = data.draw(st.integers(low, high) if isinstance(item.default, int) else st.floats(low, high))
    assert getattr(config(**{item.name: value}), item.name) == value


@each([(config, item) for config, item in NUMBERS if isinstance(item.default, float)])
def test_a_whole_number_will_do_where_a_fraction_may_stand(config, item):
    value = 0 if item.name == "start_percent" else 1
    assert getattr(config(**{item.name: value}), item.name) == value


@each(NUMBERS)
@given(data=st.data())
def test_every_number_outside_its_range_is_refused(config, item, data):
    low, high = item.metadata["low"], item.metadata["high"]
    numbers = st.integers(-(2**70), 2**70) if isinstance(item.default, int) else st.floats(allow_nan=False, allow_infinity=False)
    refusal(config, item.name, data.draw(numbers.filter(lambda value: not low <= value <= high)))


@pytest.mark.parametrize("name", ["steps", "learning_rate"])
def test_a_whole_number_too_large_for_a_float_is_refused_by_name(name):
    refusal(TrainConfig, name, 10**400)


# Words and switches


@each(CHOICES)
def test_every_option_of_a_choice_is_allowed_and_the_first_is_the_default(config, item):
    options = item.metadata["options"]
    assert [getattr(config(**{item.name: option}), item.name) for option in options] == list(options) and getattr(config(), item.name) == options[0]


@each(CHOICES)
@pytest.mark.parametrize("value", ["", "PALP", "Same", "pal", 0, True, None], ids=repr)
def test_a_word_that_is_no_option_is_refused_and_told_all_options(config, item, value):
    assert ", ".join(item.metadata["options"]) in refusal(config, item.name, value)


def test_the_methods_are_the_papers_and_its_ablations():
    assert set(METHODS) == {"palp", "sds", "nfsd", "none"}


@pytest.mark.parametrize("value", [0, 1, "true", None, 1.0], ids=repr)
def test_a_switch_takes_nothing_but_true_and_false(value):
    assert "true or false" in refusal(LossConfig, "rescale", value)


@pytest.mark.parametrize("value", [True, False])
def test_a_switch_keeps_its_setting(value):
    assert LossConfig(rescale=value).rescale is value


# The part of the schedule


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_part_of_the_schedule_must_start_before_it_ends(start, end):
    if start < end:
        assert LossConfig(start_percent=start, end_percent=end).end_percent == end
    else:
        with pytest.raises(InputError, match=r"^start_percent: .* must be less than end_percent"):
            LossConfig(start_percent=start, end_percent=end)


# The kinds of field


def test_a_value_is_checked_alone_as_it_is_within_a_config():
    with pytest.raises(InputError, match=r"^format: 'zip' is not one of kohya, peft"):
        check_value("format", "zip", "kohya", {"options": ("kohya", "peft")})


@pytest.mark.parametrize("config", [LossConfig, TrainConfig])
def test_settings_cannot_be_changed_once_checked(config):
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(config)[0].name, "other")
