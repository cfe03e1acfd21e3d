"""Whether two runs took place in the same surroundings."""

from __future__ import annotations

from typing import Any

from benchmarks.results import Results

IGNORED = frozenset({"load_average_before", "anl_kernels"})
"""What differs between any two runs; the library's own version is what is compared."""


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
