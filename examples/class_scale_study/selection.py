"""Runs of a study by what they ask: the one place that reads the records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .plans import OPTIMISERS
from .train import Run

Record = dict[str, Any]
DEFAULTS = {"clip": Run.clip, "eps": Run.eps}
REFERENCE = "GCE(0.7)"
STUDENT_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""Half the 95 % interval in standard errors, by degrees of freedom: pairs less one."""


def having(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records whose arguments have these values."""
    return [r for r in records if all(r["run"][key] == value for key, value in wanted.items())]


def optimised_by(records: Iterable[Record], name: str) -> list[Record]:
    """The records of one of ``OPTIMISERS``."""
    return having(records, **(DEFAULTS | OPTIMISERS[name]))


def values(records: Iterable[Record], name: str) -> list[Any]:
    """The values that an argument has, in the order of the runs."""
    return list(dict.fromkeys(record["run"][name] for record in records))


def last(record: Record) -> float:
    """Accuracy after the last step; of a run that diverged, before that."""
    return record["top1"][-1] if record["top1"] else 0.0


def trained(record: Record) -> bool:
    """Better than always the same answer, by three standard errors of such an answer."""
    constant = record["constant"]
    error = math.sqrt(constant * (1 - constant) / record["run"]["held_out_windows"])
    return last(record) > constant + 3 * error


@dataclass(frozen=True)
class Summary:
    """A loss over seeds, in per cent."""

    loss: str
    rate: float
    seeds: int
    last: float
    deviation: float
    best: float  # of each curve, which takes clean labels to find
    pairs: int
    difference: float | None  # to REFERENCE, mean over common seeds
    error: float | None  # of the difference: standard error of the mean of pairs
    fitted: float  # of the wrong labels

    @property
    def differs(self) -> bool:
        """By more than the 95 % interval of Student's t."""
        if self.difference is None or self.error is None:
            return False
        return abs(self.difference) > STUDENT_95[self.pairs - 1] * self.error


def summaries(records: list[Record]) -> list[Summary]:
    """One for each loss and rate, best first; differences are to the best rate of REFERENCE."""
    asked = dict.fromkeys((r["run"]["loss"], r["run"]["learning_rate"]) for r in records)
    references = [what for what in asked if what[0] == REFERENCE]
    base = max(references, key=lambda what: summary(records, what, None).last, default=None)
    found = [summary(records, what, base if base != what else None) for what in asked]
    return sorted(found, key=lambda summary: -summary.last)


def summary(
    records: list[Record], what: tuple[str, float], base: tuple[str, float] | None
) -> Summary:
    """A loss at a rate, against another on the seeds that both have."""
    mine = by_seed(records, *what)
    lasts = {seed: 100 * last(record) for seed, record in mine.items()}
    others = by_seed(records, *base) if base else {}
    pairs = [lasts[seed] - 100 * last(others[seed]) for seed in lasts if seed in others]
    paired = len(pairs) > 1
    return Summary(
        loss=what[0],
        rate=what[1],
        seeds=len(lasts),
        last=statistics.mean(lasts.values()),
        deviation=statistics.stdev(lasts.values()) if len(lasts) > 1 else 0.0,
        best=statistics.mean(100 * max(r["top1"], default=0.0) for r in mine.values()),
        pairs=len(pairs),
        difference=statistics.mean(pairs) if paired else None,
        error=statistics.stdev(pairs) / math.sqrt(len(pairs)) if paired else None,
        fitted=statistics.mean(100 * (r["wrong_fitted"] or 0.0) for r in mine.values()),
    )


def by_seed(records: list[Record], loss: str, rate: float) -> dict[int, Record]:
    """The runs of a loss at a rate."""
    return {r["run"]["seed"]: r for r in having(records, loss=loss, learning_rate=rate)}
