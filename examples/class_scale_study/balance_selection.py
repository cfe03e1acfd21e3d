"""Losses of the study of balance over seeds, against the best GCE and the best step of CE."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .selection import STUDENT_95, Record, last
from .train import Run

SETTING = (
    "network",
    "num_classes",
    "noise",
    "noise_kind",
    "optimiser",
    "clip",
    "steps",
    "batch",
    "train_windows",
)
"""What runs that are compared have alike."""
RIVALS = ("GCE(0.3)", "GCE(0.5)", "GCE(0.7)", "GCE(0.9)")
WATCHED = "CE"
"""The loss whose best step others are held against."""


@dataclass(frozen=True)
class Difference:
    """Points above a rival, over the seeds that both have."""

    mean: float
    error: float  # standard error of the mean
    pairs: int

    @property
    def in_errors(self) -> float:
        """The mean in standard errors."""
        return self.mean / self.error if self.error else math.copysign(math.inf, self.mean)

    @property
    def differs(self) -> bool:
        """By more than the 95 % interval of Student's t."""
        return abs(self.in_errors) > STUDENT_95[self.pairs - 1]


@dataclass(frozen=True)
class Standing:
    """A loss at a rate over seeds, in per cent."""

    loss: str
    rate: float
    seeds: int
    last: float
    best: float  # of each curve, which takes clean labels to find
    fitted: float  # of the wrong labels
    over_rival: Difference | None  # the GCE that ended highest
    over_watched: Difference | None  # CE at its best step


def label(record: Record) -> str:
    """The loss, with what was changed besides."""
    run = record["run"]
    parts = [run["loss"]]
    if run["min_prob"] != Run.min_prob:
        parts.append(f"min_prob {run['min_prob']:.2g}")
    if run["warm_steps"]:
        parts.append(f"after {run['warm_steps']} steps of CE")
    return ", ".join(parts)


def best(record: Record) -> float:
    """The highest accuracy on the way."""
    return max(record["top1"], default=0.0)


def settings(records: Iterable[Record]) -> list[dict[str, object]]:
    """The settings that the records have, in order."""
    found = dict.fromkeys(tuple(r["run"][name] for name in SETTING) for r in records)
    return [dict(zip(SETTING, setting, strict=True)) for setting in found]


def standings(records: list[Record]) -> list[Standing]:
    """Each loss at each rate of one setting, the one that ends highest first."""
    runs: dict[tuple[str, float], dict[int, Record]] = {}
    for record in records:
        what = label(record), record["run"]["learning_rate"]
        runs.setdefault(what, {})[record["run"]["seed"]] = record

    def highest(names: Iterable[str], of: Callable[[Record], float]) -> dict[int, float]:
        """By seed, of the loss and rate among some that has the highest mean."""
        points = [
            {seed: of(record) for seed, record in mine.items()}
            for (loss, _), mine in runs.items()
            if loss in names
        ]
        most = max(map(len, points), default=0)  # a mean of fewer seeds is none to compare with
        whole = [mine for mine in points if len(mine) == most]
        return max(whole, key=lambda mine: statistics.mean(mine.values()), default={})

    rival, watched = highest(RIVALS, last), highest([WATCHED], best)
    found = [
        Standing(
            loss=loss,
            rate=rate,
            seeds=len(mine),
            last=100 * statistics.mean(map(last, mine.values())),
            best=100 * statistics.mean(map(best, mine.values())),
            fitted=statistics.mean(100 * (r["wrong_fitted"] or 0.0) for r in mine.values()),
            over_rival=difference(mine, rival),
            over_watched=difference(mine, watched),
        )
        for (loss, rate), mine in runs.items()
    ]
    return sorted(found, key=lambda standing: -standing.last)


def difference(mine: dict[int, Record], others: dict[int, float]) -> Difference | None:
    """Of last accuracies to others' of the same seeds; None of fewer than two, or of itself."""
    pairs = [100 * (last(mine[seed]) - others[seed]) for seed in mine if seed in others]
    if len(pairs) < 2 or not any(pairs):
        return None
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(statistics.mean(pairs), error, len(pairs))
