"""Tables and closing sentences; every statement is computed from the figures."""

from __future__ import annotations

from .train import FUSED, LOGITS, OWN, Run

PAGE = """# A small causal language model, labels partly wrong

Made by `python examples/causal_lm.py{options}`; figures: [causal_lm.json](causal_lm.json).

{setting}

{table}

{findings}
"""


def difference(runs: list[Run]) -> float:
    """How far the curves of the forms of a loss are apart at most, relative to the loss."""
    fused = {run.loss: run.curve for run in runs if run.form == FUSED}
    return max(
        abs(one - other) / abs(other)
        for run in runs
        for one, other in zip(run.curve, fused[run.loss], strict=True)
    )


def setting(args: dict, wrong: float, parameters: int) -> str:
    """What was trained on what."""
    rows = args["batch"] * args["length"]
    return (
        f"A Llama of {parameters / 1e6:.1f} million parameters and {args['vocabulary']:,} classes, "
        f"from a configuration; {args['train_sequences']:,} sequences of {args['length']} tokens "
        f"of the Python standard library, {wrong:.0%} of their labels replaced at random; accuracy "
        f"on clean tokens of other files. {args['steps']} steps of `Trainer`, AdamW, "
        f"{args['accumulation']} batches of {rows:,} tokens accumulated in each; "
        f"{args['threads']} thread(s) (seconds are of CPU time, unless on a GPU), chunks of "
        f"{args['chunk_mib']} MiB, seed {args['seed']}."
    )


def table(runs: list[Run]) -> str:
    """A row for each run, in Markdown."""
    lines = [
        "| loss | form | clean held-out top-1 | training loss, last 10 steps | s a step "
        "| peak of a step, MiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for run in runs:
        tail = run.curve[-10:]
        peak = "-" if run.peak_bytes is None else f"{run.peak_bytes / 2**20:.0f}"
        lines.append(
            f"| {run.loss} | {run.form} | {run.accuracy[-1]:.1%} | {sum(tail) / len(tail):.4f} "
            f"| {run.seconds_a_step:.3f} | {peak} |"
        )
    return "\n".join(lines)


def findings(runs: list[Run]) -> list[str]:
    """What the figures say."""
    last = {run.loss: run.accuracy[-1] for run in runs if run.form == FUSED}
    order = sorted(last, key=lambda loss: -last[loss])
    ranking = ", ".join(f"{loss} {last[loss]:.1%}" for loss in order)
    found = [
        f"Clean held-out accuracy after the last step: {ranking} (one seed).",
        f"The forms of a loss have the same training curve: they differ by "
        f"{difference(runs):.1e} of the loss at most, in any step.",
    ]
    peaks = {(run.loss, run.form): run.peak_bytes for run in runs if run.peak_bytes}
    for (loss, form), peak in peaks.items():
        if form == FUSED:
            others = ", ".join(
                f"{peaks[loss, other] / 2**20:.0f} ({other})"
                for other in (OWN, LOGITS)
                if (loss, other) in peaks
            )
            found.append(
                f"{loss}: a step takes {peak / 2**20:.0f} MiB beside what is held before it with "
                f"the fused head, and {others}."
            )
    return found


def page(record: dict, runs: list[Run]) -> str:
    """The README.md of results."""
    return PAGE.format(
        options=record["command_line"],
        setting=record["setting"],
        table=table(runs),
        findings="\n".join(f"- {sentence}" for sentence in record["findings"]),
    )
