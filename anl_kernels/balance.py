"""How gradients of normalised terms are brought to one size: the value of ``class_scale``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from anl_kernels.numbers import as_number, shown

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Over = Literal["row", "batch", "running"]


@dataclass(frozen=True, eq=False, repr=False)
class Balance:
    """Multiply the gradients of normalised terms by their denominators, and leave their values.

    A normalised term (NCE, NNCE, NFL, NNFL, NGCE) is divided by a sum over the classes, which its
    gradient is smaller by. Any factor that does not depend on the label may undo that without
    taking from the loss's tolerance of noise (docs/math.md, "Balanced losses"). The loss that is
    reported stays the plain one, between 0 and 1 for each term: its gradient is a surrogate, in
    which the factor is a constant. ``class_scale="batch"`` stands for ``Balance("batch")``.

    Args:
        over: "row": each row by its own denominator, in one pass over the logits. "batch": all rows
            by the mean of their denominators, those of the rows that count in this call; the logits
            are read twice. "running": by a running mean over earlier calls, in one pass;
            it starts at the value of uniform logits, moves in calls of a module in training mode
            that record gradients, and is kept in the module's buffer ``running_summands``.
        momentum: the share of the newest call in the running mean, in (0, 1].
        process_group: ranks of data parallelism whose rows make one batch, each with its own: means
            are over all of them, the same on each, by one exchange of two numbers a term. Without
            it "batch" is the rows of this rank, under gradient accumulation those of this call. A
            ``DTensor`` that is sharded on rows needs none.
        running: (T,) floating, the running mean for ``"running"``, a number for each term: its
            summand's mean over rows and classes, 0 where nothing was seen yet. Updated in place.
            A module makes its own; functions need one.
        training: whether a call moves the running mean; one without gradients, as inside
            ``torch.no_grad()``, never does. A module passes its own mode.

    Raises:
        ValueError: an argument has a value it cannot have.
        TypeError: process_group is no process group.
    """

    over: Over
    momentum: float = 0.1
    process_group: ProcessGroup | None = None
    running: Tensor | None = None
    training: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.over, str) or self.over not in get_args(Over):
            raise ValueError(
                f"over must be one of {', '.join(get_args(Over))}, got {shown(self.over)}"
            )
        momentum = as_number(self.momentum)
        if momentum is None or not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {shown(self.momentum)}")
        if self.process_group is not None:
            from anl_kernels.distributed.collectives import check_group

            check_group(self.process_group)
        if self.running is not None:
            _check_running(self.running)

    def __repr__(self) -> str:
        """As it would be written, without what is the default: ``Balance('batch')``."""
        others = [field for field in fields(self)[1:] if getattr(self, field.name) != field.default]
        given = "".join(f", {field.name}={shown(getattr(self, field.name))}" for field in others)
        return f"Balance({self.over!r}{given})"


def _check_running(running: Tensor) -> None:
    if not isinstance(running, Tensor) or running.dim() != 1 or not running.is_floating_point():
        raise ValueError(
            f"running must be a floating tensor with a number for each term, such as "
            f"torch.zeros(2), got {shown(running)}"
        )
