"""README.md of a study, made of its JSON alone."""

from __future__ import annotations

from pathlib import Path

from . import plots, tables
from .findings import LEVEL, findings
from .recipes import MAX_NORM, MOMENTUM, RECIPES
from .records import FILE, Study

TITLES = {
    "digits": "scikit-learn's digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
DIGITS = """\
The digits are no data set of the papers, so their recipe was chosen on two criteria, with a seed
that is not among the study's: the smallest learning rate and number of epochs tried (0.01, 0.05,
0.1; 100, 200) at which CE fits all labels as given at 40% and 80% symmetric noise; and the column
of `ak.presets` (MNIST's or CIFAR-10's) with the higher mean accuracy of the losses on clean labels.
Every loss has the same learning rate. Asymmetric noise flips as on MNIST."""
OTHER_WEIGHTS = """\
These are not the weights of the digits' recipe; they are here to be compared with it. Asymmetric
noise flips as on MNIST."""


def save(study: Study, folder: Path) -> None:
    """README.md and the plot."""
    (folder / "README.md").write_text(render(study), encoding="utf-8")
    plots.save(study, folder / plots.FILE)


def render(study: Study) -> str:
    """The whole document."""
    data = study.arguments["data"]
    parts = [
        f"# Noisy labels on {TITLES[data]}",
        f"Made by `examples/images.py` of [{FILE}]({FILE}), which has every run; with `--render` "
        "it makes this page and the plot anew.",
        recipe(study),
        remark(study),
        "## Test accuracy after the last epoch",
        f"On clean labels, in per cent, {spread(study)}; the highest of each column is bold.",
        *(tables.markdown(study, kind, study.last) for kind in kinds(study)),
        *told(study),
        f"![Accuracy over epochs and over noise rates]({plots.FILE})",
        "## Test accuracy after the best epoch",
        "The best epoch of each run is known from clean test labels alone: a bound on what early "
        "stopping can reach, not a method.",
        *(tables.markdown(study, kind, study.best) for kind in kinds(study)),
        "## Wrong labels that the network has learnt",
        "Share of the wrong training labels that the network gives in the end, in per cent.",
        *(tables.markdown(study, kind, study.fitted_wrong, bold=False) for kind in kinds(study)),
        provenance(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def told(study: Study) -> list[str]:
    """What the figures say of the losses against cross entropy."""
    sentences = findings(study)
    if not sentences:
        return []
    explained = (
        f"*Above* and *below* are by more than {LEVEL:g} standard deviations of the difference "
        f"between two runs, *level* is the rest; one test image is {100 / study.sizes['test']:.2f} "
        "points."
    )
    return ["\n".join(f"- {sentence}" for sentence in sentences), explained]


def kinds(study: Study) -> list[str]:
    """The kinds of noise that have runs."""
    return [kind for kind in tables.KINDS if study.settings(kind)]


def spread(study: Study) -> str:
    """What the figures are means of."""
    seeds = sorted({run.seed for run in study.runs})
    if len(seeds) == 1:
        return f"of one run (seed {seeds[0]})"
    listed = ", ".join(map(str, seeds))
    return f"mean ± standard deviation (n - 1) over the seeds {listed}"


def recipe(study: Study) -> str:
    """How the networks were trained."""
    given, sizes = study.arguments, study.sizes
    return (
        f"{sizes['train']:,} training images with noisy labels, {sizes['test']:,} test images, "
        f"{sizes['num_classes']} classes; a seed draws noise, initial weights and batches. "
        f"{given['epochs']} epochs of SGD with momentum {MOMENTUM:g}, learning rate "
        f"{given['learning_rate']:g} on a cosine to 0, batches of {given['batch']}, norm of the "
        f"gradient clipped at {MAX_NORM:g}; {given['parameters']:,} parameters. Weights of the "
        f"losses, weight decay and L1 factors: those of `ak.presets` for {given['weights']}."
    )


def remark(study: Study) -> str:
    """Where a recipe that no paper has comes from."""
    if study.arguments["data"] != "digits":
        return ""
    usual = study.arguments["weights"] == RECIPES["digits"].weights
    return DIGITS if usual else OTHER_WEIGHTS


def provenance(study: Study) -> str:
    """Versions, machine and commits."""
    versions = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    commits = ", ".join(sorted({run.commit for run in study.runs}))
    seconds = sum(run.seconds for run in study.runs)
    machine = ", ".join(f"{name} {value}" for name, value in study.machine.items())
    return (
        f"{len(study.runs)} runs, {seconds / 60:.0f} minutes in all. Versions: {versions}. "
        f"Machine: {machine}. Commit {commits}."
    )
