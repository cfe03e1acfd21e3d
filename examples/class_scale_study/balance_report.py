"""The section of README.md on balanced losses."""

from __future__ import annotations

from typing import Any

from .balance_selection import RIVALS, WATCHED, Standing, label, settings, standings
from .balance_tables import late_table, rates_table, standings_table
from .selection import Record, having

NOTE = """\
Losses whose normalised terms are balanced (`class_scale="row"`, `"batch"`, `"running"`: their
gradients times what they are divided by) and relative GCE (cross entropy weighed by
(p_y / max p)^q), against cross entropy and GCE, with epochs enough that cross entropy learns wrong
labels by heart: 10,000 windows of the standard library, 8000 held out, batches of 256, cosine
schedule to zero, AdamW with weight decay 0.01 or SGD with momentum 0.9. The normalised network has
a LayerNorm before each layer; the plain one is that of the studies below. "ANL(1,2) row" is
`ak.NCE() + 2 * ak.NNCE()` with `class_scale="row"`.

Rates were chosen for each loss alike, by one run with each on other files and another seed: three,
a factor of three apart, and one more where the best was the lowest or the highest. At K = 10,000
AdamW tried the best two of K = 3000 again, SGD took the best one, and so did pair flips and clean
labels. Means are of the seeds that a loss has: hold those of unlike numbers against each other by
the paired differences alone. Figures are clean top-1 in per cent, mean over seeds. A seed fixes
split, windows, noise, first weights and batches, so differences are paired: mean and its standard
error, in bold beyond the 95 % interval of Student's t. "The best GCE" is the one, of all q and
rates in the table, that ended highest on these seeds; "CE's best" is the highest point of its
curve, which takes clean labels to find. "Wrong fitted" is the share of wrong training labels that
the network gives in the end. Runs of before the library had them computed relative GCE, and
balance in the plain network, by the sample weights of its other terms: the same gradients, to
rounding.
"""

LATE_NOTE = """\
Norm of a row's gradient in float64: where all logits are equal, and late in training, where the
network gives one class 0.5 to 0.999 and all others alike the rest; with that class as the label,
and with another (a wrong label, if the network is right). "batch" is a batch of these four rows.
"""

RATES_NOTE = """\
In parentheses the share of wrong labels that was fitted.
"""

NAMES = {"adamw": "AdamW", "sgd": "SGD"}


def balance_section(study: dict[str, Any]) -> str:
    """Gradients, results over seeds, and the choice of rates."""
    parts = ["## Balanced losses\n", NOTE]
    for setting, found in panels(study).items():
        parts += [f"### {setting}\n", standings_table(found), f"\n{verdict(found)}\n"]
    chosen = having(study["runs"], held_out="choice")
    if chosen:
        picture = "![Top-1 and wrong labels fitted, by rate](balance.png)\n"
        parts += ["### The learning rates of balanced losses\n", RATES_NOTE, picture]
    for setting in settings(chosen):
        parts += [f"{title(setting)}:\n", rates_table(having(chosen, **setting)) + "\n"]
    parts += ["### Gradients of balanced losses\n", LATE_NOTE, late_table(study["gradients"])]
    return "\n".join(parts) + "\n"


def searches(study: dict[str, Any]) -> dict[str, list[Record]]:
    """The searches of rates that the plot shows: each optimiser at the smallest K."""
    chosen = having(study["runs"], held_out="choice")
    return {
        title(found): [r for r in having(chosen, **found) if label(r) == r["run"]["loss"]]
        for found in settings(chosen)
        if found["num_classes"] < 10_000 and found["network"] == "normalised"
    }


def panels(study: dict[str, Any]) -> dict[str, list[Standing]]:
    """The standings of each setting by its title."""
    runs = having(study["runs"], held_out="test")
    return {title(setting): standings(having(runs, **setting)) for setting in settings(runs)}


def title(setting: dict[str, Any]) -> str:
    """A setting in words."""
    noise, clip = setting["noise"], setting["clip"]
    kind = {"symmetric": "symmetric noise", "pair": "pair flips"}[setting["noise_kind"]]
    epochs = setting["steps"] * setting["batch"] / setting["train_windows"]
    return (
        f"{NAMES[setting['optimiser']]}, K = {setting['num_classes']:,}, "
        f"{f'{noise:.0%} {kind}' if noise else 'clean labels'}, "
        f"{f'clipped at {clip:g}' if clip else 'not clipped'}, {setting['network']} network, "
        f"{setting['steps']} steps of {setting['batch']}, {epochs:.3g} epochs"
    )


def verdict(found: list[Standing]) -> str:
    """Which losses end above the best GCE, and above CE's best step, beyond chance."""
    if max(s.seeds for s in found) == 1:
        return f"Highest: {found[0].loss}, by one seed."
    over_gce = [s.loss for s in found if s.loss not in RIVALS and beyond(s.over_rival)]
    over_ce = [s.loss for s in found if beyond(s.over_watched)]
    return (
        f"Highest: {found[0].loss}. By more than two standard errors above the best GCE: "
        f"{', '.join(over_gce) or 'none'}; above {WATCHED}'s best step: "
        f"{', '.join(over_ce) or 'none'}."
    )


def beyond(difference: Any) -> bool:
    """Above by more than two standard errors."""
    return difference is not None and difference.in_errors > 2
