"""What a comparison of two runs consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One figure of one contender in one case, in both runs."""

    case: str
    contender: str
    label: str
    ours: bool
    what: str
    """"x copy" (time over the roofline's), "ms" or "x logits" (memory)."""
    before: float
    after: float
    allowance: float
    """What noise and the threshold account for: of the ratio, or of the difference for memory."""
    doubt: str = ""
    """Why a change is not believed, if it is not."""

    @property
    def is_memory(self) -> bool:
        """Whether it is memory, not time."""
        return self.what == "x logits"

    @property
    def size(self) -> float:
        """By how much it grew, as a share; the difference for memory, which may be 0 before."""
        return self.after - self.before if self.is_memory else self.after / self.before - 1

    @property
    def verdict(self) -> str:
        """ "worse", "better", or "doubtful" if one of the two and not believed; else nothing."""
        if self._exceeds(self.before, self.after):
            return "doubtful" if self.doubt else "worse"
        if self._exceeds(self.after, self.before):
            return "doubtful" if self.doubt else "better"
        return ""

    def _exceeds(self, low: float, high: float) -> bool:
        if self.is_memory:
            return high - low > self.allowance
        return high / low > 1 + self.allowance


@dataclass(frozen=True)
class Failure:
    """A contender that can run in one of the two runs only."""

    case: str
    label: str
    ours: bool
    began: bool
    """Whether it is the later run that it fails in."""
    error: str


@dataclass(frozen=True)
class Comparison:
    """All that can be said of two runs."""

    suite: str
    before: str
    after: str
    threshold: float
    warnings: list[str]
    changes: list[Change]
    failures: list[Failure]
    only_before: list[str]
    only_after: list[str]

    @property
    def regressions(self) -> list[Change]:
        """What of ours got worse by more than noise."""
        return [change for change in self.changes if change.ours and change.verdict == "worse"]

    @property
    def improvements(self) -> list[Change]:
        """What of ours got better by more than noise."""
        return [change for change in self.changes if change.ours and change.verdict == "better"]

    @property
    def context(self) -> list[Change]:
        """What changed of others: the machine or the versions, most likely."""
        moved = "worse", "better"
        return [change for change in self.changes if not change.ours and change.verdict in moved]

    @property
    def doubtful(self) -> list[Change]:
        """Changes that are not believed."""
        return [change for change in self.changes if change.verdict == "doubtful"]

    @property
    def regressed(self) -> bool:
        """Whether something of ours got worse, or no longer runs."""
        return bool(self.regressions) or any(f.ours and f.began for f in self.failures)
