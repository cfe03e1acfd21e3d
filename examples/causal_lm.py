"""A small causal language model through the Trainer of transformers, with some labels wrong.

Trains a Llama made from a configuration (nothing is downloaded) on the Python standard library, by
cross entropy, GCE and ANL, each in two forms: of logits, ``Trainer(compute_loss_func=...)``, and
with the fused head, ``patch_model``; cross entropy as transformers has it besides. Gradients are
accumulated, and exact: ``num_items_in_batch``. Prints a table of clean held-out accuracy, time and
peak memory, and writes ``causal_lm.json`` and ``README.md`` to ``--out``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch
from causal_lm_study import report
from causal_lm_study.data import build
from causal_lm_study.train import LOSSES, Run, forms_of, new_model, train_apart
from common import at_least, check_device, commit, machine, positive, share, versions, write_json

QUICK = {
    "vocabulary": 1000,
    "width": 32,
    "layers": 1,
    "length": 32,
    "train_sequences": 200,
    "test_sequences": 50,
    "batch": 8,
    "steps": 12,
    "evaluations": 2,
    "losses": ["CE", "GCE(0.7)"],
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; ``--quick`` changes defaults only, so explicit options still hold."""
    parser = argparse.ArgumentParser(
        description="Train a small causal LM on labels that are partly wrong.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="the losses")
    add("--noise", type=share, default=0.4, help="share of training labels replaced at random")
    add("--vocabulary", type=positive, default=8192, help="classes, unknown token included")
    add("--length", type=positive, default=64, help="tokens of a sequence")
    add("--train-sequences", type=positive, default=4000, help="training sequences")
    add("--test-sequences", type=positive, default=100, help="held-out sequences, of other files")
    add(
        "--width",
        type=at_least(32, multiple_of=32),
        default=64,
        help="of the hidden state, a multiple of 32",
    )
    add("--layers", type=positive, default=2, help="of the model")
    add("--batch", type=positive, default=16, help="sequences of a batch")
    add("--accumulation", type=positive, default=2, help="batches of a step")
    add("--steps", type=positive, default=120, help="training steps")
    add("--learning-rate", type=float, default=4e-3, help="of AdamW; cosine schedule to zero")
    add("--chunk-mib", type=positive, default=4, help="logits of a chunk of the fused head, in MiB")
    add("--evaluations", type=positive, default=3, help="held-out evaluations of a run")
    add("--threads", type=positive, default=1, help="of a CPU")
    add("--seed", type=int, default=0, help="of files, noise, weights and batches")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto takes a GPU")
    add("--out", type=Path, default=Path("out/causal_lm"), help="directory of the results")
    add("--quick", action="store_true", help="smoke run of some seconds; its figures mean nothing")
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(parser, args.device)
    args.changed = "".join(
        f" --{name.replace('_', '-')} {value}"
        for name, value in vars(args).items()
        if name not in ("out", "device") and value != parser.get_default(name)
    )
    return args


def main(args: argparse.Namespace) -> None:
    """Train, print, write."""
    start = time.perf_counter()
    arguments = dict(vars(args))
    command_line = arguments.pop("changed")
    del arguments["out"]
    data = build(
        args.vocabulary,
        args.length,
        args.train_sequences,
        args.test_sequences,
        args.noise,
        args.seed,
    )
    parameters = sum(p.numel() for p in new_model(args).parameters())
    described = report.setting(arguments, data.wrong, parameters)
    print(described)
    runs = []
    for loss in args.losses:
        for form in forms_of(loss):
            runs.append(train_apart(Run(loss, form), args, data))
            print(f"{loss}, {form}: {runs[-1].seconds:.0f} s", flush=True)
    record = {
        "setting": described,
        "findings": report.findings(runs),
        "curves_differ_by": report.difference(runs),
        "command_line": command_line,
        "arguments": arguments,
        "versions": versions("transformers", "accelerate", "numpy"),
        "machine": machine(args.device) | {"torch_threads": args.threads},
        "commit": commit(),
        "seconds": time.perf_counter() - start,
        "runs": [asdict(run) for run in runs],
    }
    write_json(args.out / "causal_lm.json", record)
    (args.out / "README.md").write_text(report.page(record, runs), encoding="utf-8")
    print(report.table(runs), *record["findings"], sep="\n")
    print(f"Wrote {args.out}/causal_lm.json and README.md; {record['seconds']:.0f} s in all.")


if __name__ == "__main__":
    main(parse_arguments())
