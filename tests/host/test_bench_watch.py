"""What a step asks of the machine: read from a GPU's trace, and counted on the CPU."""

import pytest
import torch

from bench.watch import OperationCount, covered, traced, waits


def test_the_length_of_a_union_of_spans_counts_no_time_twice():
    assert covered([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7


def test_waits_for_the_device_at_both_ends_are_the_benchs_own():
    step = ["cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaLaunchKernel"]
    own = ["cudaDeviceSynchronize"]
    assert waits([*own, *step, "cudaEventRecord", *own, *own]) == 2


def test_a_trace_gives_kernels_waits_and_busy_time():
    def event(category, name, start, length):
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length}

    events = [
        event("kernel", "second", 30.0, 20.0),
        event("kernel", "first", 10.0, 10.0),
        event("gpu_memcpy", "Memcpy DtoH", 45.0, 15.0),
        event("cuda_runtime", "cudaLaunchKernel", 1.0, 1.0),
        event("cuda_runtime", "cudaStreamSynchronize", 2.0, 60.0),
        {"ph": "M", "name": "process_name"},
    ]
    assert traced(events) == {"kernels": 2, "waits": 1, "busy seconds": pytest.approx(40e-6)}
    assert traced(events[3:]) == {}


def test_operations_are_counted_without_views_and_without_the_optimizer():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(2, 3)
    with OperationCount() as count:
        (weight.detach().T[0] * 2).sum().item()
        optimizer.step()
    assert (count.kernels, count.waits) == (2, 1)
    with OperationCount() as fresh:
        torch.empty(3).view(1, 3)
    assert (fresh.kernels, fresh.waits) == (0, 0)
