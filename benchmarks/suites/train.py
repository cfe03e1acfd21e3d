"""What a loss costs where it is used: in the training steps of a transformer."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from benchmarks.contenders.train import BATCH
from benchmarks.problems import Problem
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import Shape, chosen, each
from benchmarks.targets import Target

MAIN = (
    "train_ours", "train_ours_inplace", "train_no_loss", "train_cross_entropy", "train_compiled",
    "train_careful", "train_official", "train_liger",
)  # fmt: skip
QUICK = ("train_ours", "train_ours_inplace", "train_no_loss", "train_cross_entropy")
OURS, ROOFLINE = "train_ours", "train_no_loss"
LAYERS = {"cpu": 2, "cuda": 4}
SIGMA = 3.0
NOTES = """\
Sizes: tokens x width x vocabulary. A step: forward, loss, backward, fused AdamW, release of the \
gradients; 2 layers on a CPU, 4 on a GPU; 8 sequences of random tokens, on which the time does not \
depend. All contenders train one model. Roofline: a step whose logits are given their gradient, \
without a loss; the rest of 100% is what the loss costs. sigma holds before the first step. \
Memory is beside the parameters and the optimiser's state: activations, logits, gradients. A * \
says little here: the GPU is at the first layers while the host queues the last."""

CPU: Arguments = {
    "shapes": [(1024, 256, 32000)],
    "memory_shapes": [(1024, 256, 32000)],
    "dtypes": ["float32"],
    "regime": "default",
    "seconds": 45.0,
}
CPU_QUICK: Arguments = {
    "shapes": [(256, 128, 8000)],
    "memory_shapes": [(256, 128, 8000)],
    "tables": ["main"],
    "contenders": list(QUICK),
    "seconds": 3.0,
}
CUDA: Arguments = {
    "shapes": [(8192, 1024, 128256)],
    "dtypes": ["bfloat16"],
    "tables": ["main"],
    "regime": "default",
    "seconds": 20.0,
    "limit": 120.0,
}
CUDA_QUICK: Arguments = {
    "shapes": [(2048, 1024, 32768)],
    "contenders": list(QUICK),
    "seconds": 3.0,
    "limit": 60.0,
}


def _main(options: Namespace) -> Iterator[Spec]:
    for regime, shape, dtype in each(options, _shapes("--shapes", options.shapes)):
        problem, contenders = _problem(shape, dtype, options), chosen(options, MAIN)
        yield Spec("main", problem, contenders, regime, roofline=ROOFLINE, ours=OURS)


def _memory(options: Namespace) -> Iterator[Spec]:
    for shape in _shapes("--memory-shapes", options.memory_shapes):
        for dtype in options.dtypes:
            problem, contenders = _problem(shape, dtype, options), chosen(options, MAIN)
            yield Spec("memory", problem, contenders, roofline=None, ours=OURS, measured="memory")


def _shapes(argument: str, shapes: list[Shape]) -> Iterator[Shape]:
    for shape in shapes:
        if shape[0] % BATCH:
            given = "x".join(map(str, shape))
            raise ValueError(f"{argument} {given}: tokens must be a multiple of {BATCH} sequences")
        yield shape


def _problem(shape: Shape, dtype: str, options: Namespace) -> Problem:
    tokens, width, vocabulary = shape
    return Problem(
        tokens,
        vocabulary,
        dtype,
        sigma=SIGMA,
        device=options.device,
        hidden=width,
        layers=LAYERS[options.device],
    )


# A robust loss instead of cross entropy must not make training slower. On a GPU both may vanish
# beside the matrix products; what is left between the two is then the noise between equal steps.
TARGETS = tuple(
    Target("CE / ours, a training step", "train_cross_entropy", OURS, ">=", 0.97, device=device)
    for device in LAYERS
)


TRAIN = Suite(
    "training steps of a transformer",
    "NxDxK",
    tables={
        "main": Table("A training step", _main),
        "memory": Table("Peak extra memory of a training step", _memory),
    },
    settings={"cpu": (CPU, CPU_QUICK), "cuda": (CUDA, CUDA_QUICK)},
    notes=NOTES,
    targets=TARGETS,
)
