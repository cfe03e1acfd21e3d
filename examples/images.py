"""Image classification with noisy labels: the papers' losses, recipes and tables.

Trains a network for each loss, noise rate and seed on labels changed by ``ak.noise``, and follows
its accuracy on clean test labels. Runs on scikit-learn's digits offline; on MNIST, CIFAR-10 and
CIFAR-100 from a local folder in torchvision's layout. Leaves ``images.json``, ``images.png`` and a
``README.md`` with the tables in ``--out``, after each run, so that it can be stopped and goes on
where it was; ``--render`` makes page and plot anew of the JSON alone.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from common import Distinct, check_device, check_record, commit, machine, positive, share, versions
from image_study import records, report, tables
from image_study.data import Images, load
from image_study.methods import METHODS, make
from image_study.recipes import BATCH, RECIPES, WEIGHT_DECAY
from image_study.records import Run, Setting, Study
from image_study.train import noisy_labels, train
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

QUICK = {
    "methods": ["CE", "GCE", "ANL-CE"],
    "symmetric": [0.0, 0.6],
    "asymmetric": [0.4],
    "seeds": [0],
    "epochs": 4,
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; ``--quick`` changes defaults only, so explicit options still hold."""
    parser = argparse.ArgumentParser(
        description="Compare losses on images with noisy labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", choices=RECIPES, default="digits", help="the data set")
    add("--root", type=Path, default=Path("data"), help="folder of MNIST/, cifar-10-batches-py/ ..")
    names = {"choices": METHODS, "nargs": "+", "action": Distinct}
    add("--methods", **names, default=list(METHODS), help="the losses")
    rates = {"type": share, "nargs": "*", "action": Distinct}
    add("--symmetric", **rates, default=[0.0, 0.2, 0.4, 0.6, 0.8], help="rates of symmetric noise")
    add("--asymmetric", **rates, default=[0.1, 0.2, 0.3, 0.4], help="rates of asymmetric noise")
    add("--pair", **rates, default=[], help="rates of pair noise")
    add("--instance", **rates, default=[], help="rates of instance-dependent noise")
    seeds = {"type": int, "nargs": "+", "action": Distinct}
    add("--seeds", **seeds, default=[0, 1, 2], help="of noise, weights and batches")
    add("--epochs", type=positive, help="default: the data set's")
    add("--learning-rate", type=float, help="default: the data set's")
    add("--batch", type=positive, default=BATCH, help="images per step")
    add("--weights", choices=WEIGHT_DECAY, help="column of ak.presets; default: the data set's")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--out", type=Path, help="directory of results; default: out/images/DATA")
    add("--render", action="store_true", help="train nothing: page and plot of --out's JSON")
    add("--quick", action="store_true", help="smoke run of some seconds; its figures mean nothing")
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    recipe = RECIPES[args.data]
    for name in ("epochs", "learning_rate", "weights"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(recipe, name))
    if args.out is None:
        args.out = Path("out/images") / args.data
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program where arguments make no study."""
    if args.render:
        check_record(parser, args.out / records.FILE)
    elif not settings(args):
        parser.error("there is no rate of any noise; --symmetric 0 is clean labels")
    if not 0 <= args.learning_rate < float("inf"):
        parser.error(f"argument --learning-rate: must be at least 0, got {args.learning_rate}")
    check_device(parser, args.device)


def settings(args: argparse.Namespace) -> list[Setting]:
    """The noises that were asked for."""
    return [Setting(kind, rate) for kind in tables.KINDS for rate in getattr(args, kind)]


def describe(args: argparse.Namespace, images: Images) -> Study:
    """A study without runs."""
    model = RECIPES[args.data].model(
        images.train.shape[1], images.train.shape[2], images.num_classes
    )
    shared = ("data", "epochs", "learning_rate", "batch", "weights")
    return Study(
        arguments={
            **{name: getattr(args, name) for name in shared},
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        versions=versions("numpy", "scikit-learn"),
        machine=machine(images.train.device),
        sizes={
            "train": len(images.train),
            "test": len(images.test),
            "num_classes": images.num_classes,
        },
    )


def train_all(args: argparse.Namespace, images: Images, study: Study, console: Console) -> None:
    """Every run that the study does not have; all losses of a seed before the next seed."""
    wanted = [
        (name, setting, seed)
        for seed in args.seeds
        for setting in settings(args)
        for name in args.methods
        if not study.has(name, setting, seed)
    ]
    recipe, revision = RECIPES[args.data], commit()
    columns = "{task.description}", BarColumn(), "{task.completed}/{task.total}"
    clocks = TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, *clocks, "{task.fields[state]}", console=console) as bar:
        task = bar.add_task("runs", total=len(wanted), state="")
        for name, setting, seed in wanted:
            label = f"{name}, {tables.heading(setting)}, seed {seed}"

            def on_epoch(correct: int, label: str = label) -> None:
                bar.update(task, state=f"{label}: {100 * correct / len(images.test):.1f} %")

            outcome = train(
                images,
                noisy_labels(images, setting.noise, setting.rate, recipe, seed),
                make(name, args.weights),
                recipe,
                epochs=args.epochs,
                batch=args.batch,
                learning_rate=args.learning_rate,
                seed=seed,
                on_epoch=on_epoch,
            )
            run = Run(name, setting.noise, setting.rate, seed, **asdict(outcome), commit=revision)
            study.runs.append(run)
            study.save(args.out / records.FILE)
            bar.advance(task)


def show(study: Study, folder: Path, console: Console) -> None:
    """Tables on the terminal, page and plot in the folder."""
    for kind in report.kinds(study):
        title = f"Clean test accuracy after the last epoch, {kind} noise (%)"
        console.print(tables.console(study, kind, study.last, title))
    report.save(study, folder)
    console.print(f"Wrote README.md, images.json and images.png in {folder}.", soft_wrap=True)


def run(args: argparse.Namespace, console: Console) -> None:
    """Train what is missing, and report."""
    path = args.out / records.FILE
    if args.render:
        show(records.load(path), args.out, console)
        return
    images = load(args.data, args.root).to(torch.device(args.device))
    study = records.resume(describe(args, images), path)
    train_all(args, images, study, console)
    show(study, args.out, console)


if __name__ == "__main__":
    run(parse_arguments(), Console())
