"""Fused noise-robust losses over very many classes, for PyTorch."""

from anl_kernels import presets
from anl_kernels._version import __version__
from anl_kernels.backends.cpu.library import empty_cpu_cache
from anl_kernels.backends.selection import use_backend
from anl_kernels.checks import check_labels
from anl_kernels.functional import Aux, anl, nce, nnce, robust_loss, softmax
from anl_kernels.losses import (
    ActiveNegativeLoss,
    ActivePassiveLoss,
    RobustLoss,
    SymmetricCrossEntropyLoss,
)
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
    "EnvReport",
    "RobustLoss",
    "SymmetricCrossEntropyLoss",
    "Term",
    "Terms",
    "ZLoss",
    "__version__",
    "anl",
    "check_labels",
    "empty_cpu_cache",
    "env_report",
    "nce",
    "nnce",
    "presets",
    "robust_loss",
    "softmax",
    "use_backend",
]
