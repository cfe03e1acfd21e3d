"""The tables of the study of balance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .balance_selection import WATCHED, Difference, Standing, label
from .gradients import LATE
from .selection import Record, last, values
from .tables import percent, table

SHOWN_CLASSES = (10, 1000, 128_256)
"""Of the gradients, which the JSON file has for more."""


def standings_table(found: Sequence[Standing]) -> str:
    """Losses over seeds."""
    heading = (
        "loss", "rate", "seeds", "last", "less the best GCE", f"less {WATCHED}'s best", "best",
        "wrong fitted",
    )  # fmt: skip
    return table(
        heading,
        [
            [
                s.loss,
                f"{s.rate:g}",
                str(s.seeds),
                f"{s.last:.2f}",
                cell(s.over_rival),
                cell(s.over_watched),
                f"{s.best:.2f}",
                f"{s.fitted:.1f}",
            ]
            for s in found
        ],
    )


def cell(difference: Difference | None) -> str:
    """A paired difference with its standard error; in bold if it is no chance."""
    if difference is None:
        return ""
    text = f"{difference.mean:+.2f} ± {difference.error:.2f}"
    return f"**{text}**" if difference.differs else text


def rates_table(records: list[Record]) -> str:
    """Last accuracy on the windows for choosing by rate, the chosen in bold; and the best."""
    rates = sorted(values(records, "learning_rate"))
    rows = []
    for loss in dict.fromkeys(map(label, records)):
        found = {r["run"]["learning_rate"]: r for r in records if label(r) == loss}
        chosen = max(found, key=lambda rate: last(found[rate]))
        cells = (rate_cell(found.get(rate), rate == chosen) for rate in rates)
        rows.append([loss, *cells])
    return table(["loss", *(f"{rate:g}" for rate in rates)], rows)


def rate_cell(record: Record | None, chosen: bool) -> str:
    """Last accuracy, and how many of the wrong labels were fitted."""
    if record is None:
        return ""
    top1 = percent(last(record))
    return f"{f'**{top1}**' if chosen else top1} ({percent(record['wrong_fitted'] or 0.0)})"


def late_table(rows: list[dict[str, Any]]) -> str:
    """Norms of a row's gradient, at uniform logits and late: right label / wrong label."""
    heading = ["K", "loss", "class_scale", "uniform", *(f"{top:g}" for top in LATE)]
    return table(
        heading,
        [
            [
                f"{row['num_classes']:,}",
                row["loss"],
                "1" if row["balance"] == 1.0 else str(row["balance"]),
                f"{row['uniform']:.2g}",
                *(
                    f"{right:.2g} / {wrong:.2g}"
                    for right, wrong in zip(row["right"], row["wrong"], strict=True)
                ),
            ]
            for row in rows
            if row["num_classes"] in SHOWN_CLASSES
        ],
    )
