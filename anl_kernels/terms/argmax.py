"""Terms that compare the label with the row's largest probability."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anl_kernels.terms.base import Term, require
from anl_kernels.terms.row import Row
from anl_kernels.terms.symbols import operand


@dataclass(frozen=True)
class RelativeGCE(Term):
    """Relative GCE, ``-(p_y / max_k p_k)^q l_y`` with the weight held constant.

    The gradient is cross entropy's times ``(p_y / max_k p_k)^q``, where GCE's is times ``p_y^q``.
    At uniform logits the weight is 1: it starts as cross entropy does at any number of classes. It
    fades only where the model prefers another class, which is where labels are wrong.

    This package's own.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.q < math.inf, self, "q", "finite and above 0 (at 0 it is CE)")

    def rows(self, row: Row) -> Tensor:
        weight = torch.exp(operand(self.q) * row.log_ratio)
        return -weight * row.l_y
