"""Which runs the study of balanced losses makes: rates on other files first, then seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from typing import Any

from .train import Run

Records = Iterable[dict[str, Any]]
Plan = Callable[[Records], list[Run]]

RATES = {"adamw": (1.5e-3, 5e-4, 4.5e-3), "sgd": (0.1, 0.3, 0.03)}
STEP = 3.0
"""Of rates: to the next one where the best is the lowest or the highest that was tried."""
CLIP = 5.0
CHOICE_SEED, SEEDS, FIRST_SEEDS = 100, range(5), 3

ADAMW = (
    "GCE(0.7)",
    "ANL(1,1) batch",
    "RelativeGCE(0.7)",
    "CE",
    "GCE(0.5)",
    "RelativeGCE(0.5)",
    "ANL(1,2) row",
    "ANL(1,2) batch",
    "ANL(1,1) running",
    "ANL(1,1) row",
    "ANL(2,1) batch",
    "GCE(0.3)",
    "ANL(5,5) auto",
    "NCE+MAE(1,1)",
)
SGD = (
    "CE",
    "ANL(1,1) batch",
    "RelativeGCE(0.7)",
    "ANL(1,1) running",
    "ANL(1,1) row",
    "RelativeGCE(0.5)",
    "GCE(0.5)",
    "GCE(0.7)",
)
LARGER = ("GCE(0.7)", "ANL(1,1) batch", "RelativeGCE(0.7)", "GCE(0.5)", "RelativeGCE(0.5)")
SEEDED = (
    "GCE(0.5)",
    "ANL(1,1) batch",
    "RelativeGCE(0.5)",
    "RelativeGCE(0.7)",
    "ANL(1,1) running",
)
FEWER_SEEDED = ("GCE(0.7)", "CE")
"""Behind the others on the first seeds, and not carried on."""
LARGER_SGD = ("CE", "ANL(1,1) batch", "RelativeGCE(0.7)")
UNCLIPPED = ("ANL(1,1) batch", "GCE(0.5)", "RelativeGCE(0.5)", "GCE(0.7)", "CE")
LARGER_UNCLIPPED = ("ANL(1,1) batch", "GCE(0.5)", "RelativeGCE(0.5)")
PLAIN = (
    "CE",
    "GCE(0.3)",
    "GCE(0.5)",
    "GCE(0.7)",
    "RelativeGCE(0.5)",
    "RelativeGCE(0.7)",
    "ANL(5,5)",
    "ANL(1,1) row",
    "ANL(1,1) batch",
)
ALONE = ("NCE row", "NCE batch", "NNCE row", "NNCE batch")

Losses = Iterable[str]


def setting(num_classes: int, optimiser: str) -> Run:
    """A run, but for its loss, its rate and its seed.

    25.6 epochs of 10,000 windows, enough that cross entropy learns wrong labels by heart; at
    K = 10,000, where a step takes three times as long, 15.4.
    """
    return Run(
        source="stdlib",
        num_classes=num_classes,
        loss="",
        optimiser=optimiser,
        learning_rate=0.0,
        steps=1000 if num_classes < 10_000 else 600,
        batch=256,
        train_windows=10_000,
        held_out_windows=8000,
        noise=0.4 if num_classes < 10_000 else 0.6,
        clip=CLIP,
        evaluations=10,
        network="normalised",
    )


def searched(run: Run, losses: Losses) -> list[Run]:
    """Each loss with each rate, on other files and another seed than the results."""
    run = replace(run, seed=CHOICE_SEED, held_out="choice")
    rates = RATES[run.optimiser]
    return [replace(run, loss=loss, learning_rate=rate) for loss, rate in product(losses, rates)]


def edges(run: Run, losses: Losses, records: Records) -> list[Run]:
    """One rate more for each loss whose best is the lowest or the highest of the search."""
    tried = RATES[run.optimiser]
    best = chosen_rates((r for r in records if r["run"]["learning_rate"] in tried), run)
    further = {min(tried): min(tried) / STEP, max(tried): max(tried) * STEP}
    run = replace(run, seed=CHOICE_SEED, held_out="choice")
    return [
        replace(run, loss=loss, learning_rate=float(f"{further[best[loss]]:.3g}"))
        for loss in losses
        if best.get(loss) in further
    ]


def seeded(
    run: Run, losses: Losses, records: Records, seeds: Iterable[int], searched_as: Run | None = None
) -> list[Run]:
    """Each loss over seeds at the rate that was best in a search; of a loss without one, none."""
    rates = chosen_rates(records, searched_as or run)
    return [
        replace(run, loss=loss, learning_rate=rates[loss], seed=seed)
        for seed, loss in product(seeds, losses)
        if loss in rates
    ]


def chosen_rates(records: Records, run: Run) -> dict[str, float]:
    """For each loss the rate that ended highest on the windows for choosing."""
    return {loss: rates[0] for loss, rates in ranked_rates(records, run).items()}


def ranked_rates(records: Records, run: Run) -> dict[str, list[float]]:
    """For each loss the rates of its search, the one that ended highest first."""
    asked = (
        "network", "num_classes", "noise", "noise_kind", "optimiser", "clip", "train_windows",
        "min_prob", "warm_steps",
    )  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        theirs = record["run"]
        alike = all(theirs[name] == getattr(run, name) for name in asked)
        if alike and theirs["held_out"] == "choice" and record["top1"]:
            pair = record["top1"][-1], theirs["learning_rate"]
            found.setdefault(theirs["loss"], []).append(pair)
    return {
        loss: [rate for _, rate in sorted(pairs, reverse=True)] for loss, pairs in found.items()
    }


def adamw_rates(records: Records = ()) -> list[Run]:
    return searched(setting(3000, "adamw"), ADAMW)


def adamw_edges(records: Records = ()) -> list[Run]:
    return edges(setting(3000, "adamw"), ADAMW, records)


def ideas(records: Records = ()) -> list[Run]:
    """What else might make it learn faster at the start."""
    balanced, both = "ANL(1,1) batch", "RelativeGCE(0.5)+ANL(1,1) batch"
    changes: list[dict[str, Any]] = [
        {"loss": balanced, "warm_steps": 100},
        {"loss": both},
        {"loss": balanced, "min_prob": 0.1 / 3000},
        {"loss": balanced, "min_prob": 1e-15},
    ]
    run = replace(setting(3000, "adamw"), seed=CHOICE_SEED, held_out="choice")
    rates = (4.5e-3, 1.5e-3)
    return [replace(run, learning_rate=rate, **change) for change, rate in product(changes, rates)]


def adamw_first(records: Records = ()) -> list[Run]:
    losses = (*SEEDED, *FEWER_SEEDED)
    return seeded(setting(3000, "adamw"), losses, records, SEEDS[:FIRST_SEEDS])


def adamw(records: Records = ()) -> list[Run]:
    return seeded(setting(3000, "adamw"), SEEDED, records, SEEDS)


def larger_rates(records: Records = ()) -> list[Run]:
    """At K = 10,000 with the two rates that were best at K = 3000."""
    run = replace(setting(10_000, "adamw"), seed=CHOICE_SEED, held_out="choice")
    return [
        replace(run, loss=loss, learning_rate=rate)
        for loss in LARGER
        for rate in ranked_rates(records, setting(3000, "adamw")).get(loss, [])[:2]
    ]


def larger(records: Records = ()) -> list[Run]:
    return seeded(setting(10_000, "adamw"), LARGER, records, SEEDS)


def sgd_rates(records: Records = ()) -> list[Run]:
    return searched(setting(3000, "sgd"), SGD)


def sgd_edges(records: Records = ()) -> list[Run]:
    return edges(setting(3000, "sgd"), SGD, records)


def sgd(records: Records = ()) -> list[Run]:
    return seeded(setting(3000, "sgd"), SGD, records, SEEDS)


def larger_sgd(records: Records = ()) -> list[Run]:
    """At the rates of K = 3000."""
    run = setting(10_000, "sgd")
    return seeded(run, LARGER_SGD, records, SEEDS, searched_as=setting(3000, "sgd"))


def unclipped_setting() -> Run:
    return replace(setting(3000, "adamw"), clip=None)


def unclipped_rates(records: Records = ()) -> list[Run]:
    return searched(unclipped_setting(), UNCLIPPED)


def unclipped_edges(records: Records = ()) -> list[Run]:
    return edges(unclipped_setting(), UNCLIPPED, records)


def unclipped(records: Records = ()) -> list[Run]:
    return seeded(unclipped_setting(), UNCLIPPED, records, SEEDS)


def larger_unclipped(records: Records = ()) -> list[Run]:
    """By one seed, at the rates of K = 3000."""
    run = replace(setting(10_000, "adamw"), clip=None)
    return seeded(run, LARGER_UNCLIPPED, records, SEEDS[:1], searched_as=unclipped_setting())


def papers(records: Records = ()) -> list[Run]:
    """ANL with the papers' weights, at one rate."""
    run = replace(setting(3000, "adamw"), seed=CHOICE_SEED, held_out="choice")
    return [replace(run, loss="ANL(5,5)", learning_rate=RATES["adamw"][0])]


