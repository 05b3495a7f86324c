"""Copies that do not wait, and code of others that is kept from waiting, with "meta" as a device that gives nothing back."""

import pytest
import torch

from palp_train.transfer import Fetched, StayOnDevice, as_list, release_cache, staying_on, to_device

META = torch.device("meta")


def test_fetched_numbers_are_those_of_the_time_of_the_copy():
    numbers = torch.tensor([1.0, -2.5])
    fetched = Fetched(numbers)
    numbers.zero_()
    assert fetched.values() == fetched.values() == [1.0, -2.5]


def test_a_tensor_goes_to_its_device_and_stays_itself_where_it_is_there():
    tensor = torch.ones(3)
    assert to_device(tensor, META).device == META
    assert to_device(tensor, torch.device("cpu")) is tensor


def test_the_cache_of_a_device_without_one_is_released_quietly():
    release_cache(torch.device("cpu"))


def test_on_the_cpu_nothing_is_intercepted():
    with staying_on(torch.device("cpu")) as mode:
        assert mode is None
        assert as_list(torch.tensor([1.0, 2.0])) == [1.0, 2.0]


HANDED = {
    "numbers for the device": lambda there: torch.tensor([[1, 2]], device=META, dtype=torch.long),
    "a tensor of the CPU": lambda there: torch.ones(2).to(META),
    "by keyword": lambda there: torch.ones(2).to(device=META, dtype=torch.float16),
    "to where another tensor is": lambda there: torch.ones(2).to(there),
    "kept from the CPU": lambda there: there.to("cpu"),
    "kept from the CPU, by keyword": lambda there: there.to(device="cpu", dtype=torch.float16),
    "kept from another tensor's CPU": lambda there: there.to(torch.ones(1)),
    "kept by cpu()": lambda there: there.cpu(),
    "joined with the CPU's": lambda there: torch.cat((there, torch.zeros(1, 4))),
    "stacked with the CPU's": lambda there: torch.stack([there, torch.zeros(3, 4)]),
    "rows by lists": lambda there: there[[0, 1], [2, 3]],
    "a slice": lambda there: there[:2, None],
}


@pytest.mark.parametrize("what", HANDED)
def test_what_others_make_of_a_tensor_on_the_device_is_on_the_device(what):
    there = torch.empty(3, 4, device=META, requires_grad=True)
    with StayOnDevice(META):
        found = HANDED[what](there)
    assert found.device == META


def test_results_shapes_and_types_are_those_of_the_plain_call():
    there = torch.empty(3, 4, device=META)
    with StayOnDevice(META):
        assert there[[0, 1], [2, 3]].shape == (2,)
        assert there.to("cpu", torch.float16).dtype == torch.float16
        assert torch.ones(2).to(device=META, dtype=torch.float16).dtype == torch.float16
        assert torch.tensor([1.0], device=META, dtype=torch.float64).dtype == torch.float64
        assert torch.cat((torch.zeros(1), torch.ones(1))).tolist() == [0.0, 1.0]  # no part of it on the device
        assert torch.tensor([3]).item() == 3


def test_gradient_passes_through_what_is_kept_on_the_device():
    there = torch.empty(3, 4, device=META, requires_grad=True)
    with StayOnDevice(META):
        torch.cat((there.to("cpu"), torch.zeros(1, 4))).sum().backward()
    assert there.grad is not None and there.grad.shape == (3, 4)
