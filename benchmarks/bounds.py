"""What the kernels have to reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from benchmarks.bars import Bar
from benchmarks.problems import Problem
from benchmarks.results import Case


def _is(rows: int, classes: int) -> Callable[[Case], bool]:
    return lambda case: (case.problem.rows, case.problem.classes) == (rows, classes)


def _from(classes: int, dtype: str | None = None) -> Callable[[Case], bool]:
    return lambda case: case.problem.classes >= classes and dtype in (None, case.problem.dtype)


def _peer(
    title: str,
    subject: str,
    bound: float,
    concerns: Callable[[Case], bool],
    regime: str | None = None,
    suite: str = "rows",
) -> Bar:
    return Bar(title, subject, "ours", ">=", bound, regime=regime, concerns=concerns, suite=suite)


# The kernel is bounded in two forms. In place, nothing but the kernel is timed, but its writes hit
# the cache; out of place on a warm heap they go to other memory, as the copy's do.
_F32, _BF16 = _from(32_000, "float32"), _from(32_000, "bfloat16")
_LARGE, _LONG = _from(1000), _from(32_000)

ON_CPU = (
    Bar("float32 kernel in place / copy", "ours_inplace", "copy", "<=", 1.4, concerns=_F32),
    Bar("bfloat16 kernel in place / copy", "ours_inplace", "copy", "<=", 2.5, concerns=_BF16),
    Bar("float32 one pass / copy", "ours", "copy", "<=", 1.4, regime="warm", concerns=_F32),
    Bar("bfloat16 one pass / copy", "ours", "copy", "<=", 2.5, regime="warm", concerns=_BF16),
    _peer("official / ours, K >= 1000", "official", 25, _LARGE, "warm"),
    _peer("CE / ours, K >= 1000", "cross_entropy", 3, _LARGE, "warm"),
    _peer("torch.compile / ours, K >= 1000", "compiled", 4, _LARGE, "warm"),
    _peer("official / ours, K >= 32000", "official", 25, _LONG, "default"),
    _peer("CE / ours, K >= 32000", "cross_entropy", 2.5, _LONG, "default"),
    _peer("torch.compile / ours, K >= 32000", "compiled", 3, _LONG, "default"),
    _peer("CE / ours, 65536 x 10", "cross_entropy", 2.5, _is(65536, 10)),
    Bar("ours / CE, 128 x 10", "ours", "cross_entropy", "<=", 1.4, concerns=_is(128, 10)),
    # One per cent is for resident pages that are no tensor's.
    Bar("extra memory / logits", "ours", "logits", "<=", 1.01, ("memory",)),
    Bar("extra memory in place / logits", "ours_inplace", "logits", "<=", 0.01, ("memory",)),
    Bar("any term / ANL-CE", None, "ours", "<=", 1.5, ("terms",)),
)  # fmt: skip


def _vocabulary(dtype: str | None = None) -> Callable[[Case], bool]:
    """8192 rows of 32k to 256k classes, where the traffic of the logits is all that counts."""
    classes = (32768, 65536, 131072, 262144)
    return lambda case: (
        case.problem.rows == 8192
        and case.problem.classes in classes
        and dtype in (None, case.problem.dtype)
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


def _train(device: str) -> Bar:
    title = "CE / ours, a training step"
    return Bar(
        title, "train_cross_entropy", "train_ours", ">=", _SAME, ("main",),
        device=device, suite="train",
    )  # fmt: skip


# A robust loss instead of cross entropy must not make training slower. On a GPU both may vanish
# beside the matrix products; what is left between the two is then the noise between equal steps.
IN_TRAINING = (_train("cpu"), _train("cuda"))


def _of_head(
    title: str,
    subject: str,
    over: str,
    sense: Literal["<=", ">="],
    bound: float,
    problem: Problem,
    table: str = "main",
    memory: bool = False,
) -> Bar:
    return Bar(
        title, subject, over, sense, bound, (table,), concerns=lambda case: case.problem == problem,
        device=problem.device, suite="linear", memory=memory,
    )  # fmt: skip


# Of the head and the loss in one, which cannot do without the three products and both gradients.
_HEAD = Problem(2048, 32000, "float32", hidden=512)
_HEAD_ON_GPU = Problem(8192, 128256, "bfloat16", device="cuda", hidden=4096)


def _most_of_head(problem: Problem, mebibytes: int) -> float:
    """Both gradients and so much beside them, over the logits."""
    assert problem.hidden is not None
    numbers = (problem.rows + problem.classes) * problem.hidden
    bytes_ = numbers * problem.torch_dtype.itemsize + (mebibytes << 20)
    return bytes_ / problem.logits_bytes


def _over_head(what: str, subject: str, time: float, memory: float) -> tuple[Bar, Bar]:
    """A peer takes so many times the fused head's time, and so many times its memory."""
    title, over = f"{what} / fused head", "linear_fused"
    sized = f"{title}: extra memory"
    return (
        _of_head(title, subject, over, ">=", time, _HEAD),
        _of_head(sized, subject, over, ">=", memory, _HEAD, "memory", memory=True),
    )


OF_HEADS = (
    _of_head("fused head / products", "linear_fused", "products", "<=", 1.05, _HEAD),
    _of_head(
        "fused head: extra memory / logits", "linear_fused", "logits", "<=",
        _most_of_head(_HEAD, 150), _HEAD, "memory",
    ),
    *_over_head("F.linear_cross_entropy, chunked", "linear_torch_chunked", 1.8, 1),
    *_over_head("head, then well-written ANL", "linear_careful", 1, 7),
    *_over_head("head, then official ANL", "linear_official", 1, 7),
    _of_head("GPU: fused head / products", "linear_fused", "products", "<=", 1.1, _HEAD_ON_GPU),
    # Its sums beside the gradient, in float32, would take twice the gradient's memory.
    _of_head(
        "GPU: fused head, narrow sums: extra memory / logits", "linear_fused_narrow", "logits",
        "<=", _most_of_head(_HEAD_ON_GPU, 512), _HEAD_ON_GPU,
    ),
)  # fmt: skip


def _pixels(prefix: str, device: str, regime: str | None) -> Bar:
    title = f"{prefix}CE / ours, in both memory layouts"
    return Bar(
        title, "cross_entropy", "ours", ">=", 1, ("main",), regime, device=device, suite="layouts"
    )


OF_LAYOUTS = (_pixels("", "cpu", "warm"), _pixels("GPU: ", "cuda", None))

# The copy's time per byte is the same at any number of classes.
FLAT = (
    Bar(
        "K >= 1000, as many logits: ours / copy", "ours", "copy", "<=", 2, ("classes",),
        concerns=_LARGE, suite="scaling",
    ),
)  # fmt: skip

BARS = ON_CPU + ON_GPU + IN_TRAINING + OF_HEADS + OF_LAYOUTS + FLAT
