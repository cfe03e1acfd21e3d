"""Loss and gradient of logits that are given."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from benchmarks.problems import PHASES, Problem
from benchmarks.subjects.library import term_instances
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import Shape, chosen, each, library_backends, regimes

MAIN = (
    "ours", "ours_inplace", "triton", "triton_inplace", "cuda", "cuda_inplace", "ours_compiled",
    "copy", "cross_entropy", "compiled_cross_entropy", "compiled", "compiled_official", "careful",
    "official", "liger", "quack", "quack_one_pass", "flash_attn",
)  # fmt: skip
QUICK = ("ours", "ours_inplace", "copy", "cross_entropy", "compiled", "official")
BY_SIGMA = ("ours", "ours_inplace", "copy", "cross_entropy", "compiled")
APL = ("ours_apl", "copy", "compiled_apl", "careful_apl_eager", "official_apl_eager")
BY_PHASE = ("ours", "copy", "cross_entropy", "compiled", "careful", "official")
MEMORY = ("ours", "ours_inplace", "cross_entropy", "compiled", "careful", "official")
SIGMA = 3.0

NOTES = """\
GB/s count one read and one write of the logits. `inplace=True` writes to lines that it has just \
read, which a copy cannot. In parts: what of a step the forward pass has done already, backward \
need not do; ours writes the gradient in the forward pass, and has the least to do without one."""

CPU: Arguments = {
    "shapes": [
        (4096, 1000),
        (1024, 32000),
        (512, 128256),
        (128, 256000),
        (8, 1000000),
        (65536, 10),
        (128, 10),
    ],
    "typical_shape": (1024, 32000),
    "memory_shapes": [(32768, 1000), (4096, 8000), (1024, 32000), (256, 128256), (32, 1000000)],
    "dtypes": ["float32", "bfloat16"],
    "sigmas": [1.0, 5.0],
    "regime": "both",
    "seconds": 2.0,
}
CPU_QUICK: Arguments = {
    "shapes": [(1024, 32000), (65536, 10)],
    "memory_shapes": [(1024, 32000)],
    "dtypes": ["float32"],
    "tables": ["main", "memory"],
    "subjects": list(QUICK),
    "regime": "warm",
    "seconds": 0.5,
}
# A GPU may be lent by the minute: the shapes with a bar come first, and the limit leaves out what
# would come too late. Compilers take most of the time, for a peer once for each shape and dtype.
CUDA: Arguments = {
    "shapes": [
        (8192, 131072),
        (8192, 32768),
        (8192, 65536),
        (8192, 262144),
        (8192, 50257),
        (4096, 1000),
        (65536, 10),
        (8, 1000000),
    ],
    "typical_shape": (8192, 131072),
    "dtypes": ["bfloat16", "float32"],
    "sigmas": [1.0, 5.0],
    "tables": ["main", "terms", "phases", "sigma", "apl"],
    "regime": "default",
    "seconds": 1.0,
    "limit": 240.0,
}
CUDA_QUICK: Arguments = {
    "shapes": [(8192, 32768), (65536, 10)],
    "dtypes": ["bfloat16"],
    "tables": ["main"],
    "seconds": 0.5,
    "limit": 60.0,
}


def _main(options: Namespace) -> Iterator[Spec]:
    for regime, shape, dtype in each(options, options.shapes):
        yield Spec("main", _problem(shape, dtype, options), chosen(options, MAIN), regime)


# One regime in these: the heap that keeps freed memory, where page faults do not blur the kernel.


def _sigma(options: Namespace) -> Iterator[Spec]:
    """How many classes NNCE clamps, and with it the time, depends on the spread."""
    for shape in options.shapes:
        for dtype in options.dtypes:
            for sigma in options.sigmas:
                problem = _problem(shape, dtype, options, sigma=sigma)
                yield Spec("sigma", problem, chosen(options, BY_SIGMA), regimes(options)[-1])


def _phases(options: Namespace) -> Iterator[Spec]:
    for phase in PHASES:
        # What a part of a step has to move depends on what the other part does.
        floor = {"both": 1.0, "inference": 0.5}.get(phase)
        for dtype in options.dtypes:
            problem = _problem(options.typical_shape, dtype, options, phase=phase)
            subjects = chosen(options, BY_PHASE)
            yield Spec("phases", problem, subjects, regimes(options)[-1], floor=floor)


def _apl(options: Namespace) -> Iterator[Spec]:
    for dtype in options.dtypes:
        problem = _problem(options.typical_shape, dtype, options)
        subjects, regime = chosen(options, APL), regimes(options)[-1]
        yield Spec("apl", problem, subjects, regime, ours="ours_apl")


def _terms(options: Namespace) -> Iterator[Spec]:
    for backend in library_backends(options.device):
        for dtype in options.dtypes:
            problem = _problem(options.typical_shape, dtype, options)
            subjects = ("ours", "copy", *term_instances())
            yield Spec("terms", problem, subjects, regimes(options)[-1], backend=backend)


def _memory(options: Namespace) -> Iterator[Spec]:
    for shape in options.memory_shapes:
        problem = _problem(shape, options.dtypes[0], options)
        yield Spec("memory", problem, chosen(options, MEMORY), roof=None, measured="memory")


def _problem(shape: Shape, dtype: str, options: Namespace, **others: Any) -> Problem:
    rows, classes = shape
    return Problem(rows, classes, dtype, **{"sigma": SIGMA, "device": options.device} | others)


ROWS = Suite(
    "loss and gradient of given logits",
    "NxK",
    tables={
        "main": Table("ANL-CE", _main),
        "sigma": Table("ANL-CE, the spread of the logits", _sigma),
        "phases": Table("ANL-CE, part by part", _phases),
        "apl": Table("APL (NCE + MAE)", _apl),
        "terms": Table("Every term beside ANL-CE", _terms),
        "memory": Table("Peak extra memory", _memory),
    },
    settings={"cpu": (CPU, CPU_QUICK), "cuda": (CUDA, CUDA_QUICK)},
    notes=NOTES,
)
