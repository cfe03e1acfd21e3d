"""What makes a suite."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.problems import Problem


@dataclass(frozen=True)
class Spec:
    """A case that is to be measured."""

    table: str
    problem: Problem
    subjects: tuple[str, ...]
    regime: str = "default"
    """A key of ``REGIMES``."""
    roof: str | None = "copy"
    """One of the subjects; see ``Case``."""
    floor: float | None = 1.0
    """See ``Case``."""
    backend: str = "auto"
    """The library's, of subjects that name none."""
    ours: str = "ours"
    """The subject that the others' times are divided by; see ``Case``."""
    host: bool = False
    """What counts is how long the host takes to queue a step, not the GPU's time."""
    measured: Literal["time", "memory"] = "time"


@dataclass(frozen=True)
class Suite:
    """A subcommand: what it measures, and what its tables are called."""

    title: str
    sizes: str
    """The form of a shape on the command line: "NxK"."""
    tables: Mapping[str, str]
    """Titles by name."""
    defaults: Callable[[str, bool], dict[str, Any]]
    """Of the arguments, by device and whether the run shall be quick."""
    specs: Callable[[Namespace], list[Spec]]
    """What the arguments ask for."""
    notes: str = ""
    """What a reader of the tables has to know beside what holds for every suite."""
