"""Fused noise-robust losses over very many classes, for PyTorch.

A name's module is imported when the name is first used: this import is a matter of milliseconds.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from anl_kernels._version import __version__

if TYPE_CHECKING:
    from anl_kernels import noise, presets, recipes
    from anl_kernels.backends.choice import empty_cpu_cache, use_backend
    from anl_kernels.balance import Balance
    from anl_kernels.checks import check_labels
    from anl_kernels.distributed.class_shards import ClassShards
    from anl_kernels.functional import Aux, anl, nce, nnce, robust_loss, softmax
    from anl_kernels.linear.functional import linear_robust_loss
    from anl_kernels.linear.log_probs import linear_log_prob
    from anl_kernels.linear.module import LinearRobustLoss
    from anl_kernels.log_probs import LogProbLoss, log_prob
    from anl_kernels.losses import (
        ActiveNegativeLoss,
        ActivePassiveLoss,
        RobustLoss,
        SymmetricCrossEntropyLoss,
    )
    from anl_kernels.regularisers.column_means import column_means
    from anl_kernels.regularisers.entropy import EntropyRegularisedLoss, entropy_regulariser
    from anl_kernels.regularisers.l1 import L1Hook, add_l1_grad_, l1_penalty
    from anl_kernels.report import EnvReport, env_report
    from anl_kernels.terms import (
        AEL,
        AGCE,
        AMSE,
        AUL,
        CE,
        DEFT,
        DFT,
        EAFT,
        FL,
        GCE,
        MAE,
        NCE,
        NFL,
        NGCE,
        NNCE,
        NNFL,
        RCE,
        EpsilonCE,
        EpsilonFL,
        OnlyBottomLogP,
        OnlyBottomP,
        OnlyTopLogP,
        OnlyTopP,
        RelativeGCE,
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
    "DEFT",
    "DFT",
    "EAFT",
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
    "Balance",
    "ClassShards",
    "EntropyRegularisedLoss",
    "EnvReport",
    "EpsilonCE",
    "EpsilonFL",
    "L1Hook",
    "LinearRobustLoss",
    "LogProbLoss",
    "OnlyBottomLogP",
    "OnlyBottomP",
    "OnlyTopLogP",
    "OnlyTopP",
    "RelativeGCE",
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
    "linear_log_prob",
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

_NAMES = {
    "backends.choice": "empty_cpu_cache use_backend",
    "balance": "Balance",
    "checks": "check_labels",
    "distributed.class_shards": "ClassShards",
    "functional": "Aux anl nce nnce robust_loss softmax",
    "linear.functional": "linear_robust_loss",
    "linear.log_probs": "linear_log_prob",
    "linear.module": "LinearRobustLoss",
    "log_probs": "LogProbLoss log_prob",
    "losses": "ActiveNegativeLoss ActivePassiveLoss RobustLoss SymmetricCrossEntropyLoss",
    "regularisers.column_means": "column_means",
    "regularisers.entropy": "EntropyRegularisedLoss entropy_regulariser",
    "regularisers.l1": "L1Hook add_l1_grad_ l1_penalty",
    "report": "EnvReport env_report",
    "terms": "AEL AGCE AMSE AUL CE DEFT DFT EAFT EpsilonCE EpsilonFL FL GCE MAE NCE NFL NGCE NNCE "
    "NNFL OnlyBottomLogP OnlyBottomP OnlyTopLogP OnlyTopP RCE RelativeGCE Term Terms ZLoss",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

if not TYPE_CHECKING:  # to a type checker it would say that every name exists

    def __getattr__(name: str) -> Any:
        """A public name, or a module of the package."""
        if name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
            return globals().setdefault(name, value)
        if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
