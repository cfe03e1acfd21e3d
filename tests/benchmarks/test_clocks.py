import weakref

import pytest
import torch

from benchmarks.clocks import CudaClock, HostClock
from benchmarks.timing import Budget, interleave, measurements
from tests.benchmarks.fakes import Device


@pytest.fixture
def gpu(monkeypatch):
    return Device().install(monkeypatch)


def test_nothing_waits_between_the_events(gpu):
    reading = CudaClock().time(gpu.step)
    assert gpu.log == ["lead", "record", "step", "record", "wait"]
    assert reading.seconds == pytest.approx(2e-3)
    assert reading.host_seconds > 0
    assert not reading.caught_up


def test_a_gpu_that_caught_up_is_told(gpu):
    gpu.caught_up = True
    assert CudaClock().time(gpu.step).caught_up


def test_the_first_call_is_waited_for(gpu):
    assert CudaClock().first(gpu.step).seconds < 1
    assert gpu.log == ["synchronize", "step", "synchronize"]


def test_the_host_times_what_has_ended():
    reading = HostClock().time(lambda: None)
    assert 0 <= reading.seconds < 1
    assert reading.host_seconds is None


def test_measurements_have_both_times(gpu, monkeypatch):
    monkeypatch.setattr(CudaClock, "warm_up", 0.0)
    prepares = {"fast": lambda i: gpu.step, "slow": lambda i: lambda: gpu.step(6.0)}
    samples, _ = interleave(prepares, 2, Budget(10, max_rounds=20), CudaClock())
    fast, slow = measurements(samples, dict.fromkeys(prepares, ""), ("fast",))
    assert fast.milliseconds.median == pytest.approx(2)
    assert slow.ratios["fast"] == pytest.approx(3)
    assert fast.host_milliseconds.samples == fast.milliseconds.samples
    assert fast.caught_up == 0


def test_rounds_of_warming_up_do_not_count(gpu, monkeypatch):
    monkeypatch.setattr(CudaClock, "warm_up", 0.05)
    samples, _ = interleave({"a": lambda i: gpu.step}, 1, Budget(10, max_rounds=7), CudaClock())
    assert len(samples["a"].seconds) == len(samples["a"].host_seconds) == 7
    assert gpu.log.count("step") > 1 + 1 + 7


def test_memory_is_returned_when_a_failure_has_let_go_of_it(gpu, monkeypatch):
    held, seen = [], []

    def fails():
        tensor = torch.ones(3)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(held[0]()))
    samples, _ = interleave({"a": lambda i: fails}, 1, Budget(1, max_rounds=1), CudaClock())
    assert samples["a"].error == "OutOfMemoryError: CUDA out of memory."
    assert seen == [None]
