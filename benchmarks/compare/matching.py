"""Matches two runs and judges what changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.compare.changes import Change, Comparison, Failure
from benchmarks.results import FEW_SAMPLES, Case, Measurement, Quantiles, Results

MEMORY_TOLERANCE = 0.02
"""Of the logits' size ..."""
MEMORY_TOLERANCE_BYTES = 2**20
"""... or this much, whichever is more: allocators and the C library round."""

NOT_MEASURED = "not measured"
IGNORED = frozenset({"load_average_before", "anl_kernels"})
"""What differs between any two runs; the library's own version is what is compared."""

IsOurs = Callable[[str], bool]


def compare(before: Results, after: Results, ours: IsOurs, threshold: float = 0.05) -> Comparison:
    """Match two runs case by case and contender by contender.

    Time is compared over the roofline's of the same run, so that a slower machine is no
    regression; where there is no roofline, in milliseconds. It has changed if the larger value is
    more than 1 + threshold + noise times the smaller. The noise of a side is half the width from
    the 10th to the 90th percentile of its samples, over their median; the two sides add as
    independent errors do, by the root of their squares. Samples are not independent: what moves a
    whole run (placement of memory, frequency, neighbours) moves all of them. So a noisy case hides
    small changes; the remedy is a quieter run, not a smaller bound.

    A change over the roofline is doubted if the milliseconds did not move the same way by the
    threshold: then the roofline moved. That is asked on the same machine only. Doubted as well:
    cases that other processes disturbed, and fewer than ``FEW_SAMPLES`` samples.

    Memory has no noise: it has changed if it did by more than ``MEMORY_TOLERANCE`` of the logits
    or ``MEMORY_TOLERANCE_BYTES``.

    A contender that one of the runs lacks in a case of both counts as one that failed there.

    Args:
        before, after: Runs of one suite.
        ours: Whether a contender is the library. Changes of others are context, no regressions.
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
        new = after[old.contender]
        if old.error or new.error or old.contender == before.roofline:
            continue
        about = _describe(before), old.contender, new.label, ours(old.contender)
        if old.milliseconds and new.milliseconds:
            what, was, now = _times(before, after, old, new)
            allowance = threshold + noise(old.milliseconds, new.milliseconds)
            doubt = _doubt(before, after, old, new)
            if not doubt and what != "ms" and same_machine:
                doubt = _roofline_moved(old.milliseconds, new.milliseconds, now > was, threshold)
            yield Change(*about, what, was, now, allowance, doubt)
        if "logits" in old.ratios and "logits" in new.ratios:
            allowance = MEMORY_TOLERANCE_BYTES / before.problem.logits_bytes
            values = old.ratios["logits"], new.ratios["logits"]
            yield Change(*about, "x logits", *values, max(MEMORY_TOLERANCE, allowance))


def _times(
    before: Case, after: Case, old: Measurement, new: Measurement
) -> tuple[str, float, float]:
    was, now = old.ratios.get(before.roofline or ""), new.ratios.get(after.roofline or "")
    if was and now and before.roofline == after.roofline:
        return f"x {before.roofline}", was, now
    assert old.milliseconds is not None
    assert new.milliseconds is not None
    return "ms", old.milliseconds.median, new.milliseconds.median


def _doubt(before: Case, after: Case, old: Measurement, new: Measurement) -> str:
    if before.disturbed or after.disturbed:
        return "disturbed"
    samples = [m.milliseconds.samples for m in (old, new) if m.milliseconds]
    return f"{min(samples)} samples" if min(samples) < FEW_SAMPLES else ""


def _roofline_moved(old: Quantiles, new: Quantiles, slower: bool, threshold: float) -> str:
    grown = new.median / old.median if slower else old.median / new.median
    return "" if grown > 1 + threshold else "the roofline moved, not the milliseconds"


def _failures(before: Case, after: Case, ours: IsOurs) -> Iterator[Failure]:
    labels = {m.contender: m.label for case in (before, after) for m in case.measurements}
    for contender, label in labels.items():
        was, now = _error(before, contender), _error(after, contender)
        if bool(was) != bool(now):
            yield Failure(_describe(before), label, ours(contender), bool(now), now or was)


def _error(case: Case, contender: str) -> str:
    """Why there are no figures; nothing if there are."""
    found = next((m for m in case.measurements if m.contender == contender), None)
    return NOT_MEASURED if found is None else found.error or ""


def _describe(case: Case) -> str:
    return f"{case.table}, {case}"


def warnings(before: Results, after: Results) -> list[str]:
    """What keeps the figures of two runs from being compared at face value."""
    found = differences(before, after, "machine") + differences(before, after, "versions")
    if before.backend != after.backend:
        found.append(f"backend: {before.backend} -> {after.backend}")
    for run in (before, after):
        if run.environment["git"]["dirty"]:
            found.append(f"{name(run)} had changes that were not committed")
    return found


def differences(before: Results, after: Results, part: str) -> list[str]:
    """Facts of the machine, or the versions, that are not the same."""
    old, new = (_flat(run.environment[part]) for run in (before, after))
    return [
        f"{part}: {key}: {old.get(key)} -> {new.get(key)}"
        for key in dict.fromkeys([*old, *new])
        if key not in IGNORED and old.get(key) != new.get(key)
    ]


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """With the GPU's facts beside the machine's."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        inner = value if isinstance(value, dict) else {}
        found |= {f"{key} {detail}": fact for detail, fact in inner.items()} or {key: value}
    return found


def name(run: Results) -> str:
    """The run, for people."""
    commit = run.environment["git"]["commit"]
    return f"{(commit or 'unknown commit')[:7]} of {run.created}"
