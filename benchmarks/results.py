"""What a run leaves behind, and its JSON form.

Tables, bars and plots are made from this alone, so that a committed file can be rendered again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Version 2 grew what has a default here."""
DISTURBED = 0.05
"""Share of the CPUs' time that others may take."""


@dataclass(frozen=True)
class Quantiles:
    """Spread of the samples of one subject."""

    min: float
    p10: float
    median: float
    p90: float
    samples: int


@dataclass(frozen=True)
class Measurement:
    """One subject in one case; without figures and with an ``error`` if it could not run."""

    subject: str
    label: str
    milliseconds: Quantiles | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    """This subject's cost over that of each named one: of times, the median over rounds.

    Over "logits": its peak extra memory over their size.
    """
    first_call_ms: float | None = None
    """With compilation, if there is any."""
    error: str | None = None
    host_milliseconds: Quantiles | None = None
    """What the host took to queue the step, where it does not wait for its end."""
    caught_up: float | None = None
    """Share of the samples in which the GPU may have waited for the host."""


@dataclass(frozen=True)
class Case:
    """Subjects that were measured together."""

    table: str
    regime: str
    device: str
    rows: int
    classes: int
    dtype: str
    scale: float
    """Standard deviation of the logits."""
    measurements: list[Measurement]
    taken_by_others: float | None = None
    """Share of the CPUs' time that other processes had meanwhile; None if not known."""
    backend: str = "auto"
    """The library's, of subjects that name none."""
    auto: str | None = None
    """What "auto" takes for such logits."""

    @property
    def disturbed(self) -> bool:
        """Whether others had enough of the CPUs to spoil the figures."""
        return (self.taken_by_others or 0.0) > DISTURBED

    def __getitem__(self, subject: str) -> Measurement:
        """The subject's measurement; one that says so if it was not asked for."""
        for measurement in self.measurements:
            if measurement.subject == subject:
                return measurement
        return Measurement(subject, subject, error="not run")

    def __str__(self) -> str:
        """Identify the case in one line."""
        how = self.regime if self.device == "cpu" else f"{self.device}, {self.backend}"
        mark = " (disturbed)" if self.disturbed else ""
        return f"{self.rows} x {self.classes} {self.dtype} x{self.scale:g}, {how}{mark}"


@dataclass(frozen=True)
class Check:
    """A relative error of ours against float64, and what it may be."""

    what: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.error <= self.bound


@dataclass(frozen=True)
class Results:
    """One run of one suite."""

    suite: str
    created: str
    """UTC, ISO 8601."""
    environment: dict[str, Any]
    arguments: dict[str, Any]
    backend: str
    """The library's backend that ran; on a GPU it may differ by case."""
    checks: list[Check]
    cases: list[Case]
    failures: list[str]
    """Jobs that died, with all cases they had not finished."""
    schema_version: int = SCHEMA_VERSION

    @property
    def device(self) -> str:
        """The device that was measured."""
        return self.arguments.get("device", "cpu")

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the file has another schema version.
        """
        record = json.loads(text)
        version = record.pop("schema_version", None)
        if version not in READABLE:
            versions = " or ".join(map(str, READABLE))
            raise ValueError(f"schema version must be {versions}, got {version}: run again")
        record["checks"] = [Check(**check) for check in record["checks"]]
        record["cases"] = [case_from(case) for case in record["cases"]]
        return cls(**record)


def case_from(record: dict[str, Any]) -> Case:
    """A case out of its JSON object."""
    return Case(**record | {"measurements": [_measurement(m) for m in record["measurements"]]})


def _measurement(record: dict[str, Any]) -> Measurement:
    spreads = {name: record.get(name) for name in ("milliseconds", "host_milliseconds")}
    return Measurement(**record | {k: v and Quantiles(**v) for k, v in spreads.items()})
