"""The JSON of a study: what all runs share, and one line for each run, written after each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

FILE = "images.json"
SHARED = ("arguments", "versions", "machine", "sizes")


@dataclass(frozen=True)
class Setting:
    """A kind of noise and its rate; rate 0 is symmetric."""

    noise: str
    rate: float


@dataclass(frozen=True)
class Run:
    """One network: see :class:`.train.Outcome`."""

    method: str
    noise: str
    rate: float
    seed: int
    wrong_labels: float
    correct: list[int]
    fitted_labels: float
    fitted_wrong: float | None
    seconds: float
    commit: str

    @property
    def setting(self) -> Setting:
        """The noise."""
        return Setting(self.noise, self.rate)


@dataclass(frozen=True)
class Summary:
    """Mean and deviation (n - 1) over seeds, in per cent; no deviation of a single one."""

    mean: float
    deviation: float | None


@dataclass
class Study:
    """All runs with the same arguments."""

    arguments: dict[str, Any]
    """Of the training; what is trained on is in the runs."""
    versions: dict[str, str]
    machine: dict[str, Any]
    sizes: dict[str, int]
    """train, test: images; num_classes."""
    runs: list[Run] = field(default_factory=list)

    def has(self, method: str, setting: Setting, seed: int) -> bool:
        """Whether this run is there already."""
        wanted = method, setting, seed
        return any((run.method, run.setting, run.seed) == wanted for run in self.runs)

    def of(self, method: str, setting: Setting) -> list[Run]:
        """The runs of a loss under some noise."""
        return [run for run in self.runs if (run.method, run.setting) == (method, setting)]

    def settings(self, noise: str) -> list[Setting]:
        """Those of a kind of noise, by rate."""
        return sorted({r.setting for r in self.runs if r.noise == noise}, key=lambda s: s.rate)

    def accuracies(self, run: Run) -> list[float]:
        """Test accuracy after each epoch, in per cent."""
        return [100 * count / self.sizes["test"] for count in run.correct]

    def last(self, method: str, setting: Setting) -> Summary | None:
        """Test accuracy after the last epoch; None of no run."""
        return summarise(self.accuracies(run)[-1] for run in self.of(method, setting))

    def best(self, method: str, setting: Setting) -> Summary | None:
        """Test accuracy after the epoch in which it was highest."""
        return summarise(max(self.accuracies(run)) for run in self.of(method, setting))

    def fitted_wrong(self, method: str, setting: Setting) -> Summary | None:
        """Share of the wrong training labels that networks reproduce; None where none is wrong."""
        shares = [run.fitted_wrong for run in self.of(method, setting)]
        return summarise(100 * share for share in shares if share is not None)

    def save(self, path: Path) -> None:
        """Write the file anew; a reader never sees half of it."""
        shared = {name: getattr(self, name) for name in SHARED}
        head = json.dumps(shared, indent=2).removesuffix("\n}")
        runs = ",\n".join(f"    {json.dumps(asdict(run))}" for run in self.runs)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(f'{head},\n  "runs": [\n{runs}\n  ]\n}}\n', encoding="utf-8")
        beside.replace(path)


def load(path: Path) -> Study:
    """The study that a file holds."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return Study(
        **{name: record[name] for name in SHARED}, runs=[Run(**run) for run in record["runs"]]
    )


def resume(study: Study, path: Path) -> Study:
    """The study of the file if it has the same arguments; SystemExit if it has others."""
    if not path.exists():
        return study
    before = load(path)
    for name in ("arguments", "versions", "sizes"):
        old, new = getattr(before, name), getattr(study, name)
        if old != new:
            raise SystemExit(
                f"{path} has runs with other {name}: {old}, not {new}; give another --out"
            )
    return before


def summarise(values: Iterable[float]) -> Summary | None:
    """Mean and deviation, None of nothing."""
    found = list(values)
    if not found:
        return None
    return Summary(mean(found), stdev(found) if len(found) > 1 else None)
