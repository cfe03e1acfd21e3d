"""Times contenders side by side."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from time import perf_counter

from benchmarks.clocks import Clock, HostClock, Reading, Step
from benchmarks.disturbance import watch
from benchmarks.results import FEW_SAMPLES, Measurement
from benchmarks.samples import Samples, quantiles_ms, ratio

Prepare = Callable[[int], Step]
"""Makes the step on one copy of the inputs, untimed."""

MIN_SAMPLES = FEW_SAMPLES
"""Of the slowest contender."""
MIN_ROUNDS = 10
OVERDRAFT = 12
"""The two minima are waited for up to this multiple of the budget."""


@dataclass(frozen=True)
class Budget:
    """How long a case may take."""

    seconds: float
    max_rounds: int


def interleave(
    contenders: Mapping[str, Prepare], copies: int, budget: Budget, clock: Clock | None = None
) -> tuple[dict[str, Samples], float | None]:
    """Time every contender once a round, in an order drawn anew for each round.

    Returns the samples, and the share of the CPUs' time that others had during the rounds; None if
    that is not known.

    Drawn, not rotated: after a rotation a contender still follows the same neighbour, whose cache
    and heap it inherits. A contender that has had twice its even share of the time sits out, so
    that a slow peer does not take the samples of the fast ones. The first call and the first
    round warm up, or as many rounds as the clock asks for.
    """
    clock = clock or HostClock()
    samples = {name: _first_call(prepare, clock) for name, prepare in contenders.items()}
    draw, turns = random.Random(0), count()

    def run_round(number: int) -> None:
        alive = [name for name in contenders if samples[name].error is None]
        for name in draw.sample(alive, len(alive)):
            copy = next(turns) % copies
            if _may_run(samples[name], [samples[other] for other in alive]):
                reading = _read(samples[name], clock, clock.time, contenders[name], copy)
                if reading:
                    samples[name].take(number, reading)

    with _no_collection():
        start = perf_counter()
        run_round(0)
        while perf_counter() - start < clock.warm_up:
            run_round(0)
        for taken in samples.values():
            taken.forget()
        taken_by_others = watch()
        start = perf_counter()
        for number in range(1, budget.max_rounds + 1):
            run_round(number)
            if _finished(samples, number, perf_counter() - start, budget):
                break
        return samples, taken_by_others and taken_by_others()


def measurements(
    samples: Mapping[str, Samples], labels: Mapping[str, str], baselines: tuple[str, ...]
) -> list[Measurement]:
    """Quantiles of every contender, and its ratios to the baselines."""
    return [
        Measurement(name, labels[name], error=taken.error)
        if taken.error or not taken.seconds
        else Measurement(
            name,
            labels[name],
            quantiles_ms(taken.seconds.values()),
            _ratios(taken, {base: samples[base] for base in baselines if base in samples}),
            None if taken.first_call is None else 1e3 * taken.first_call,
            host_milliseconds=quantiles_ms(taken.host_seconds) if taken.host_seconds else None,
            caught_up=taken.caught_up / len(taken.seconds) if taken.host_seconds else None,
        )
        for name, taken in samples.items()
    ]


def one_line(error: BaseException) -> str:
    """An exception for a table."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:200]


def _ratios(taken: Samples, baselines: dict[str, Samples]) -> dict[str, float]:
    found = {name: ratio(taken, base) for name, base in baselines.items()}
    return {name: value for name, value in found.items() if value is not None}


def _first_call(prepare: Prepare, clock: Clock) -> Samples:
    samples = Samples()
    reading = _read(samples, clock, clock.first, prepare, 0)
    samples.first_call = reading and reading.seconds
    return samples


def _read(
    samples: Samples, clock: Clock, read: Callable[[Step], Reading], prepare: Prepare, copy: int
) -> Reading | None:
    try:
        return read(prepare(copy))
    except Exception as error:  # a peer that cannot run is a row that says so
        samples.error = one_line(error)
    clock.recover()  # not before the exception has let go of the frames that hold memory
    return None


def _may_run(taken: Samples, alive: list[Samples]) -> bool:
    even_share = sum(other.spent for other in alive) / len(alive)
    return len(taken.seconds) < MIN_SAMPLES or taken.spent <= 2 * even_share


def _finished(samples: dict[str, Samples], rounds: int, elapsed: float, budget: Budget) -> bool:
    enough = all(s.error or len(s.seconds) >= MIN_SAMPLES for s in samples.values())
    return elapsed >= budget.seconds * (1 if enough and rounds >= MIN_ROUNDS else OVERDRAFT)


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
