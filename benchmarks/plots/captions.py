"""Where, how and when the figures of a plot were measured."""

from __future__ import annotations

from typing import Any

from benchmarks.results import Case, Results


def caption(results: Results, cases: list[Case], *remarks: str) -> str:
    """Under a plot: remarks, then the circumstances."""
    remark = " ".join(filter(None, remarks))
    return "\n".join(filter(None, [remark, f"{_how(cases)}. {provenance(results)}."]))


def left_out(labels: list[str]) -> str:
    """What a plot does not show."""
    return f"In the tables only: {'; '.join(labels)}." if labels else ""


def provenance(results: Results) -> str:
    """Machine, versions, date and commit, in one line."""
    versions = results.environment["versions"]
    return ", ".join(
        [
            machine(results),
            f"torch {versions['torch']}",
            results.created[:10],
            f"commit {commit(results)}",
        ]
    )


def machine(results: Results) -> str:
    """The device that was measured."""
    found: dict[str, Any] = results.environment["machine"]
    if results.device == "cpu":
        return f"{found['cpu']}, {found['threads']} threads, {found['isa']}"
    return found["gpu"]["name"]


def commit(results: Results) -> str:
    """Short, with a word on changes that it lacks."""
    git = results.environment["git"]
    return f"{(git['commit'] or 'unknown')[:7]}{' with changes' if git['dirty'] else ''}"


def _how(cases: list[Case]) -> str:
    first = cases[0]
    dtypes = ", ".join(dict.fromkeys(case.problem.dtype for case in cases))
    facts = [dtypes, f"logits of sigma {first.problem.sigma:g}"]
    if first.problem.device == "cpu":
        facts.append(f"allocator: {first.regime}")
    if any(case.disturbed for case in cases):
        facts.append("others disturbed some cases")
    return "; ".join(facts)
