"""What makes a suite."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.problems import Problem
from benchmarks.targets import Target

Arguments = dict[str, Any]
"""Of the command line, by name."""


@dataclass(frozen=True)
class Spec:
    """A case that is to be measured."""

    table: str
    problem: Problem
    contenders: tuple[str, ...]
    regime: str = "default"
    """A key of ``REGIMES``."""
    roofline: str | None = "copy"
    """One of the contenders; see ``Case``."""
    floor: float | None = 1.0
    """See ``Case``."""
    backend: str = "auto"
    """The library's, of contenders that name none."""
    ours: str = "ours"
    """The contender that the others' times are divided by; see ``Case``."""
    clock: Literal["device", "host", "own"] = "device"
    """Whose time counts: the device's, the host's until it has queued a step, or what the step says
    that it took."""
    rounds: int | None = None
    """So many, whatever the budget of the run."""
    measured: Literal["time", "memory"] = "time"

    def narrowed(self, asked: Collection[str]) -> Spec:
        """With what was asked for alone, and what that is measured by: the roofline and ours.

        Without any contender if none was asked for that it has.
        """
        if not set(asked) & set(self.contenders):
            return replace(self, contenders=())
        kept = {*asked, self.roofline, self.ours}
        return replace(self, contenders=tuple(name for name in self.contenders if name in kept))


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
    targets: tuple[Target, ...] = ()
    """What its measurements have to meet."""

    def defaults(self, device: str, quick: bool) -> Arguments:
        """Of the arguments; a device that does not exist gets the CPU's."""
        full, less = self.settings.get(device, self.settings["cpu"])
        return {"tables": list(self.tables)} | full | (less if quick else {})

    def specs(self, options: Namespace) -> list[Spec]:
        """What the arguments ask for."""
        asked = [table for name, table in self.tables.items() if name in options.tables]
        specs = [spec for table in asked for spec in table.specs(options)]
        if options.contenders is None:
            return specs
        return [spec for spec in (s.narrowed(options.contenders) for s in specs) if spec.contenders]

    def contenders(self, device: str) -> list[str]:
        """All that it measures on a device."""
        options = Namespace(device=device, contenders=None, **self.defaults(device, quick=False))
        return list(dict.fromkeys(name for s in self.specs(options) for name in s.contenders))

    def title_of(self, table: str) -> str:
        """For people; the name itself of a table that is no more."""
        return self.tables[table].title if table in self.tables else table
