"""Fused noise-robust losses over very many classes, for PyTorch."""

from anl_kernels import noise, presets, recipes
from anl_kernels._version import __version__
from anl_kernels.backends.cpu.library import empty_cpu_cache
from anl_kernels.backends.selection import use_backend
from anl_kernels.checks import check_labels
from anl_kernels.distributed.batch import column_means
from anl_kernels.distributed.shards import ClassShards
from anl_kernels.functional import Aux, anl, nce, nnce, robust_loss, softmax
from anl_kernels.linear.functional import linear_robust_loss
from anl_kernels.linear.module import LinearRobustLoss
from anl_kernels.log_prob import LogProbLoss, log_prob
from anl_kernels.losses import (
    ActiveNegativeLoss,
    ActivePassiveLoss,
    RobustLoss,
    SymmetricCrossEntropyLoss,
)
from anl_kernels.regularisers.entropy import EntropyRegularisedLoss, entropy_regulariser
from anl_kernels.regularisers.l1 import L1Hook, add_l1_grad_, l1_penalty
from anl_kernels.report import EnvReport, env_report
from anl_kernels.terms import (
    AEL,
    AGCE,
    AMSE,
    AUL,
    CE,
    DFT,
    FL,
    GCE,
    MAE,
    NCE,
    NFL,
    NGCE,
    NNCE,
    NNFL,
    RCE,
    Term,
    Terms,
    ZLoss,
)

__all__ = [
    "AEL",
    "AGCE",
    "AMSE",
    "AUL",
    "CE",
    "DFT",
    "FL",
    "GCE",
    "MAE",
    "NCE",
    "NFL",
    "NGCE",
    "NNCE",
    "NNFL",
    "RCE",
    "ActiveNegativeLoss",
    "ActivePassiveLoss",
    "Aux",
    "ClassShards",
    "EntropyRegularisedLoss",
    "EnvReport",
    "L1Hook",
    "LinearRobustLoss",
    "LogProbLoss",
    "RobustLoss",
    "SymmetricCrossEntropyLoss",
    "Term",
    "Terms",
    "ZLoss",
    "__version__",
    "add_l1_grad_",
    "anl",
    "check_labels",
    "column_means",
    "empty_cpu_cache",
    "entropy_regulariser",
    "env_report",
    "l1_penalty",
    "linear_robust_loss",
    "log_prob",
    "nce",
    "nnce",
    "noise",
    "presets",
    "recipes",
    "robust_loss",
    "softmax",
    "use_backend",
]
