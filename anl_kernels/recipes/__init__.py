"""Published ways to train on labels that cannot be trusted, where a loss alone is not enough."""

from anl_kernels.recipes.negative_learning import NegativeLearning
from anl_kernels.recipes.truncated import TruncatedGCE

__all__ = ["NegativeLearning", "TruncatedGCE"]
