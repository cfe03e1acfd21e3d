"""What stands for the logits that a patched model does not have, and notes what is done to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor


class LogitLaw(NamedTuple):
    """Logits become ``softcap * tanh(scale * logits / softcap)``, or ``scale * logits``."""

    scale: float = 1.0
    softcap: float | None = None

    def times(self, factor: float) -> LogitLaw:
        """That of ``factor`` times as much."""
        softcap = None if self.softcap is None else self.softcap * factor
        return LogitLaw(self.scale * factor, softcap)


class NoLogits:
    """What the head of a patched model returns. It has the shape of logits, and no memory.

    A model may multiply it by a number and take its tanh once (a softcap), convert it, and drop
    the last of its columns. Whatever else the model does needs logits, which there are none of: it
    is an error, before the loss and after it. It is no Tensor, so that nothing can be made of it
    without its knowledge.

    Args:
        name: of the model, for errors.
        head: the head's own output for no rows, (0, ..., K), which has its dtype and its device.
        shape: (..., K) of the logits that there would be.
        law: what has been done to them.
    """

    def __init__(self, name: str, head: Tensor, shape: torch.Size, law: LogitLaw) -> None:
        self.name = name
        self.head = head
        self.shape = shape
        self.law = law

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits that there would be."""
        return self.head.dtype

    @property
    def device(self) -> torch.device:
        """Where they would be."""
        return self.head.device

    @property
    def ndim(self) -> int:
        """How many dimensions they would have."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As of a tensor."""
        return len(self.shape)

    def to(self, *args: Any, **kwargs: Any) -> NoLogits:
        """As of a tensor; the loss computes in its own dtype, on the head's device."""
        return NoLogits(self.name, self.head.to(*args, **kwargs), self.shape, self.law)

    def float(self) -> NoLogits:
        """As of a tensor."""
        return self.to(torch.float32)

    def contiguous(self) -> NoLogits:
        """As of a tensor."""
        return self

    def __mul__(self, factor: Any) -> NoLogits:
        return self._with(self.law.times(_number(self, "multiplies its logits by", factor)))

    __rmul__ = mul = __mul__

    def __truediv__(self, divisor: Any) -> NoLogits:
        return self._with(self.law.times(1 / _number(self, "divides its logits by", divisor)))

    div = __truediv__

    def tanh(self) -> NoLogits:
        """As of a tensor, once."""
        if self.law.softcap is not None:
            raise self.unknown("takes the tanh of its logits twice")
        return self._with(LogitLaw(self.law.scale, 1.0))

    def __getitem__(self, index: Any) -> NoLogits:
        *before, last = index if isinstance(index, tuple) else (index,)
        others = [slice(None)] * (self.ndim - 1)
        if before in ([Ellipsis], others) and _is_beginning(last):
            columns = len(range(*last.indices(self.shape[-1])))
            shape = torch.Size((*self.shape[:-1], columns))
            return NoLogits(self.name, self.head, shape, self.law)
        raise self.unknown("takes some of its logits")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copies and pickles ask for
            raise AttributeError(name)
        raise self.unknown(f"reads .{name} of its logits")

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        known: dict[Any, Callable[..., NoLogits]] = {
            torch.tanh: cls.tanh,
            torch.mul: cls.mul,
            torch.div: cls.div,
        }
        logits = next((value for value in args if isinstance(value, cls)), None)
        if logits is not None and function in known and not kwargs:
            others = [value for value in args if value is not logits]
            return known[function](logits, *others)
        what = getattr(function, "__name__", str(function))
        if logits is None:
            raise ValueError(f"{what} was given logits of a patched model, which has none")
        raise logits.unknown(f"calls {what} with its logits")

    def unknown(self, what: str) -> ValueError:
        """The error of a model that does what it cannot do."""
        return ValueError(
            f"{self.name} {what}, which patch_model leaves none of: it knows a factor, a softcap "
            f"and a conversion, before the loss; use set_loss_function or compute_loss_func "
            f"instead, or switch off what reads them (a z-loss can be a term: 1e-4 * ak.ZLoss())"
        )

    def _with(self, law: LogitLaw) -> NoLogits:
        return NoLogits(self.name, self.head, self.shape, law)


def _number(logits: NoLogits, what: str, number: Any) -> float:
    if isinstance(number, bool | Tensor) or not isinstance(number, SupportsFloat):
        raise logits.unknown(f"{what} a {type(number).__name__}")
    if not 0 < float(number) < math.inf:
        raise logits.unknown(f"{what} {number}")
    return float(number)


def _refused(name: str) -> Callable[..., Any]:
    def method(self: NoLogits, *_: Any) -> Any:
        raise self.unknown(f"calls {name} of its logits")

    return method


for _name in (
    *("add", "radd", "iadd", "sub", "rsub", "isub", "imul", "itruediv", "rtruediv", "neg", "abs"),
    *("pow", "rpow", "matmul", "rmatmul", "mod", "floordiv", "invert", "and", "or"),
    *("eq", "ne", "lt", "le", "gt", "ge", "bool", "len", "iter", "setitem", "array"),
):  # Python looks these up on the class, and for some of them falls back on another
    setattr(NoLogits, f"__{_name}__", _refused(f"__{_name}__"))


def _is_beginning(index: Any) -> bool:
    return isinstance(index, slice) and index.start in (None, 0) and index.step in (None, 1)
