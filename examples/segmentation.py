"""Segmentation with noisy masks: cross entropy against the losses of this library.

Pictures of shapes are generated; the annotator of the training masks calls some of the shapes by
the name of another class, and outlines are void (``ignore_index=255``). Everything is
channels_last: the losses read (N, K, H, W) logits where they lie. Writes a record (JSON), a page
with a table made of it, and plots to ``--out``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Distinct,
    at_least,
    check_record,
    commit,
    machine,
    positive,
    share,
    versions,
    write_json,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from rich.table import Table
from segmentation_demo import report
from segmentation_demo.data import Shapes, draw
from segmentation_demo.train import losses, train

RECORD = "segmentation.json"
QUICK = {"train_images": 20, "test_images": 10, "size": 16, "epochs": 2, "seeds": [0]}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; ``--quick`` changes defaults only, so explicit options still hold."""
    parser = argparse.ArgumentParser(
        description="Compare losses on segmentation with noisy masks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--train-images", type=positive, default=1000, help="pictures with noisy masks")
    add("--test-images", type=positive, default=200, help="pictures with clean masks")
    add(
        "--size",
        type=at_least(8, multiple_of=4),
        default=32,
        help="pixels of a side, a multiple of 4 from 8 on",
    )
    add("--noise", type=share, default=0.4, help="share of the shapes that are labelled wrongly")
    add("--epochs", type=positive, default=24, help="passes over the training pictures")
    add("--batch", type=positive, default=20, help="pictures a step")
    add("--learning-rate", type=float, default=3e-3, help="of Adam; cosine schedule to zero")
    seeds = {"type": at_least(0), "nargs": "+", "action": Distinct}
    add("--seeds", **seeds, default=[0, 1, 2], help="of pictures, noise and weights")
    names = {"choices": list(losses()), "nargs": "+", "action": Distinct}
    add("--losses", **names, default=list(losses()), help="to compare")
    add("--out", type=Path, default=Path("out/segmentation"), help="directory of the results")
    add("--quick", action="store_true", help="smoke run of seconds; its figures mean nothing")
    add("--render", action="store_true", help="make page and curves of --out's record, train none")
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    if args.render:
        check_record(parser, args.out / RECORD)
    return args


def data_of(args: argparse.Namespace, seed: int) -> tuple[Shapes, Shapes]:
    """Training pictures with noisy masks, and others with clean ones."""
    generator = np.random.default_rng(seed)
    noisy = draw(args.train_images, args.size, args.noise, generator)
    return noisy, draw(args.test_images, args.size, 0.0, generator)


def train_all(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Every loss with every seed."""
    runs = []
    columns = "{task.description}", BarColumn(), "{task.completed}/{task.total}"
    with Progress(*columns, TimeElapsedColumn(), "{task.fields[state]}", console=console) as bar:
        for name in args.losses:
            task = bar.add_task(name, total=args.epochs * len(args.seeds), state="")
            for seed in args.seeds:

                def on_epoch(iou: float, task: Any = task) -> None:
                    bar.update(task, advance=1, state=f"mean IoU {100 * iou:.1f} %")

                result = train(
                    name,
                    *data_of(args, seed),
                    epochs=args.epochs,
                    batch=args.batch,
                    learning_rate=args.learning_rate,
                    seed=seed,
                    on_epoch=on_epoch,
                )
                runs.append(asdict(result))
    return runs


def render(record: dict[str, Any], out: Path) -> None:
    """The page and the plot of the record."""
    (out / "README.md").write_text(report.markdown(record), encoding="utf-8")
    report.save_curves(record, out / "curves.png")


def run(args: argparse.Namespace, console: Console) -> None:
    """Train, or only render."""
    path = args.out / RECORD
    if not args.render:
        arguments = {k: v for k, v in vars(args).items() if k not in ("out", "render", "quick")}
        runs = train_all(args, console)
        about = {"commit": commit(), "versions": versions("numpy"), "machine": machine()}
        write_json(path, {"arguments": arguments, **about, "runs": runs})
        report.save_pictures(data_of(args, args.seeds[0])[0], args.out / "pictures.png")
    record = json.loads(path.read_text(encoding="utf-8"))
    render(record, args.out)
    heading, *body = report.rows(record)
    table = Table(*heading, title="On clean masks of held-out pictures (%)")
    for cells in body:
        table.add_row(*cells)
    console.print(table)
    console.print(f"Wrote {path}, README.md and plots beside it.", soft_wrap=True)


if __name__ == "__main__":
    run(parse_arguments(), Console())
