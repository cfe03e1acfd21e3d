"""The head and the loss: from the hidden state to its gradient and that of the weight."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from benchmarks.problems import Problem
from benchmarks.subjects.linear import BY_CHUNK
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import Shape, chosen, each

MAIN = (
    "linear_fused", "linear_fused_narrow", "linear_unfused", "products",
    "linear_unfused_cross_entropy", "linear_torch", "linear_torch_chunked", "linear_liger",
    "linear_cce", "linear_quack", "linear_compiled", "linear_careful", "linear_official",
)  # fmt: skip
MEMORY = (
    "linear_fused", "linear_unfused", "linear_unfused_cross_entropy", "linear_torch",
    "linear_torch_chunked", "linear_cce", "linear_compiled", "linear_careful", "linear_official",
)  # fmt: skip
QUICK = (
    "linear_fused", "linear_unfused", "products", "linear_unfused_cross_entropy", "linear_careful",
)  # fmt: skip
OURS, ROOF = "linear_fused", "products"

NOTES = """\
Sizes: rows x hidden x classes. The roof is the three matrix products, of which head and loss need \
no fewer: the logits, and the gradients of hidden state and weight from a given one of the logits. \
TFLOP/s count these three, whatever else a subject computes. Extra memory holds both gradients, \
and is given over the size that the logits have or would have. By size of a chunk: the first row \
is the default's."""

# A step of the largest takes seconds, and as many as the fewest rounds are waited for.
CPU: Arguments = {
    "shapes": [(2048, 512, 32000), (1024, 256, 8192)],
    "memory_shapes": [(2048, 512, 32000)],
    # Of longer rows a chunk of one size has fewer, and the weight that it has to read is larger.
    "chunk_shapes": [(2048, 512, 32000), (512, 512, 128256)],
    "dtypes": ["float32"],
    "regime": "warm",
    "seconds": 6.0,
}
CPU_QUICK: Arguments = {
    "shapes": [(512, 256, 8192)],
    "tables": ["main"],
    "subjects": list(QUICK),
    "seconds": 0.5,
}
CUDA: Arguments = {
    "shapes": [(8192, 4096, 128256), (8192, 4096, 32000)],
    "chunk_shapes": [(8192, 4096, 128256)],
    "dtypes": ["bfloat16"],
    "tables": ["main", "chunks"],  # with the memory, which a GPU's allocator tells beside the time
    "regime": "default",
    "seconds": 3.0,
    "limit": 180.0,
}
CUDA_QUICK: Arguments = {
    "shapes": [(8192, 4096, 32000)],
    "tables": ["main"],
    "seconds": 1.0,
    "limit": 60.0,
}


def _main(options: Namespace) -> Iterator[Spec]:
    for regime, shape, dtype in each(options, options.shapes):
        problem, subjects = _problem(shape, dtype, options), chosen(options, MAIN)
        yield Spec("main", problem, subjects, regime, roof=ROOF, ours=OURS)


def _chunks(options: Namespace) -> Iterator[Spec]:
    subjects = (OURS, ROOF, *chosen(options, BY_CHUNK))
    for regime, shape, dtype in each(options, options.chunk_shapes):
        problem = _problem(shape, dtype, options)
        yield Spec("chunks", problem, subjects, regime, roof=ROOF, ours=OURS)


def _memory(options: Namespace) -> Iterator[Spec]:
    for shape in options.memory_shapes:
        for dtype in options.dtypes:
            problem, subjects = _problem(shape, dtype, options), chosen(options, MEMORY)
            yield Spec("memory", problem, subjects, roof=None, measured="memory", ours=OURS)


def _problem(shape: Shape, dtype: str, options: Namespace) -> Problem:
    rows, hidden, classes = shape
    return Problem(rows, classes, dtype, device=options.device, hidden=hidden)


LINEAR = Suite(
    "head and loss together",
    "NxDxK",
    tables={
        "main": Table("Head and ANL-CE", _main),
        "chunks": Table("Head and ANL-CE by size of a chunk", _chunks),
        "memory": Table("Peak extra memory", _memory),
    },
    settings={"cpu": (CPU, CPU_QUICK), "cuda": (CUDA, CUDA_QUICK)},
    notes=NOTES,
)
