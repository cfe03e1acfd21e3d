"""Next-token prediction over the Python standard library, with most training labels replaced.

Trains one small network per loss (cross entropy and three noise-robust losses of the library) on
noisy labels, evaluates on clean ones of held-out files, and measures what each loss costs. Prints
tables and writes ``next_token.png`` and ``next_token.json`` to ``--out``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from next_token_demo import report
from next_token_demo.data import Corpus, build_corpus
from next_token_demo.losses import (
    EAGER_ANL,
    LIBRARY_ANL,
    eager_anl,
    measured_losses,
    training_losses,
)
from next_token_demo.measure import WARM_UP_ROUNDS, Cost, gradient_error, measure
from next_token_demo.train import TrainingResult, train
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from torch import Tensor, nn

QUICK = {
    "num_classes": 2000,
    "train_windows": 8000,
    "test_windows": 1000,
    "batch": 256,
    "steps": 100,
    "evaluations": 5,
    "rounds": 5,
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; ``--quick`` changes defaults only, so explicit options still hold."""
    parser = argparse.ArgumentParser(
        description="Compare losses on next-token prediction with noisy training labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--num-classes", type=int, default=5000, help="vocabulary size, unknown token included")
    add("--noise", type=float, default=0.6, help="share of training labels replaced at random")
    add("--context", type=int, default=4, help="tokens the network sees")
    add("--train-windows", type=int, default=40_000, help="training windows")
    add("--test-windows", type=int, default=4000, help="held-out windows, from other files")
    add("--batch", type=int, default=512, help="windows per step")
    add("--steps", type=int, default=1400, help="training steps per loss")
    add("--learning-rate", type=float, default=1.5e-3, help="of Adam; cosine schedule to zero")
    add("--evaluations", type=int, default=20, help="held-out evaluations per loss")
    add("--rounds", type=int, default=25, help="interleaved rounds of the time measurement")
    add("--seed", type=int, default=0, help="of split, windows, noise, weights and batches")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--out", type=Path, default=Path("out/next_token"), help="directory of plot and JSON")
    add("--quick", action="store_true", help="smoke run of some 20 s; its figures mean nothing")
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(argv)


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def train_all(
    args: argparse.Namespace, corpus: Corpus, progress: Progress
) -> tuple[nn.Module, dict[str, TrainingResult]]:
    """One network per loss; returns the last network, for realistic logits."""
    results: dict[str, TrainingResult] = {}
    losses = training_losses()
    tasks = {name: progress.add_task(name, total=args.steps, state="") for name in losses}
    for name, criterion in losses.items():

        def on_step(accuracy: float | None, task: Any = tasks[name]) -> None:
            state = "" if accuracy is None else f"clean top-1 {report.percent(accuracy)} %"
            progress.update(task, advance=1, state=state)

        model, results[name] = train(
            criterion,
            corpus,
            steps=args.steps,
            batch=args.batch,
            learning_rate=args.learning_rate,
            evaluations=args.evaluations,
            seed=args.seed,
            on_step=on_step,
        )
    return model, results


def measure_all(
    args: argparse.Namespace, logits: Tensor, target: Tensor, progress: Progress
) -> dict[str, Cost]:
    """Time and memory of every loss on the same logits."""
    task = progress.add_task("time and memory", total=WARM_UP_ROUNDS + args.rounds, state="")
    return measure(
        measured_losses(),
        logits,
        target,
        args.rounds,
        on_round=lambda: progress.update(task, advance=1),
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Train, measure, and report."""
    start = time.perf_counter()
    device = choose_device(args.device)
    backend = report.library_backend(device)
    corpus = build_corpus(
        args.num_classes,
        args.context,
        args.train_windows,
        args.test_windows,
        args.noise,
        args.seed,
    ).to(device)
    console.print(
        f"{corpus.num_files} files of the standard library, {corpus.num_tokens:,} tokens, "
        f"{corpus.num_classes:,} classes; {len(corpus.train_clean):,} training windows with "
        f"{corpus.replaced.float().mean():.1%} wrong labels, {len(corpus.test_target):,} clean "
        f"held-out windows from other files; device {device}, library backend {backend}"
    )

    columns = "{task.description}", BarColumn(), "{task.completed}/{task.total}"
    with Progress(*columns, TimeElapsedColumn(), "{task.fields[state]}", console=console) as bar:
        model, results = train_all(args, corpus, bar)
        target = corpus.train_noisy[: args.batch]
        with torch.no_grad():
            logits = model(corpus.train_context[: args.batch])
        costs = measure_all(args, logits, target, bar)

    anl = {EAGER_ANL: eager_anl, LIBRARY_ANL: measured_losses()[LIBRARY_ANL]}
    errors = {n: gradient_error(loss, eager_anl, logits, target) for n, loss in anl.items()}
    findings = [
        *report.accuracy_findings(results, len(corpus.test_target)),
        *report.cost_findings(costs, EAGER_ANL, LIBRARY_ANL, backend),
        report.error_finding(errors),
    ]
    console.print(report.accuracy_table(results, args.noise))
    console.print(report.cost_table(costs, logits.shape, backend))
    for sentence in findings:
        console.print(f"- {sentence}", highlight=False)

    args.out.mkdir(parents=True, exist_ok=True)
    plot, record = args.out / "next_token.png", args.out / "next_token.json"
    report.save_plot(plot, results, costs, args.noise, backend)
    report.save_json(
        record,
        arguments={**vars(args), "out": str(args.out)},
        device=device,
        corpus=corpus,
        results=results,
        costs=costs,
        gradient_errors=errors,
        findings=findings,
        seconds=time.perf_counter() - start,
    )
    console.print(
        f"Wrote {plot} and {record}; {time.perf_counter() - start:.0f} s in all.", soft_wrap=True
    )


if __name__ == "__main__":
    run(parse_arguments(), Console())
