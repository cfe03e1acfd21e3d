"""Matches two runs and judges what changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from benchmarks.compare.changes import Change, Comparison, Failure
from benchmarks.compare.surroundings import differences, name, warnings
from benchmarks.results import FEW_SAMPLES, Case, Measurement, Quantiles, Results

MEMORY_TOLERANCE = 0.02
"""Of the logits' size ..."""
MEMORY_TOLERANCE_BYTES = 2**20
"""... or this much, whichever is more: allocators and the C library round."""

NOT_MEASURED = "not measured"

IsOurs = Callable[[str], bool]


def compare(before: Results, after: Results, ours: IsOurs, threshold: float = 0.05) -> Comparison:
    """Match two runs case by case and subject by subject.

    Time is compared over the roof's of the same run, so that a machine that is slower altogether
    is no regression; where there is no roof, in milliseconds. It has changed if the larger value is
    more than 1 + threshold + noise times the smaller. The noise of a side is half the width from
    the 10th to the 90th percentile of its samples, over their median; the two sides add as
    independent errors do, by the root of their squares. A median is steadier than that if samples
    are independent. They are not: what moves a whole run (placement of memory, frequency,
    neighbours) moves its samples too, and their spread is what we know of it. The price is that a
    noisy case hides small changes; the remedy is a quieter run, not a smaller bound.

    A change over the roof is doubted if the milliseconds did not move the same way by the
    threshold: then it is the roof that moved. That is asked on the same machine only. Doubted as
    well: cases that other processes disturbed, and fewer than ``FEW_SAMPLES`` samples.

    Memory has no noise: it has changed if it did by more than ``MEMORY_TOLERANCE`` of the logits
    or ``MEMORY_TOLERANCE_BYTES``.

    A subject that one of the runs lacks in a case which both have counts as one that failed there.

    Args:
        before, after: Runs of one suite.
        ours: Whether a subject is the library. Changes of others are context, no regressions.
        threshold: Smallest change of time that matters, as a share.

    Raises:
        ValueError: the runs are of two suites.
    """
    if before.suite != after.suite:
        raise ValueError(f"cannot compare suite {before.suite!r} with {after.suite!r}")
    old, new = ({case.key: case for case in run.cases} for run in (before, after))
    matched = [(old[key], new[key]) for key in old if key in new]
    same = not differences(before, after, "machine")
    return Comparison(
        before.suite,
        name(before),
        name(after),
        threshold,
        warnings(before, after),
        [change for pair in matched for change in _changes(*pair, threshold, same, ours)],
        [failure for pair in matched for failure in _failures(*pair, ours)],
        [_describe(case) for key, case in old.items() if key not in new],
        [_describe(case) for key, case in new.items() if key not in old],
    )


def noise(*sides: Quantiles) -> float:
    """Relative error of a quotient of two medians; see :func:`compare`."""
    return math.hypot(*((side.p90 - side.p10) / 2 / side.median for side in sides))


def _changes(
    before: Case, after: Case, threshold: float, same_machine: bool, ours: IsOurs
) -> Iterator[Change]:
    for old in before.measurements:
        new = after[old.subject]
        if old.error or new.error or old.subject == before.roof:
            continue
        about = _describe(before), old.subject, new.label, ours(old.subject)
        if old.milliseconds and new.milliseconds:
            what, was, now = _times(before, after, old, new)
            allowance = threshold + noise(old.milliseconds, new.milliseconds)
            doubt = _doubt(before, after, old, new)
            if not doubt and what != "ms" and same_machine:
                doubt = _roof_moved(old.milliseconds, new.milliseconds, now > was, threshold)
            yield Change(*about, what, was, now, allowance, doubt)
        if "logits" in old.ratios and "logits" in new.ratios:
            allowance = MEMORY_TOLERANCE_BYTES / before.problem.logits_bytes
            values = old.ratios["logits"], new.ratios["logits"]
            yield Change(*about, "x logits", *values, max(MEMORY_TOLERANCE, allowance))


def _times(
    before: Case, after: Case, old: Measurement, new: Measurement
) -> tuple[str, float, float]:
    was, now = old.ratios.get(before.roof or ""), new.ratios.get(after.roof or "")
    if was and now and before.roof == after.roof:
        return f"x {before.roof}", was, now
    assert old.milliseconds is not None
    assert new.milliseconds is not None
    return "ms", old.milliseconds.median, new.milliseconds.median


def _doubt(before: Case, after: Case, old: Measurement, new: Measurement) -> str:
    if before.disturbed or after.disturbed:
        return "disturbed"
    samples = [m.milliseconds.samples for m in (old, new) if m.milliseconds]
    return f"{min(samples)} samples" if min(samples) < FEW_SAMPLES else ""


def _roof_moved(old: Quantiles, new: Quantiles, slower: bool, threshold: float) -> str:
    grown = new.median / old.median if slower else old.median / new.median
    return "" if grown > 1 + threshold else "the roof moved, not the milliseconds"


def _failures(before: Case, after: Case, ours: IsOurs) -> Iterator[Failure]:
    labels = {m.subject: m.label for case in (before, after) for m in case.measurements}
    for subject, label in labels.items():
        was, now = _error(before, subject), _error(after, subject)
        if bool(was) != bool(now):
            yield Failure(_describe(before), label, ours(subject), bool(now), now or was)


def _error(case: Case, subject: str) -> str:
    """Why there are no figures; nothing if there are."""
    found = next((m for m in case.measurements if m.subject == subject), None)
    return NOT_MEASURED if found is None else found.error or ""


def _describe(case: Case) -> str:
    return f"{case.table}, {case}"
