"""The losses as modules that stand where ``torch.nn.CrossEntropyLoss`` stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from anl_kernels import checks
from anl_kernels.balance import Balance
from anl_kernels.functional import Aux, robust_loss
from anl_kernels.numbers import shown
from anl_kernels.options import OF_CALLS, OPTION_CHECKS, LossOptions
from anl_kernels.terms import CE, MAE, NCE, NFL, NNCE, NNFL, RCE, Term, Terms, as_terms

_T = TypeVar("_T")


class Criterion(nn.Module):
    """What the modules share: terms, and the keywords that are fixed for every call."""

    keywords: ClassVar[type] = LossOptions
    option_checks: ClassVar[Mapping[str, Callable[[Any], Any]]] = OPTION_CHECKS
    weight: Tensor | None
    running_summands: Tensor | None

    def __init__(self, terms: Term | Terms, options: dict[str, Any]) -> None:
        super().__init__()
        self.terms = as_terms(terms)
        allowed = set(self.keywords.__annotations__) - set(OF_CALLS)
        unknown = set(options) - allowed
        if unknown:
            raise TypeError(
                f"unknown option {', '.join(sorted(unknown))}; the options of a module are "
                f"{', '.join(sorted(allowed))}; {', '.join(OF_CALLS)} go to its call"
            )
        self.terms.check_weights_are_leaves()
        self.register_buffer("weight", checks.check_fixed_weight(options.pop("weight", None)))
        checked = self.option_checks
        self.options = {
            name: checked[name](value) if name in checked else value
            for name, value in options.items()
        }
        self.register_buffer("running_summands", self._first_summands())
        for i, tensor in enumerate(self.terms.tensors):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"term_weight_{i}", tensor)

    def current_terms(self) -> Terms:
        """The terms with the parameters that the module has now; functional_call replaces them."""
        if not self._parameters:
            return self.terms
        tensors = tuple(
            getattr(self, f"term_weight_{i}", tensor) for i, tensor in enumerate(self.terms.tensors)
        )
        return Terms(self.terms.terms, self.terms.factors, tensors)

    def current_options(self) -> dict[str, Any]:
        """The options, a running mean with the buffer and the mode that the module has now."""
        running = self._buffers.get("running_summands")  # a module of an old pickle has none
        given = self.options.get("class_scale")
        if running is None or not isinstance(given, Balance) or given.over != "running":
            return self.options
        now = replace(given, running=running, training=self.training)
        return self.options | {"class_scale": now}

    def _first_summands(self) -> Tensor | None:
        balance = self.options.get("class_scale")
        if not isinstance(balance, Balance) or balance.over != "running":
            return None
        return torch.zeros(len(self.terms)) if balance.running is None else balance.running

    def extra_repr(self) -> str:
        """The terms and the options that were given."""
        given = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{self.terms!r}{given}"


class RobustLoss(Criterion):
    """A weighted sum of terms as a module: one fused kernel a call.

    Args:
        terms: a term or a weighted sum of terms, such as ``5.0 * ak.NCE() + 5.0 * ak.NNCE()``. A
            weight that is an ``nn.Parameter`` becomes a parameter of the module.
        **options: keywords of :func:`anl_kernels.robust_loss`, fixed for every call. ``weight``
            becomes a buffer. ``sample_weight``, ``target_b`` and ``lam`` go to the call.

    Raises:
        TypeError: terms is not a term, or an option is unknown or of a wrong type.
        ValueError: an option has a value it cannot have; a weight among the terms was computed of
            tensors that require grad, or ``weight`` requires grad.

    Example:
        >>> criterion = ak.RobustLoss(ak.GCE(q=0.7), ignore_index=-100)
        >>> loss = criterion(logits, target)
    """

    def __init__(self, terms: Term | Terms, **options: Unpack[LossOptions]) -> None:
        super().__init__(terms, dict(options))

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        *,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Aux]:
        """The loss; shapes and errors as :func:`anl_kernels.robust_loss`."""
        weight = self._buffers["weight"]  # self.weight takes a way through __getattr__
        if weight is sample_weight is target_b is lam is None and not self.options:
            return robust_loss(logits, target, self.current_terms())  # 0.8 us less
        return robust_loss(
            logits,
            target,
            self.current_terms(),
            weight=weight,
            sample_weight=sample_weight,
            target_b=target_b,
            lam=lam,
            **self.current_options(),
        )


class ActiveNegativeLoss(RobustLoss):
    """Active negative loss: ``alpha NCE + beta NNCE``, or ``alpha NFL + beta NNFL`` (ANL-FL).

    Args:
        alpha: weight of the active term.
        beta: weight of the negative term.
        active: "nce" for ANL-CE, "nfl" for ANL-FL.
        gamma: exponent of the focal terms, for "nfl".
        min_prob: lower clamp of the negative term; must stay below 1/K.
        **options: as for :class:`RobustLoss`.

    Source: Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS
    2023. The paper adds an L1 penalty over the parameters, which is not part of this module.
    """

    def __init__(
        self,
        alpha: float | Tensor = 5.0,
        beta: float | Tensor = 5.0,
        active: Literal["nce", "nfl"] = "nce",
        gamma: float = 0.5,
        min_prob: float = 1e-7,
        **options: Unpack[LossOptions],
    ) -> None:
        pairs: dict[str, tuple[Term, Term]] = {
            "nce": (NCE(), NNCE(min_prob)),
            "nfl": (NFL(gamma), NNFL(gamma, min_prob)),
        }
        active_term, negative_term = _choose("active", active, pairs)
        super().__init__(alpha * active_term + beta * negative_term, **options)


class ActivePassiveLoss(RobustLoss):
    """Active passive loss: ``alpha`` times NCE or NFL, plus ``beta`` times MAE or RCE.

    Args:
        alpha: weight of the active term.
        beta: weight of the passive term.
        active: "nce" or "nfl".
        passive: "mae" or "rce".
        gamma: exponent of the focal term, for "nfl".
        **options: as for :class:`RobustLoss`.

    Source: Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.
    """

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        beta: float | Tensor = 1.0,
        active: Literal["nce", "nfl"] = "nce",
        passive: Literal["mae", "rce"] = "rce",
        gamma: float = 0.5,
        **options: Unpack[LossOptions],
    ) -> None:
        active_term = _choose("active", active, {"nce": NCE(), "nfl": NFL(gamma)})
        passive_term = _choose("passive", passive, {"mae": MAE(), "rce": RCE()})
        super().__init__(alpha * active_term + beta * passive_term, **options)


class SymmetricCrossEntropyLoss(RobustLoss):
    """Symmetric cross entropy: ``alpha CE + beta RCE``.

    Args:
        alpha: weight of CE.
        beta: weight of RCE.
        **options: as for :class:`RobustLoss`.

    Source: Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019.
    """

    def __init__(
        self,
        alpha: float | Tensor = 0.1,
        beta: float | Tensor = 1.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(alpha * CE() + beta * RCE(), **options)


def _choose(name: str, key: str, choices: dict[str, _T]) -> _T:
    if not isinstance(key, str) or key not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(key)}")
    return choices[key]
