"""The tables of README.md, out of records alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .gradients import PAPER_MIN_PROBS, RELATIVE_MIN_PROBS
from .plans import ADAMW, CLIPPED, OPTIMISERS, PLAIN
from .selection import (
    REFERENCE,
    Record,
    Summary,
    having,
    last,
    optimised_by,
    trained,
    values,
)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, first column to the left, the others to the right."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float) -> str:
    """``0.1234`` as ``12.3``."""
    return f"{100 * share:.1f}"


def uniform_table(rows: list[dict[str, Any]]) -> str:
    """Norms of a row's gradient at uniform logits."""
    by_K: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_K.setdefault(row["num_classes"], {})[row["loss"]] = row
    heading = (
        "K", "CE", "GCE(0.7)", "MAE, DFT", "NCE", "NNCE", "NNCE / NCE", "NCE auto", "NNCE auto",
        "NNCE auto, largest",
    )  # fmt: skip
    return table(
        heading,
        [
            [
                f"{K:,}",
                *(f"{at[name]['measured']:.2g}" for name in ("CE", "GCE(0.7)", "MAE")),
                *(f"{at[name]['measured']:.3g}" for name in ("NCE", "NNCE")),
                f"{at['NNCE']['measured'] / at['NCE']['measured']:.2f}",
                *(f"{at[name]['auto']:.3f}" for name in ("NCE", "NNCE")),
                f"{at['NNCE']['largest']['norm'] * auto_factor(at['NNCE']):.2g}",
            ]
            for K, at in by_K.items()
        ],
    )


def auto_factor(row: dict[str, Any]) -> float:
    """What ``class_scale="auto"`` multiplies by, as measured."""
    return row["auto"] / row["measured"]


def worst_derivation(gradients: dict[str, list[dict[str, Any]]]) -> float:
    """The largest relative difference between measured and derived norms."""
    rows = [*gradients["uniform"], *gradients["min_prob"]]
    return max(abs(row["measured"] / row["derived"] - 1) for row in rows)


def min_prob_gradient_table(rows: list[dict[str, Any]]) -> str:
    """NNCE's gradient at uniform logits with "auto", by min_prob as a share of 1/K."""
    classes = list(dict.fromkeys(row["num_classes"] for row in rows))
    relative = {(row["num_classes"], share_of(row)): row["auto"] for row in rows}
    absolute = {(row["num_classes"], row["min_prob"]): row["auto"] for row in rows}
    return table(
        ["min_prob", *(f"K = {K:,}" for K in classes)],
        [
            *(
                [f"{s:g}/K", *(f"{relative[K, s]:.3f}" for K in classes)]
                for s in RELATIVE_MIN_PROBS
            ),
            *([f"{p:g}", *(f"{absolute[K, p]:.3f}" for K in classes)] for p in PAPER_MIN_PROBS),
        ],
    )


def share_of(row: dict[str, Any]) -> float:
    """min_prob times K, rounded as it is written."""
    return float(f"{row['min_prob'] * row['num_classes']:.3g}")


def scale_table(records: list[Record], optimiser: str, noise: float) -> str:
    """Accuracy by loss and K; in parentheses what did not train."""
    mine = optimised_by(having(records, noise=noise), optimiser)
    classes = sorted(values(mine, "num_classes"))
    constant = [having(mine, num_classes=K)[0]["constant"] for K in classes]
    rows = [["*always the same answer*", *map(percent, constant)]]
    for loss in values(mine, "loss"):
        cells = [having(mine, loss=loss, num_classes=K) for K in classes]
        rows.append([loss, *(top1_cell(found[0]) if found else "" for found in cells)])
    return table(["loss", *(f"K = {K:,}" for K in classes)], rows)


def top1_cell(record: Record) -> str:
    """The last accuracy, in parentheses if it is none, with the step of a divergence."""
    found = percent(last(record))
    if record["diverged_at"] is not None:
        return f"(not finite at step {record['diverged_at']})"
    return found if trained(record) else f"({found})"


