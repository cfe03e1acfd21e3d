"""Which runs each study makes, the ones that matter most first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from typing import Any

from . import balance
from .train import Run

Records = Iterable[dict[str, Any]]
Plan = Callable[[Records], list[Run]]

OPTIMISERS: dict[str, dict[str, Any]] = {
    "SGD": {"optimiser": "sgd", "learning_rate": 0.1},
    "SGD, clipped at 1": {"optimiser": "sgd", "learning_rate": 0.1, "clip": 1.0},
    "AdamW": {"optimiser": "adamw", "learning_rate": 1.5e-3},
    "AdamW, clipped at 1": {"optimiser": "adamw", "learning_rate": 1.5e-3, "clip": 1.0},
    "AdamW, eps 1e-15": {"optimiser": "adamw", "learning_rate": 1.5e-3, "eps": 1e-15},
}
PLAIN, CLIPPED, ADAMW, ADAMW_CLIPPED, ADAMW_EPS = OPTIMISERS

SCALE_LOSSES = (
    "CE",
    "GCE(0.7)",
    "K^0.7 GCE(0.7)",
    "ANL(5,5)",
    "ANL(5,5) auto",
    "NCE+MAE(50,1)",
    "NCE+MAE(1,1) auto",
    "K log K NCE + MAE",
    "K/6 NCE + GCE",
)
FEWER_LOSSES = ("CE", "ANL(5,5)", "ANL(5,5) auto", "GCE(0.7)", "K/6 NCE + GCE")
LARGE_WEIGHTS = ("K log K NCE + MAE", "K^0.7 GCE(0.7)")
"""Weights that make the gradient at uniform logits as large as cross entropy's."""
SCALE_CLASSES = (10, 100, 1000)
FEWER_RUNS = {
    10_000: {
        PLAIN: ("CE", "ANL(5,5)", "ANL(5,5) auto", "GCE(0.7)", "NCE+MAE(1,1) auto", *LARGE_WEIGHTS),
        ADAMW: ("CE", "ANL(5,5)", "ANL(5,5) auto", "GCE(0.7)", "K/6 NCE + GCE"),
        CLIPPED: ("CE", "ANL(5,5) auto", *LARGE_WEIGHTS),
        ADAMW_EPS: ("ANL(5,5)",),
    },
    50_000: {
        PLAIN: ("K log K NCE + MAE", "CE", "ANL(5,5)"),
        ADAMW: ("CE", "ANL(5,5)", "ANL(5,5) auto"),
        ADAMW_EPS: ("ANL(5,5)",),
    },
}
"""Where a run takes long, what tells losses and optimisers apart."""

MIN_PROBS = {
    1000: (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-15),
    10_000: (1e-5, 1e-7, 1e-15),
}
MIN_PROB_LOSSES = ("NNCE auto", "ANL(5,5) auto")

RECIPES = (
    "CE",
    "GCE(0.3)",
    "GCE(0.5)",
    "GCE(0.7)",
    "K/15 NCE + GCE",
    "K/6 NCE + GCE",
    "K/3 NCE + GCE",
    "NCE+MAE(1,1) auto",
    "0.1 CE + MAE",
)
FAR_BEHIND = ("ANL(5,5) auto", "NNCE auto", "NCE+AGCE(1,4) auto", "DFT")
"""While rates were chosen: they get no seeds."""
LARGER_RECIPES = ("GCE(0.7)", "K/15 NCE + GCE", "CE", "GCE(0.5)")
RATES = (5e-4, 1.5e-3, 4.5e-3)
CHOICE_SEED, SEEDS, LARGER_SEEDS = 100, range(5), range(3)
LONGER_LOSSES = ("ANL(5,5) auto", "GCE(0.7)")


def scale(records: Records = ()) -> list[Run]:
    """Losses over K, each with the optimisers."""
    clean = product(SCALE_CLASSES, SCALE_LOSSES, list(OPTIMISERS)[:4])
    noisy = product(FEWER_LOSSES, (CLIPPED, ADAMW))
    return [
        *(scale_run(K, loss, optimiser) for K, loss, optimiser in clean),
        *(replace(scale_run(1000, loss, optimiser), noise=0.4) for loss, optimiser in noisy),
        *fewer_runs(10_000),
    ]


def most_classes(records: Records = ()) -> list[Run]:
    """The study of scale at its largest K, with half the steps."""
    return [replace(run, steps=150) for run in fewer_runs(50_000)]


