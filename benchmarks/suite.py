"""What makes a suite."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.problems import Problem

Arguments = dict[str, Any]
"""Of the command line, by name."""


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

    def narrowed(self, asked: Collection[str]) -> Spec:
        """With what was asked for alone, and what that is measured by: the roof and ours.

        Without any subject if none was asked for that it has.
        """
        if not set(asked) & set(self.subjects):
            return replace(self, subjects=())
        kept = {*asked, self.roof, self.ours}
        return replace(self, subjects=tuple(name for name in self.subjects if name in kept))


@dataclass(frozen=True)
class Table:
    """Cases that belong together."""

    title: str
    specs: Callable[[Namespace], Iterable[Spec]]
    """What the arguments ask for."""


@dataclass(frozen=True)
class Suite:
    """A subcommand: what it measures."""

    title: str
    sizes: str
    """The form of a shape on the command line: "NxK"."""
    tables: Mapping[str, Table]
    settings: Mapping[str, tuple[Arguments, Arguments]]
    """Defaults of the arguments by device, and what is else when the run shall be quick."""
    notes: str = ""
    """What a reader of the tables has to know beside what holds for every suite."""

    def defaults(self, device: str, quick: bool) -> Arguments:
        """Of the arguments; a device that does not exist gets the CPU's."""
        full, less = self.settings.get(device, self.settings["cpu"])
        return {"tables": list(self.tables)} | full | (less if quick else {})

    def specs(self, options: Namespace) -> list[Spec]:
        """What the arguments ask for."""
        asked = [table for name, table in self.tables.items() if name in options.tables]
        specs = [spec for table in asked for spec in table.specs(options)]
        if options.subjects is None:
            return specs
        return [spec for spec in (s.narrowed(options.subjects) for s in specs) if spec.subjects]

    def subjects(self, device: str) -> list[str]:
        """All that it measures on a device."""
        options = Namespace(device=device, subjects=None, **self.defaults(device, quick=False))
        return list(dict.fromkeys(name for s in self.specs(options) for name in s.subjects))

    def title_of(self, table: str) -> str:
        """For people; the name itself of a table that is no more."""
        return self.tables[table].title if table in self.tables else table
