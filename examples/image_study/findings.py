"""What the figures say of each loss against cross entropy; every sentence is computed."""

from __future__ import annotations

from .methods import BASELINE
from .records import Setting, Study, Summary
from .tables import methods

HIGH_RATE = 0.4
LEVEL = 2.0  # deviations of a difference
UNTRAINED = 5.0  # points below cross entropy without noise


def findings(study: Study) -> list[str]:
    """Sentences, each about one noise setting or one loss."""
    if BASELINE not in methods(study):
        return []
    high = [s for s in study.settings("symmetric") if s.rate >= HIGH_RATE]
    asymmetric = study.settings("asymmetric")[-1:]
    told = [against_baseline(study, setting) for setting in (*high, *asymmetric)]
    return [*told, *untrained(study)]


def against_baseline(study: Study, setting: Setting) -> str:
    """Who ends above cross entropy, who level with it, who below."""
    base = study.last(BASELINE, setting)
    best = study.best(BASELINE, setting)
    assert base is not None
    assert best is not None
    groups: dict[str, list[str]] = {"above": [], "level with": [], "below": []}
    for name in methods(study):
        summary = study.last(name, setting)
        if name != BASELINE and summary is not None:
            groups[verdict(summary, base)].append(f"{name} {summary.mean:.1f}")
    parts = [f"{where} it {', '.join(names)}" for where, names in groups.items() if names]
    return (
        f"{setting.rate:.0%} {setting.noise} noise: {BASELINE} ends at {base.mean:.1f} % (its best "
        f"epoch, which only clean labels could find: {best.mean:.1f}); {'; '.join(parts)}."
    )


def verdict(summary: Summary, base: Summary) -> str:
    """Whether a mean is above or below another by ``LEVEL`` deviations, where they are known."""
    difference = summary.mean - base.mean
    squares = [s.deviation**2 for s in (summary, base) if s.deviation is not None]
    if abs(difference) <= LEVEL * sum(squares) ** 0.5:
        return "level with"
    return "above" if difference > 0 else "below"


def untrained(study: Study) -> list[str]:
    """Losses that do not train in these epochs even on clean labels."""
    clean = Setting("symmetric", 0.0)
    base = study.last(BASELINE, clean)
    if base is None:
        return []
    slow = [
        f"{name} ({summary.mean:.1f} %)"
        for name in methods(study)
        if (summary := study.last(name, clean)) and summary.mean < base.mean - UNTRAINED
    ]
    if not slow:
        return []
    return [
        f"On clean labels these stay more than {UNTRAINED:.0f} points below {BASELINE} "
        f"({base.mean:.1f} %): {', '.join(slow)}. What they lose under noise is not all noise's."
    ]