def plain(records: Records = ()) -> list[Run]:
    """Without normalisation, at one rate."""
    run = replace(setting(3000, "adamw"), seed=CHOICE_SEED, held_out="choice", network="plain")
    return [replace(run, loss=loss, learning_rate=RATES["adamw"][0]) for loss in PLAIN]


def alone(records: Records = ()) -> list[Run]:
    """The two halves of ANL, by one seed."""
    run = replace(setting(3000, "adamw"), learning_rate=RATES["adamw"][0])
    return [replace(run, loss=loss) for loss in ALONE]


def like(**change: Any) -> Plan:
    """By one seed, runs of a setting that differs from the one whose rates were searched."""

    def plan(records: Records = ()) -> list[Run]:
        run = setting(3000, "adamw")
        losses = (*SEEDED, *FEWER_SEEDED)
        return seeded(replace(run, **change), losses, records, SEEDS[:1], searched_as=run)

    return plan


PARTS: dict[str, Plan] = {
    "adamw_rates": adamw_rates,
    "adamw_edges": adamw_edges,
    "ideas": ideas,
    "papers": papers,
    "plain": plain,
    "larger_rates": larger_rates,
    "adamw_first": adamw_first,
    "sgd_rates": sgd_rates,
    "sgd_edges": sgd_edges,
    "larger": larger,
    "sgd": sgd,
    "larger_sgd": larger_sgd,
    "adamw": adamw,
    "alone": alone,
    "pair": like(noise_kind="pair"),
    "clean": like(noise=0.0),
    "unclipped_rates": unclipped_rates,
    "unclipped_edges": unclipped_edges,
    "unclipped": unclipped,
    "larger_unclipped": larger_unclipped,
}
"""The parts, in order."""