def start_table(records: list[Record], what: str) -> str:
    """A norm of each loss over K, of the runs with plain SGD."""
    mine = optimised_by(having(records, noise=0.0), PLAIN)
    classes = sorted(values(mine, "num_classes"))
    rows = []
    for loss in values(mine, "loss"):
        cells = [having(mine, loss=loss, num_classes=K) for K in classes]
        rows.append([loss, *(f"{found[0][what]:.2g}" if found else "" for found in cells)])
    return table(["loss", *(f"K = {K:,}" for K in classes)], rows)


def eps_table(records: list[Record]) -> str:
    """Paper weights under AdamW, by its eps."""
    names = [name for name in OPTIMISERS if name.startswith(ADAMW) and "clip" not in name]
    rows = []
    for K in sorted(values(records, "num_classes")):
        runs = having(records, num_classes=K, loss="ANL(5,5)", noise=0.0)
        cells = [optimised_by(runs, name) for name in names]
        if all(cells):
            rows.append([f"{K:,}", *(top1_cell(found[0]) for found in cells)])
    return table(["K", "eps 1e-8", "eps 1e-15"], rows)


def min_prob_table(records: list[Record], num_classes: int) -> str:
    """Accuracy, and labels below the clamp at the end, by min_prob."""
    runs = having(records, num_classes=num_classes)
    columns = [
        (loss, optimiser)
        for optimiser in (ADAMW, CLIPPED)
        for loss in values(runs, "loss")
        if optimised_by(runs, optimiser)
    ]
    rows = []
    for floor in sorted(values(runs, "min_prob"), reverse=True):
        cells = []
        for loss, optimiser in columns:
            found = optimised_by(having(runs, min_prob=floor, loss=loss), optimiser)
            if not found:
                cells.append("")
                continue
            clamped = statistics.mean(r["clamped"]["labels"] for r in found)
            top1 = statistics.mean(map(last, found))
            cells.append(f"{percent(top1)} ({percent(clamped)})")
        rows.append([f"{floor:g}", f"{floor * num_classes:.2g}", *cells])
    heading = [f"{loss}, {optimiser}" for loss, optimiser in columns]
    return table(["min_prob", "times K", *heading], rows)


def choice_table(records: list[Record]) -> str:
    """Last accuracy on the windows for choosing, by learning rate; the chosen one in bold."""
    runs = having(records, held_out="choice")
    rates = sorted(values(runs, "learning_rate"))
    rows = []
    for loss in values(runs, "loss"):
        found = {r["run"]["learning_rate"]: last(r) for r in having(runs, loss=loss)}
        best = max(found.values())
        cells = [
            "" if rate not in found
            else f"**{percent(found[rate])}**" if found[rate] == best
            else percent(found[rate])
            for rate in rates
        ]  # fmt: skip
        rows.append([loss, *cells])
    return table(["loss", *(f"{rate:g}" for rate in rates)], rows)


def recipe_table(found: list[Summary]) -> str:
    """Losses over seeds, best first."""
    return table(
        ["loss", "rate", "seeds", "last", f"less {REFERENCE}, paired", "best", "wrong fitted"],
        [
            [
                s.loss,
                f"{s.rate:g}",
                str(s.seeds),
                f"{s.last:.2f} ± {s.deviation:.2f}" if s.seeds > 1 else f"{s.last:.2f}",
                difference_cell(s),
                f"{s.best:.2f}",
                f"{s.fitted:.1f}",
            ]
            for s in found
        ],
    )


def difference_cell(summary: Summary) -> str:
    """A paired difference with its standard error; in bold if it is no chance."""
    if summary.difference is None:
        return ""
    text = f"{summary.difference:+.2f} ± {summary.error:.2f}"
    return f"**{text}**" if summary.differs else text
