"""Time and extra memory of a loss and its gradient with respect to the logits."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .losses import Criterion

WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """Cost of one loss-and-gradient evaluation."""

    milliseconds: float
    peak_bytes: int
    logits_bytes: int

    @property
    def times_logits(self) -> float:
        """Peak extra memory as a multiple of the logits."""
        return self.peak_bytes / self.logits_bytes


def loss_and_gradient(criterion: Criterion, logits: Tensor, target: Tensor) -> Tensor:
    """Forward and backward of the loss alone."""
    (gradient,) = torch.autograd.grad(criterion(logits, target), logits)
    return gradient


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Duration of one call, by CUDA events or the wall clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


def cuda_peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Highest number of bytes the allocator holds during the call, beyond those held before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_peak_bytes(call: Callable[[], object]) -> int:
    """The same for the CPU.

    PyTorch keeps no peak statistic for the CPU, and resident memory depends on what the C
    allocator keeps back. The profiler, though, records every tensor allocation and release
    together with the running total, and the trace it exports holds these records: the peak is the
    highest total. Scratch space that a kernel takes without PyTorch's allocator is not seen.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()  # keep the gradient alive: it belongs to the cost
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    del result
    records = [event for event in events if event.get("name") == "[memory]"]
    records.sort(key=lambda event: event["ts"])
    if not records:
        raise RuntimeError("the profiler recorded no allocation")
    first = records[0]["args"]
    before = first["Total Allocated"] - first["Bytes"]
    return max(event["args"]["Total Allocated"] for event in records) - before


def measure(
    losses: dict[str, Criterion],
    logits: Tensor,
    target: Tensor,
    rounds: int,
    on_round: Callable[[], None],
) -> dict[str, Cost]:
    """Median time over interleaved rounds, and peak memory, of every loss on the same logits."""
    device = logits.device
    logits = logits.detach().requires_grad_()
    calls: dict[str, Callable[[], Tensor]] = {
        name: lambda c=criterion: loss_and_gradient(c, logits, target)
        for name, criterion in losses.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for round_number in range(WARM_UP_ROUNDS + rounds):
        # Interleaved and rotated, so that a busy spell of the machine falls on every loss alike.
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = milliseconds(calls[name], device)
            if round_number >= WARM_UP_ROUNDS:
                times[name].append(elapsed)
        on_round()

    def peak(call: Callable[[], object]) -> int:
        return cuda_peak_bytes(call, device) if device.type == "cuda" else cpu_peak_bytes(call)

    logits_bytes = logits.numel() * logits.element_size()
    return {
        name: Cost(statistics.median(times[name]), peak(call), logits_bytes)
        for name, call in calls.items()
    }


def gradient_error(criterion: Criterion, exact: Criterion, logits: Tensor, target: Tensor) -> float:
    """Largest error of a gradient against ``exact`` in float64, relative to its largest entry."""
    logits = logits.detach()
    gradient = loss_and_gradient(criterion, logits.requires_grad_(), target)
    truth = loss_and_gradient(exact, logits.detach().double().requires_grad_(), target)
    return ((gradient - truth).abs().max() / truth.abs().max()).item()
