"""What the kernels have to reach."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bars import Bar
from benchmarks.results import Case


def _is(rows: int, classes: int) -> Callable[[Case], bool]:
    return lambda case: (case.rows, case.classes) == (rows, classes)


def _from(classes: int, dtype: str | None = None) -> Callable[[Case], bool]:
    return lambda case: case.classes >= classes and dtype in (None, case.dtype)


# The kernel is bounded in two forms. In place, nothing but the kernel is timed, but its writes hit
# the cache; out of place on a warm heap they go to other memory, as the copy's do.
_F32, _BF16 = _from(32_000, "float32"), _from(32_000, "bfloat16")
_LARGE, _LONG = _from(1000), _from(32_000)

ON_CPU = (
    Bar("float32 kernel in place / copy", "ours_inplace", "copy", "<=", 1.4, concerns=_F32),
    Bar("bfloat16 kernel in place / copy", "ours_inplace", "copy", "<=", 2.5, concerns=_BF16),
    Bar("float32 one pass / copy", "ours", "copy", "<=", 1.4, regime="warm", concerns=_F32),
    Bar("bfloat16 one pass / copy", "ours", "copy", "<=", 2.5, regime="warm", concerns=_BF16),
    Bar("official / ours, K >= 1000", "official", "ours", ">=", 25, "main", "warm", _LARGE),
    Bar("CE / ours, K >= 1000", "cross_entropy", "ours", ">=", 3, "main", "warm", _LARGE),
    Bar("torch.compile / ours, K >= 1000", "compiled", "ours", ">=", 4, "main", "warm", _LARGE),
    Bar("official / ours, K >= 32000", "official", "ours", ">=", 25, "main", "default", _LONG),
    Bar("CE / ours, K >= 32000", "cross_entropy", "ours", ">=", 2.5, "main", "default", _LONG),
    Bar("torch.compile / ours, K >= 32000", "compiled", "ours", ">=", 3, "main", "default", _LONG),
    Bar("CE / ours, 65536 x 10", "cross_entropy", "ours", ">=", 2.5, concerns=_is(65536, 10)),
    Bar("ours / CE, 128 x 10", "ours", "cross_entropy", "<=", 1.4, concerns=_is(128, 10)),
    # One per cent is for resident pages that are no tensor's.
    Bar("extra memory / logits", "ours", "logits", "<=", 1.01, "memory"),
    Bar("extra memory in place / logits", "ours_inplace", "logits", "<=", 0.01, "memory"),
    Bar("any term / ANL-CE", None, "ours", "<=", 1.5, "terms"),
)  # fmt: skip


def _vocabulary(dtype: str | None = None) -> Callable[[Case], bool]:
    """8192 rows of 32k to 256k classes, where the traffic of the logits is all that counts."""
    classes = (32768, 65536, 131072, 262144)
    return lambda case: (
        case.rows == 8192 and case.classes in classes and dtype in (None, case.dtype)
    )


def _gpu(
    what: str,
    subject: str,
    bound: float,
    concerns: Callable[[Case], bool] = lambda case: True,
    over: str = "ours",
) -> Bar:
    return Bar(f"GPU: {what}", subject, over, ">=", bound, concerns=concerns, device="cuda")


_ROWS, _ROWS_BF16, _ROWS_F32 = _vocabulary(), _vocabulary("bfloat16"), _vocabulary("float32")
_SAME = 0.97  # two runs of one kernel may differ by three per cent

ON_GPU = (
    # The copy is the subject, so that the figure is the share of its bandwidth.
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
)

BARS = ON_CPU + ON_GPU
