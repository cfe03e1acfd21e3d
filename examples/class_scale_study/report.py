"""README.md of the results and the plots, made from the JSON files and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import tables
from .balance_report import balance_section, searches
from .corpus import SOURCES
from .plans import ADAMW, ADAMW_CLIPPED, CLIPPED, PLAIN, STUDIES
from .plots import rates_plot, recipe_plot, scale_plot
from .selection import REFERENCE, Summary, having, summaries, values

Study = dict[str, Any]

INTRODUCTION = """\
# Very many classes: what trains, and which loss is best

Made by `python examples/class_scale.py --out examples/results/class_scale` (with `--render` this
page and the plots alone) from the JSON files beside it, which have every run: arguments, seed,
curve, norms of gradients, seconds, and the versions and the commit it ran with.
[docs/many_classes.md](../../../docs/many_classes.md) says what to make of it.

The task is next-token prediction over Python files: from the last 4 tokens one of K classes, the
K - 1 most frequent tokens and one for all others (which is never the label). The network is small:
embeddings of 64, hidden layers of 256 and 128, the head fused into the loss. Files are split: 80 %
train, 10 % for choosing, 10 % for results. Accuracy is top-1 in per cent, on clean labels of the
last part. Runs are short: the tables say which loss *trains*, and compare losses with each other;
they do not measure what more steps would reach.
"""

SCALE_NOTE = """\
300 steps of 256 windows (150 steps at K = 50,000), cosine schedule to zero, one seed. SGD has
momentum 0.9 and rate 0.1, AdamW rate 0.0015 and weight decay 0.01. Columns are different tasks:
compare within them. In parentheses: no better, by three standard errors, than one constant answer.
NCE+MAE has the weights of the papers' largest K (WebVision, 50 classes) without "auto", and those
of CIFAR-10 with it, since "auto" is 1 at ten classes. "K^0.7 GCE" is GCE with the weight that makes
its gradient at uniform logits as large as cross entropy's, as K log K is NCE's; "K/6 NCE + GCE" is
`K / 6 * ak.NCE() + ak.GCE(q=0.7)`.
"""

MIN_PROB_NOTE = """\
NNCE alone and ANL(5,5), both with `class_scale="auto"`, 40 % symmetric noise, optimisers as above.
Top-1, and in parentheses the share of held-out *labels* whose probability ends below min_prob: in
training NNCE gives such a label no gradient.
"""

RECIPE_NOTE = """\
Adam, cosine schedule to zero, windows of the standard library, 8000 of them held out. A seed fixes
the split by file, the windows, the noise, the first weights and the batches, for all losses alike,
so differences are paired. "±" of accuracies is the standard deviation over seeds, of differences
the standard error of their mean; bold ones are beyond the 95 % interval of Student's t. "Best" is
the highest point of each curve, which takes clean labels to find; "wrong fitted" the share of wrong
training labels that the network reproduces at the end.
"""

CHOICE_NOTE = """\
Each loss ran once with each rate at K = 3000, 40 % noise, 800 steps, with a seed that is none of
those above, and was measured on the windows for choosing. The rate of the highest last accuracy, in
bold, was taken for the seeds of 800 steps at K = 3000. GCE(0.7), whose two best differ by little,
ran with both, and differences are to the better one. All other settings have rate 0.0015.
"""


def write(directory: Path) -> None:
    """Make README.md and the plots of the studies that are there."""
    studies = load(directory)
    if "balance" in studies:
        rates_plot(directory / "balance.png", searches(studies["balance"]))
    if "scale" in studies:
        scale_plot(directory / "scale.png", studies["scale"]["runs"])
    panels = recipe_panels(studies["recipe"]) if "recipe" in studies else {}
    over_seeds = {title: found for title, found in panels.items() if found[0].seeds > 1}
    if panels:
        recipe_plot(directory / "recipe.png", over_seeds or panels)
    (directory / "README.md").write_text(page(studies), encoding="utf-8")


def load(directory: Path) -> dict[str, Study]:
    """The studies by name."""
    return {
        name: json.loads(path.read_text("utf-8"))
        for name in sorted(STUDIES)
        if (path := directory / f"{name}.json").is_file()
    }


def page(studies: dict[str, Study]) -> str:
    """README.md."""
    sections = {
        "balance": balance_section,
        "scale": scale_section,
        "min_prob": min_prob_section,
        "recipe": recipe_section,
    }
    found = [section(studies[name]) for name, section in sections.items() if name in studies]
    return "\n".join([INTRODUCTION, *found, provenance(studies)])


def scale_section(study: Study) -> str:
    """Gradients of single rows, and training over K."""
    runs, gradients = study["runs"], study["gradients"]
    uniform, floors = gradients["uniform"], gradients["min_prob"]
    parts = [
        "## Gradients of a row\n",
        "Norm at uniform logits, in float64. Measured and derived (docs/math.md) differ by at most "
        f"{tables.worst_derivation(gradients):.0e} of their size. The last column is NNCE's "
        'largest with "auto": where the other classes, all alike, are about to fall below '
        "min_prob, 1e-7.\n",
        tables.uniform_table(uniform),
        '\nNNCE at uniform logits with "auto", by min_prob:\n',
        tables.min_prob_gradient_table(floors),
        "\n## What trains\n",
        SCALE_NOTE,
        "![Top-1 over K](scale.png)\n",
    ]
    for noise, optimisers in (
        (0.0, (PLAIN, CLIPPED, ADAMW, ADAMW_CLIPPED)),
        (0.4, (CLIPPED, ADAMW)),
    ):
        for optimiser in optimisers:
            labels = "clean labels" if noise == 0 else f"{noise:.0%} symmetric noise"
            parts.append(f"**{optimiser}**, {labels}:\n")
            parts.append(tables.scale_table(runs, optimiser, noise) + "\n")
    parts += [
        "ANL(5,5) with the papers' weights under AdamW, by Adam's eps:\n",
        tables.eps_table(runs),
        "\nNorm of the logits' gradient of a row at the start (mean of the first batch):\n",
        tables.start_table(runs, "start_logits_gradient"),
        "\nNorm of the parameters' gradient at the start:\n",
        tables.start_table(runs, "start_gradient"),
        "\nThe largest norm of the parameters' gradient in a run with SGD, without clipping:\n",
        tables.start_table(runs, "largest_gradient"),
    ]
    return "\n".join(parts) + "\n"


def min_prob_section(study: Study) -> str:
    """Accuracy by NNCE's clamp."""
    parts = ["## min_prob\n", MIN_PROB_NOTE]
    for K in sorted(values(study["runs"], "num_classes")):
        runs = having(study["runs"], num_classes=K)
        steps, seeds = runs[0]["run"]["steps"], len(values(runs, "seed"))
        parts.append(f"K = {K:,}, {steps} steps, {seeds} seed{'s' * (seeds > 1)}:\n")
        parts.append(tables.min_prob_table(runs, K) + "\n")
    return "\n".join(parts)


