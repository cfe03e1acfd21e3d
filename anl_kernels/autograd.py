"""The autograd Functions, for who builds on them. Their arguments are checked by nobody."""

from anl_kernels.linear.autograd import LinearLossFunction
from anl_kernels.rows.autograd import RowGradientFunction, RowLossFunction, SoftmaxFunction

__all__ = ["LinearLossFunction", "RowGradientFunction", "RowLossFunction", "SoftmaxFunction"]
