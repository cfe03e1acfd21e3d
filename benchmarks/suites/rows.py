"""Loss and gradient of logits that are given."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from benchmarks.contenders.library import term_instances
from benchmarks.problems import PHASES, Problem
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import Shape, chosen, each, library_backends, regimes
from benchmarks.targets import Concerns, Target, from_classes, of_shape

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
ON_SIGMA = ("main", "sigma")
"""Tables whose figures the same targets hold."""

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
    "contenders": list(QUICK),
    "regime": "warm",
    "seconds": 0.5,
}
# A GPU may be lent by the minute: shapes with a target come first, and the limit leaves out what
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
            contenders = chosen(options, BY_PHASE)
            yield Spec("phases", problem, contenders, regimes(options)[-1], floor=floor)


def _apl(options: Namespace) -> Iterator[Spec]:
    for dtype in options.dtypes:
        problem = _problem(options.typical_shape, dtype, options)
        contenders, regime = chosen(options, APL), regimes(options)[-1]
        yield Spec("apl", problem, contenders, regime, ours="ours_apl")


def _terms(options: Namespace) -> Iterator[Spec]:
    for backend in library_backends(options.device):
        for dtype in options.dtypes:
            problem = _problem(options.typical_shape, dtype, options)
            contenders = ("ours", "copy", *term_instances())
            yield Spec("terms", problem, contenders, regimes(options)[-1], backend=backend)


def _memory(options: Namespace) -> Iterator[Spec]:
    for shape in options.memory_shapes:
        problem = _problem(shape, options.dtypes[0], options)
        yield Spec("memory", problem, chosen(options, MEMORY), roofline=None, measured="memory")


def _problem(shape: Shape, dtype: str, options: Namespace, **others: Any) -> Problem:
    rows, classes = shape
    return Problem(rows, classes, dtype, **{"sigma": SIGMA, "device": options.device} | others)


def _vocabulary(dtype: str | None = None) -> Concerns:
    """8192 rows of 32k to 256k classes, where the traffic of the logits is all that counts."""
    shapes = [of_shape(8192, classes, dtype) for classes in (32768, 65536, 131072, 262144)]
    return lambda case: any(shape(case) for shape in shapes)


def _peer(
    title: str, contender: str, bound: float, concerns: Concerns, regime: str | None = None
) -> Target:
    return Target(title, contender, "ours", ">=", bound, ON_SIGMA, regime, concerns)


def _gpu(
    what: str,
    contender: str,
    bound: float,
    concerns: Concerns = lambda case: True,
    over: str = "ours",
) -> Target:
    title = f"GPU: {what}"
    return Target(title, contender, over, ">=", bound, ON_SIGMA, None, concerns, device="cuda")


# The kernel is bounded in two forms. In place, nothing but the kernel is timed, but its writes hit
# the cache; out of place on a warm heap they go to other memory, as the copy's do.
_F32, _BF16 = from_classes(32_000, "float32"), from_classes(32_000, "bfloat16")
_LARGE, _LONG = from_classes(1000), from_classes(32_000)
_ROWS, _ROWS_BF16, _ROWS_F32 = _vocabulary(), _vocabulary("bfloat16"), _vocabulary("float32")
_SAME = 0.97  # two runs of one kernel may differ by three per cent

TARGETS = (
    Target("float32 kernel in place / copy", "ours_inplace", "copy", "<=", 1.4, ON_SIGMA,
           concerns=_F32),
    Target("bfloat16 kernel in place / copy", "ours_inplace", "copy", "<=", 2.5, ON_SIGMA,
           concerns=_BF16),
    Target("float32 one pass / copy", "ours", "copy", "<=", 1.4, ON_SIGMA, "warm", _F32),
    Target("bfloat16 one pass / copy", "ours", "copy", "<=", 2.5, ON_SIGMA, "warm", _BF16),
    _peer("official / ours, K >= 1000", "official", 25, _LARGE, "warm"),
    _peer("CE / ours, K >= 1000", "cross_entropy", 3, _LARGE, "warm"),
    _peer("torch.compile / ours, K >= 1000", "compiled", 4, _LARGE, "warm"),
    _peer("official / ours, K >= 32000", "official", 25, _LONG, "default"),
    _peer("CE / ours, K >= 32000", "cross_entropy", 2.5, _LONG, "default"),
    _peer("torch.compile / ours, K >= 32000", "compiled", 3, _LONG, "default"),
    _peer("CE / ours, 65536 x 10", "cross_entropy", 2.5, of_shape(65536, 10)),
    # One per cent is for resident pages that are no tensor's.
    Target("extra memory / logits", "ours", "logits", "<=", 1.01, ("memory",)),
    Target("extra memory in place / logits", "ours_inplace", "logits", "<=", 0.01, ("memory",)),
    Target("any term / ANL-CE", None, "ours", "<=", 1.5, ("terms",)),
    # The copy is the contender, so that the figure is the share of its bandwidth.
    _gpu("copy / ours, bfloat16", "copy", 0.9, _ROWS_BF16),
    _gpu("copy / ours, float32", "copy", 0.9, _ROWS_F32),
    _gpu("F.cross_entropy / ours", "cross_entropy", 1, _ROWS),
    _gpu("torch.compile of CE / ours", "compiled_cross_entropy", 1, _ROWS),
    _gpu("Liger CE / ours", "liger", 1, _ROWS),
    _gpu("QuACK CE / ours", "quack", 1, _ROWS),
    _gpu("QuACK CE, one pass / ours", "quack_one_pass", 1, _ROWS),
    _gpu("torch.compile of ANL / ours", "compiled", 2, _ROWS),
    _gpu("Triton / auto", "triton", _SAME),
    _gpu("CUDA C++ / auto", "cuda", _SAME),
    _gpu("Triton / auto, in place", "triton_inplace", _SAME, over="ours_inplace"),
    _gpu("CUDA C++ / auto, in place", "cuda_inplace", _SAME, over="ours_inplace"),
)  # fmt: skip


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
    targets=TARGETS,
)
