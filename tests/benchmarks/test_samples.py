import time

import pytest

from benchmarks.disturbance import watch
from benchmarks.samples import Samples, quantiles_ms, ratio
from benchmarks.timing import MIN_SAMPLES, Budget, interleave, measurements


def test_quantiles_of_known_samples():
    spread = quantiles_ms(i / 1000 for i in range(101))
    assert (spread.min, spread.p10, spread.median, spread.p90) == pytest.approx((0, 10, 50, 90))
    assert spread.samples == 101


def test_quantiles_of_one_sample():
    spread = quantiles_ms([0.002])
    assert (spread.min, spread.p10, spread.median, spread.p90) == (2, 2, 2, 2)


def test_ratio_is_the_median_of_the_rounds_in_common():
    # The machine is ten times slower in round 2; the ratio of the medians would be 4 / 2.
    a = Samples({0: 4.0, 1: 4.0, 2: 60.0, 3: 1.0})
    b = Samples({0: 2.0, 1: 1.0, 2: 20.0, 9: 0.1})
    assert ratio(a, b) == 3.0
    assert ratio(b, a) == 1 / 3
    assert ratio(a, Samples({7: 1.0})) is None


def test_the_share_of_others_is_a_share():
    share = watch()
    if share is None:
        pytest.skip("needs /proc/stat")
    time.sleep(0.05)
    assert 0 <= share() <= 1.2  # the ticks are coarse


def nothing(i):
    return lambda: None


def fails(i):
    raise RuntimeError("no such library\nand a long trace")


def test_every_contender_in_every_round():
    samples, _ = interleave({"a": nothing, "b": nothing}, 1, Budget(10, max_rounds=20))
    assert all(taken.first_call is not None for taken in samples.values())
    assert sum(len(taken.seconds) for taken in samples.values()) > 20


def test_a_slow_contender_sits_out():
    samples, _ = interleave(
        {"slow": lambda i: lambda: time.sleep(0.02), **dict.fromkeys("abcd", nothing)},
        1,
        Budget(10, max_rounds=50),
    )
    assert len(samples["slow"].seconds) == MIN_SAMPLES
    assert len(samples["a"].seconds) > 25


def test_contenders_that_fail_leave_their_share_to_the_others():
    bad = dict.fromkeys("abcdefgh", fails)
    samples, _ = interleave(
        {"good": nothing, "other": nothing, **bad}, 1, Budget(10, max_rounds=50)
    )
    assert len(samples["good"].seconds) + len(samples["other"].seconds) > 50


def test_copies_take_turns():
    seen = []
    interleave({"a": lambda i: lambda: seen.append(i)}, 3, Budget(10, max_rounds=5))
    assert seen == [0, 0, 1, 2, 0, 1, 2]  # the first call, a round of warming up, five rounds


def test_a_failing_contender_is_a_row():
    samples, _ = interleave({"good": nothing, "bad": fails}, 1, Budget(10, max_rounds=3))
    good, bad = measurements(samples, {"good": "Good", "bad": "Bad"}, ("good", "bad"))
    assert bad.error == "RuntimeError: no such library"
    assert bad.milliseconds is None
    assert good.milliseconds.samples == 3
    assert good.ratios == {"good": 1.0}


def test_others_are_watched_while_the_rounds_last(monkeypatch):
    """Compilation, before them, would hide how disturbed they were."""
    seen = []

    def watch():
        seen.append("watch")
        return lambda: 0.25

    monkeypatch.setattr("benchmarks.timing.watch", watch)
    step = {"a": lambda i: lambda: seen.append("step")}
    _, share = interleave(step, 1, Budget(10, max_rounds=2))
    assert share == 0.25
    assert seen == ["step", "step", "watch", "step", "step"]