def recipe_panels(study: Study) -> dict[str, list[Summary]]:
    """Summaries of each setting, by its title."""
    runs = having(study["runs"], held_out="test")
    asked = ("num_classes", "noise", "steps", "batch", "train_windows")
    settings = dict.fromkeys(tuple(record["run"][name] for name in asked) for record in runs)
    return {
        f"K = {K:,}, {noise:.0%} symmetric noise, {steps} steps of {batch}, "
        f"{windows:,} windows": summaries(
            having(runs, **dict(zip(asked, (K, noise, steps, batch, windows), strict=True)))
        )
        for K, noise, steps, batch, windows in settings
    }


def recipe_section(study: Study) -> str:
    """The choice of rates and the results over seeds."""
    parts = ["## Recipes\n", RECIPE_NOTE, "![Top-1 of each loss](recipe.png)\n"]
    for title, found in recipe_panels(study).items():
        parts += [f"### {title}\n", tables.recipe_table(found), f"\n{verdict(found)}\n"]
    chosen = having(study["runs"], held_out="choice")
    if chosen:
        parts += ["### The learning rates\n", CHOICE_NOTE, tables.choice_table(chosen) + "\n"]
    return "\n".join(parts)


def verdict(found: list[Summary]) -> str:
    """Which losses end above and below the reference beyond what chance explains."""
    groups = {
        "above": [s.loss for s in found if s.differs and (s.difference or 0) > 0],
        "below": [s.loss for s in found if s.differs and (s.difference or 0) < 0],
    }
    said = [f"{where} it: {', '.join(names) or 'none'}" for where, names in groups.items()]
    rest = [s.loss for s in found if s.difference is not None and not s.differs]
    if max(s.seeds for s in found) == 1:
        return f"Highest: {found[0].loss}, by one seed."
    return (
        f"Highest: {found[0].loss}. Against {REFERENCE}, beyond the 95 % interval, "
        f"{'; '.join(said)}; not to be told apart: {', '.join(rest) or 'none'}."
    )


def provenance(studies: dict[str, Study]) -> str:
    """Sources, machines, versions, commits and time."""
    lines = ["## Where it ran\n"]
    for name, study in studies.items():
        seconds = sum(run["seconds"] for run in study["runs"])
        lines.append(f"- {name}: {len(study['runs'])} runs, {seconds / 60:.0f} minutes.")
    environments = [e for study in studies.values() for e in study["environments"]]
    lines += [f"- {line}" for line in dict.fromkeys(map(environment_line, environments))]
    sources = {k: v for study in studies.values() for k, v in study["sources"].items()}
    lines += [f"- {source_line(*item)}" for item in sources.items()]
    return "\n".join(lines) + "\n"


def environment_line(environment: dict[str, Any]) -> str:
    """Machine, versions and commit."""
    machine, versions = environment["machine"], environment["versions"]
    return (
        f"{machine['system']} {machine['architecture']}, {machine['torch_threads']} thread, "
        f"backend {machine['library_backend']}, torch {versions['torch']}, Python "
        f"{versions['python']}, commit {environment['commit']}."
    )


def source_line(name: str, source: dict[str, int]) -> str:
    """What was read."""
    packages = "".join(f", {package}" for package in SOURCES[name])
    return (
        f'Source "{name}": the standard library{packages}, without tests: {source["files"]:,} '
        f"files, {source['tokens']:,} tokens, {source['distinct']:,} of them distinct."
    )