def fewer_runs(num_classes: int) -> list[Run]:
    """The runs of ``FEWER_RUNS``."""
    chosen = FEWER_RUNS[num_classes].items()
    return [scale_run(num_classes, loss, name) for name, losses in chosen for loss in losses]


def scale_run(num_classes: int, loss: str, optimiser: str) -> Run:
    """One run of the study of scale."""
    return Run(
        source="wide",
        num_classes=num_classes,
        loss=loss,
        **OPTIMISERS[optimiser],
        steps=300,
        batch=256,
        train_windows=40_000,
        held_out_windows=4000,
    )


def min_prob(records: Records = ()) -> list[Run]:
    """NNCE's clamp over orders of magnitude, and at next to nothing."""
    small = product(MIN_PROBS[1000], MIN_PROB_LOSSES, (ADAMW, CLIPPED))
    large = product(MIN_PROBS[10_000], ("ANL(5,5) auto",))
    return [
        *(min_prob_run(1000, loss, name, floor, steps=600) for floor, loss, name in small),
        *(min_prob_run(10_000, loss, ADAMW, floor, steps=300) for floor, loss in large),
    ]


def min_prob_run(num_classes: int, loss: str, optimiser: str, floor: float, steps: int) -> Run:
    """One run of the study of min_prob."""
    run = scale_run(num_classes, loss, optimiser)
    return replace(run, min_prob=floor, steps=steps, noise=0.4)


def recipe_run(num_classes: int, noise: float) -> Run:
    """A run of the search for a recipe, but for its loss, its learning rate and its seed."""
    return Run(
        source="stdlib",
        num_classes=num_classes,
        loss="",
        optimiser="adam",
        learning_rate=0.0,
        steps=800,
        batch=256,
        train_windows=16_000,
        held_out_windows=8000,
        noise=noise,
        evaluations=10,
    )


def choice(records: Records = ()) -> list[Run]:
    """Each loss with each learning rate, on other files and another seed than the results."""
    run = replace(recipe_run(3000, 0.4), seed=CHOICE_SEED, held_out="choice")
    return [
        replace(run, loss=loss, learning_rate=rate)
        for loss, rate in product((*RECIPES, *FAR_BEHIND), RATES)
    ]


def chosen_rates(records: Records) -> dict[str, float]:
    """For each loss the rate with the highest last accuracy on the windows for choosing."""
    best: dict[str, tuple[float, float]] = {}
    for record in records:
        run = record["run"]
        if run["held_out"] == "choice" and record["top1"]:
            found = (record["top1"][-1], run["learning_rate"])
            best[run["loss"]] = max(found, best.get(run["loss"], found))
    return {loss: rate for loss, (_, rate) in best.items()}


def recipe(records: Records = ()) -> list[Run]:
    """Every loss at its rate, over seeds: a seed has the same data and weights for all losses."""
    rates = chosen_rates(records)
    run = recipe_run(3000, 0.4)
    chosen = [
        replace(run, loss=loss, learning_rate=rates[loss], seed=seed)
        for seed, loss in product(SEEDS, RECIPES)
        if loss in rates
    ]
    # The reference at the other losses' rate too, since its own was chosen by a small difference.
    return [*chosen, *(replace(at_common_rate(run, "GCE(0.7)"), seed=seed) for seed in SEEDS)]


def longer(records: Records = ()) -> list[Run]:
    """Some of them with three and a half times the samples, over more windows."""
    run = replace(recipe_run(3000, 0.4), steps=1400, batch=512, train_windows=40_000)
    return [at_common_rate(run, loss) for loss in LONGER_LOSSES]


def larger_recipe(records: Records = ()) -> list[Run]:
    """Some of them with more classes and more noise."""
    run = recipe_run(10_000, 0.6)
    found = product(LARGER_SEEDS, LARGER_RECIPES)
    return [replace(at_common_rate(run, loss), seed=seed) for seed, loss in found]


def at_common_rate(run: Run, loss: str) -> Run:
    """A run with the rate that was best for nearly all losses."""
    return replace(run, loss=loss, learning_rate=RATES[1])


STUDIES: dict[str, dict[str, Plan]] = {
    "scale": {"scale": scale, "most_classes": most_classes},
    "min_prob": {"min_prob": min_prob},
    "recipe": {
        "choice": choice,
        "recipe": recipe,
        "longer": longer,
        "larger_recipe": larger_recipe,
    },
    "balance": balance.PARTS,
}
"""Each study, which is one JSON file, with its parts in order."""
