"""What a run leaves behind, and its JSON form.

Tables, plots and reports are made from this alone, so that a committed file can be rendered again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.problems import Problem

SCHEMA_VERSION = 3
IN_JSON = {"contender": "subject", "roofline": "roof"}
"""Fields that files know by other names."""
FROM_JSON = {name: field for field, name in IN_JSON.items()}
MIB = 2**20
DISTURBED = 0.05
"""Share of the CPUs' time that others may take."""
FEW_SAMPLES = 5
"""Below this number of samples a median says little."""


@dataclass(frozen=True)
class Quantiles:
    """Spread of the samples of one contender."""

    min: float
    p10: float
    p25: float
    median: float
    p75: float
    p90: float
    max: float
    samples: int


@dataclass(frozen=True)
class Measurement:
    """One contender in one case; without figures and with an ``error`` if it could not run."""

    contender: str
    label: str
    milliseconds: Quantiles | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    """This contender's cost over that of each named one: of times, the median over rounds.

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
    """Contenders that were measured together."""

    table: str
    regime: str
    problem: Problem
    measurements: list[Measurement]
    roofline: str | None = "copy"
    """The contender that no implementation can be faster than."""
    floor: float | None = 1.0
    """The least time that the step can take, over the roofline's; None if there is no saying."""
    taken_by_others: float | None = None
    """Share of the CPUs' time that other processes had meanwhile; None if not known."""
    backend: str = "auto"
    """The library's, of contenders that name none."""
    auto: str | None = None
    """What "auto" takes for such logits."""
    ours: str = "ours"
    """The contender that stands for the library where others are compared with it."""

    @property
    def disturbed(self) -> bool:
        """Whether others had enough of the CPUs to spoil the figures."""
        return (self.taken_by_others or 0.0) > DISTURBED

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells the case from others of its suite."""
        return self.table, self.regime, self.problem, self.backend

    def share_of_roofline(self, measurement: Measurement) -> float | None:
        """The least possible time over the contender's; None if one of the two is not known."""
        over_roofline, floor = measurement.ratios.get(self.roofline or ""), self._floor(measurement)
        return floor / over_roofline if over_roofline and floor else None

    def over_ours(self, measurement: Measurement) -> float | None:
        """The contender's time over that of the library; None if not known."""
        return measurement.ratios.get(self.ours)

    def memory_over(self, measurement: Measurement, contender: str) -> float | None:
        """The peak extra memory over that of another contender; None if not known."""
        over_logits, other = measurement.ratios.get("logits"), self[contender].ratios.get("logits")
        return over_logits / other if over_logits is not None and other else None

    def mebibytes(self, measurement: Measurement) -> float | None:
        """The peak extra memory; None if not known."""
        over_logits = measurement.ratios.get("logits")
        return (
            None if over_logits is None else max(0.0, over_logits) * self.problem.logits_bytes / MIB
        )

    def gigabytes_per_second(self, measurement: Measurement) -> float | None:
        """The bytes that the step has to move over its time, where a copy is the roofline."""
        floor = self._floor(measurement)
        if self.roofline != "copy" or floor is None or measurement.milliseconds is None:
            return None
        return floor * 2 * self.problem.logits_bytes / measurement.milliseconds.median / 1e6

    def _floor(self, measurement: Measurement) -> float | None:
        return 1.0 if measurement.contender == self.roofline else self.floor

    def teraflops_per_second(self, measurement: Measurement) -> float | None:
        """The least arithmetic of the step over its time, where products are the roofline."""
        problem, spread = self.problem, measurement.milliseconds
        if self.roofline != "products" or problem.hidden is None or spread is None:
            return None
        three_products = 3 * 2 * problem.rows * problem.hidden * problem.classes
        return three_products / spread.median / 1e9

    def __getitem__(self, contender: str) -> Measurement:
        """The contender's measurement; one that says so if it was not asked for."""
        for measurement in self.measurements:
            if measurement.contender == contender:
                return measurement
        return Measurement(contender, contender, error="not run")

    def brief(self, dtype: bool = True) -> str:
        """Over a column or a panel: the sizes, the part of a step, whether others disturbed it."""
        problem = self.problem
        phase = "" if problem.phase == "both" else f", {problem.phase}"
        mark = " (disturbed)" if self.disturbed else ""
        return f"{problem.shape}{f' {problem.dtype}' if dtype else ''}{phase}{mark}"

    def __str__(self) -> str:
        """Identify the case in one line."""
        on_cpu = self.problem.device == "cpu"
        how = self.regime if on_cpu else f"{self.problem.device}, {self.backend}"
        mark = " (disturbed)" if self.disturbed else ""
        return f"{self.problem}, {how}{mark}"


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
    seconds: float = 0.0
    """What the run took."""
    schema_version: int = SCHEMA_VERSION

    @property
    def device(self) -> str:
        """The device that was measured."""
        return self.arguments.get("device", "cpu")

    def of_table(self, table: str) -> list[Case]:
        """The cases of one table, in the order they were measured in."""
        return [case for case in self.cases if case.table == table]

    def to_json(self) -> str:
        """The file's text: a measurement to a line."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "cases"}
        record["checks"] = [asdict(check) for check in self.checks]
        head = json.dumps(record, indent=1)[: -len("\n}")]
        cases = ",\n".join(map(_case_to_json, self.cases))
        return f'{head},\n "cases": [\n{cases}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the file has another schema version.
        """
        record = json.loads(text)
        version = record.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version must be {SCHEMA_VERSION}, got {version}: run again")
        record["checks"] = [Check(**check) for check in record["checks"]]
        record["cases"] = [case_from(case) for case in record["cases"]]
        return cls(**record)

    @classmethod
    def from_file(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            ValueError: it has another schema version, or is something else.
        """
        text = path.read_bytes()
        try:
            results = cls.from_json(text.decode())
            environment = results.environment
            _ = environment["machine"], environment["versions"], environment["git"]
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{path}: not a file of results") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return results


def case_from(record: dict[str, Any]) -> Case:
    """A case out of its JSON object, as it is in a file or comes from a job."""
    record = _fields(record)
    problem = record["problem"] | {"grid": tuple(record["problem"]["grid"])}
    measured = [_measurement(m) for m in record["measurements"]]
    return Case(**record | {"problem": Problem(**problem), "measurements": measured})


def merged(cases: Iterable[Case]) -> list[Case]:
    """Cases whose contenders were measured each in a process of its own, as one."""
    found: dict[tuple[Any, ...], Case] = {}
    for case in cases:
        if case.key in found:
            case = replace(
                found[case.key], measurements=found[case.key].measurements + case.measurements
            )
        found[case.key] = case
    return list(found.values())


def _measurement(record: dict[str, Any]) -> Measurement:
    record = _fields(record)
    spreads = {name: record.get(name) for name in ("milliseconds", "host_milliseconds")}
    return Measurement(**record | {k: v and Quantiles(**v) for k, v in spreads.items()})


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    return {FROM_JSON.get(name, name): value for name, value in record.items()}


def _case_to_json(case: Case) -> str:
    record = _for_json(asdict(case))
    lines = ",\n".join(f"   {json.dumps(m)}" for m in record.pop("measurements"))
    return f'  {json.dumps(record)[:-1]}, "measurements": [\n{lines}\n  ]}}'


def _for_json(value: Any) -> Any:
    """By the names of files, and without the digits that nobody measured."""
    if isinstance(value, dict):
        return {IN_JSON.get(k, k): _for_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
