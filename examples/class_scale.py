"""Which losses train with very many classes: four studies, each with its own JSON file.

``scale``: losses over K = 10 to 50,000 classes with several optimisers. ``min_prob``: NNCE's clamp.
``recipe``: which loss is best at 3000 and 10,000 classes with noisy labels, over seeds.
``balance``: the same of balanced losses, with epochs enough to learn wrong labels by heart.

What a file holds is not run again, so a stopped program goes on where it was, and processes with
``--share 1/2`` and ``--share 2/2`` work side by side. ``README.md`` and the plots are made from the
files, by ``--render`` alone too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from class_scale_study import report
from class_scale_study.gradients import balance_record, gradient_record
from class_scale_study.plans import STUDIES
from class_scale_study.records import Study
from class_scale_study.train import Run, train

PARTS = [part for parts in STUDIES.values() for part in parts]
WAIT = 2.0
"""Seconds between looks at what other processes have done."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train with very many classes: scale, min_prob, recipes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("parts", nargs="*", default=PARTS, help=f"parts of the studies: {', '.join(PARTS)}")
    add(
        "--out",
        type=Path,
        default=Path("out/class_scale"),
        help="directory of JSON files, tables and plots",
    )
    add("--limit", type=float, default=3600.0, help="begin no run after so many seconds")
    add("--share", type=share, default=(0, 1), help="1/2 and 2/2: half of the runs each")
    add("--render", action="store_true", help="only make README.md and the plots anew")
    add("--quick", action="store_true", help="a few seconds; its figures mean nothing")
    arguments = parser.parse_args(argv)
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"parts must be some of {', '.join(PARTS)}, got {part!r}")
    if arguments.render and not report.load(arguments.out):
        parser.error(f"--render makes pages of records, and {arguments.out} has none; see --out")
    return arguments


def share(text: str) -> tuple[int, int]:
    """``2/3`` as the second of three."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"must be like 1/2, the first of two parts, got {text!r}")
    return int(number) - 1, int(of)


def quick(run: Run) -> Run:
    """A run with the same choices and next to no data."""
    sizes = {"steps": 6, "batch": 32, "train_windows": 400, "held_out_windows": 100}
    return replace(run, source="stdlib", num_classes=50, max_files=12, evaluations=2, **sizes)


def studies(arguments: argparse.Namespace) -> Iterator[tuple[Study, list[Run]]]:
    """Each part's study and its runs; a later part may need an earlier one's."""
    for name, parts in STUDIES.items():
        study = Study(arguments.out / f"{name}.json")
        for part, plan in parts.items():
            if part in arguments.parts:
                runs = plan(study.runs)
                if arguments.quick:
                    runs = [quick(run) for run in runs[:: max(1, len(runs) // 3)]]
                yield study, runs


def first_part_left(arguments: argparse.Namespace) -> tuple[Study, list[Run], list[Run]] | None:
    """The first part that lacks runs: its study, those that are this process's share, and all."""
    place, parts = arguments.share
    for study, runs in studies(arguments):
        if lacking := [run for run in runs if not study.has(run)]:
            return study, [run for run in runs[place::parts] if run in lacking], lacking
    return None


def note_gradients(study: Study) -> None:
    """Norms of single rows, for the studies that show them."""
    made = {"scale": gradient_record, "balance": balance_record}.get(study.path.stem)
    if made and "gradients" not in study.record:
        with study.alone():
            study.record["gradients"] = made()
            study.write()


def run_all(arguments: argparse.Namespace) -> None:
    """Run what is missing, one line each; a part begins when all have done with the one before."""
    began = time.perf_counter()
    while left := first_part_left(arguments):
        study, mine, lacking = left
        if time.perf_counter() - began > arguments.limit:
            print(f"{study.path.stem}: {len(lacking)} runs left of this part", flush=True)
            break
        if not mine:
            time.sleep(WAIT)
            continue
        note_gradients(study)
        run = mine[0]
        result = train(run)
        study.add(run, result)
        top1 = f"{100 * result['top1'][-1]:.2f} %" if result["top1"] else "none"
        noise = f"{run.noise} {run.noise_kind}" if run.noise else "none"
        print(
            f"{study.path.stem}, {len(lacking) - 1} to go: K {run.num_classes}, {run.loss}, "
            f"{run.optimiser} {run.learning_rate:g}, clip {run.clip}, noise {noise}, "
            f"min_prob {run.min_prob:g}, seed {run.seed}: top-1 {top1}, "
            f"{result['seconds']:.1f} s",
            flush=True,
        )


def main(argv: list[str] | None = None) -> None:
    """Run, then write tables and plots."""
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)  # so that a run gives the same figures wherever it is repeated
    if not arguments.render:
        run_all(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    report.write(arguments.out)


if __name__ == "__main__":
    main()
