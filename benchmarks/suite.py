"""What makes a suite."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.jobs import Job
from benchmarks.results import Results


@dataclass(frozen=True)
class Suite:
    """A subcommand: jobs that measure, and tables of what they found."""

    title: str
    add_arguments: Callable[[ArgumentParser], None]
    defaults: Callable[[str, bool], dict[str, Any]]
    """Of the arguments, by device and whether the run shall be quick."""
    why_not: Callable[[Namespace], str | None]
    """What is wrong with arguments that each are right, or None."""
    gate: Callable[[Namespace], Job]
    """A job that yields checks, all of which have to pass before the others run."""
    jobs: Callable[[Namespace], list[Job]]
    """Jobs that yield cases."""
    render: Callable[[Results], str]
    """Results as Markdown."""
