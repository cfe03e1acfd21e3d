"""The head and the loss: from the hidden state to its gradient and that of the weight."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Literal

from benchmarks.contenders.linear import BY_CHUNK
from benchmarks.problems import Problem
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import Shape, chosen, each
from benchmarks.targets import Target

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
OURS, ROOFLINE = "linear_fused", "products"

NOTES = """\
Sizes: rows x hidden x classes. The roofline is the three matrix products that head and loss need: \
the logits, and the gradients of hidden state and weight from a given one of the logits. TFLOP/s \
count these three, whatever else a contender computes. Extra memory holds both gradients, and is \
given over the size that the logits have or would have. By size of a chunk: the first row is the \
default's."""

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
    "contenders": list(QUICK),
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
        problem, contenders = _problem(shape, dtype, options), chosen(options, MAIN)
        yield Spec("main", problem, contenders, regime, roofline=ROOFLINE, ours=OURS)


def _chunks(options: Namespace) -> Iterator[Spec]:
    contenders = (OURS, ROOFLINE, *chosen(options, BY_CHUNK))
    for regime, shape, dtype in each(options, options.chunk_shapes):
        problem = _problem(shape, dtype, options)
        yield Spec("chunks", problem, contenders, regime, roofline=ROOFLINE, ours=OURS)


def _memory(options: Namespace) -> Iterator[Spec]:
    for shape in options.memory_shapes:
        for dtype in options.dtypes:
            problem, contenders = _problem(shape, dtype, options), chosen(options, MEMORY)
            yield Spec("memory", problem, contenders, roofline=None, measured="memory", ours=OURS)


def _problem(shape: Shape, dtype: str, options: Namespace) -> Problem:
    rows, hidden, classes = shape
    return Problem(rows, classes, dtype, device=options.device, hidden=hidden)


# The head and the loss in one, which cannot do without the three products and both gradients.
_HEAD = Problem(2048, 32000, "float32", hidden=512)
_HEAD_ON_GPU = Problem(8192, 128256, "bfloat16", device="cuda", hidden=4096)


def _target(
    title: str,
    contender: str,
    over: str,
    sense: Literal["<=", ">="],
    bound: float,
    problem: Problem = _HEAD,
    table: str = "main",
    memory: bool = False,
) -> Target:
    return Target(
        title, contender, over, sense, bound, (table,), concerns=lambda c: c.problem == problem,
        device=problem.device, memory=memory,
    )  # fmt: skip


def _most_memory(problem: Problem, mebibytes: int) -> float:
    """Both gradients and so much beside them, over the logits."""
    assert problem.hidden is not None
    numbers = (problem.rows + problem.classes) * problem.hidden
    bytes_ = numbers * problem.torch_dtype.itemsize + (mebibytes << 20)
    return bytes_ / problem.logits_bytes


def _peer(what: str, contender: str, time: float, memory: float) -> tuple[Target, Target]:
    """It takes so many times the fused head's time, and so many times its memory."""
    title = f"{what} / fused head"
    sized = f"{title}: extra memory"
    return (
        _target(title, contender, OURS, ">=", time),
        _target(sized, contender, OURS, ">=", memory, table="memory", memory=True),
    )


TARGETS = (
    _target("fused head / products", OURS, ROOFLINE, "<=", 1.05),
    _target(
        "fused head: extra memory / logits", OURS, "logits", "<=", _most_memory(_HEAD, 150),
        table="memory",
    ),
    *_peer("F.linear_cross_entropy, chunked", "linear_torch_chunked", 1.8, 1),
    *_peer("head, then well-written ANL", "linear_careful", 1, 7),
    *_peer("head, then official ANL", "linear_official", 1, 7),
    _target("GPU: fused head / products", OURS, ROOFLINE, "<=", 1.1, _HEAD_ON_GPU),
    # Its sums beside the gradient, in float32, would take twice the gradient's memory.
    _target(
        "GPU: fused head, narrow sums: extra memory / logits", "linear_fused_narrow", "logits",
        "<=", _most_memory(_HEAD_ON_GPU, 512), _HEAD_ON_GPU,
    ),
)  # fmt: skip


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
    targets=TARGETS,
)
