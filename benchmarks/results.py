"""What a run leaves behind, and its JSON form.

Tables, bars and plots are made from this alone, so that a committed file can be rendered again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 1
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
    """This subject's cost over that of each named one: of times, the median over rounds."""
    first_call_ms: float | None = None
    """With compilation, if there is any."""
    error: str | None = None


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
        mark = " (disturbed)" if self.disturbed else ""
        return f"{self.rows} x {self.classes} {self.dtype} x{self.scale:g}, {self.regime}{mark}"


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
    """The library's backend that ran."""
    checks: list[Check]
    cases: list[Case]
    failures: list[str]
    """Jobs that died, with all cases they had not finished."""
    schema_version: int = SCHEMA_VERSION

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
        version = record.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version must be {SCHEMA_VERSION}, got {version}: run again")
        record["checks"] = [Check(**check) for check in record["checks"]]
        record["cases"] = [case_from(case) for case in record["cases"]]
        return cls(**record)


def case_from(record: dict[str, Any]) -> Case:
    """A case out of its JSON object."""
    return Case(**record | {"measurements": [_measurement(m) for m in record["measurements"]]})


def _measurement(record: dict[str, Any]) -> Measurement:
    spread = record["milliseconds"]
    return Measurement(**record | {"milliseconds": spread and Quantiles(**spread)})
