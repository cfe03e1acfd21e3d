"""Losses with the hyper-parameters that papers on noisy labels published, by data set.

``anl_ce("cifar100")`` is a :class:`anl_kernels.RobustLoss`, ``anl_ce_er("cifar100")`` an
:class:`anl_kernels.EntropyRegularisedLoss`. ``get("anl_ce", "cifar100")`` is the :class:`Preset`
behind it, with its source and with what the recipe needs beside the loss, such as ANL's L1 factor.
``list()`` gives all of them.

The weights belong to the number of classes of their data set: the normalised terms shrink as 1/K.
A loss of this module that meets more than four times as many classes, or fewer than a quarter, says
so in a warning, once for each preset (not from inside compiled code).
RCE and GCE are exact here, while the official code clamps probabilities at 1e-7: for its values
write ``RCE(min_prob=1e-7)`` or ``GCE(min_prob=1e-7)``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from anl_kernels.checks import class_dim
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.losses import RobustLoss
from anl_kernels.options import LossOptions
from anl_kernels.regularisers.entropy import EntropyRegularisedLoss
from anl_kernels.rows.loss import Aux
from anl_kernels.terms import (
    AEL,
    AGCE,
    AMSE,
    AUL,
    CE,
    GCE,
    MAE,
    NCE,
    NFL,
    NNCE,
    NNFL,
    RCE,
    EpsilonCE,
    EpsilonFL,
    RelativeGCE,
    Term,
    Terms,
    as_terms,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Preset:
    """One published setting of a loss on a data set."""

    name: str
    """The function of this module that makes the loss."""
    dataset: str
    """"mnist", "cifar10", "cifar100", "webvision" (its first 50 classes) or "clothing1m"; where the
    setting depends on the noise too, with its kind and rate: "cifar100-symmetric-0.4"."""
    num_classes: int
    """Of the data set."""
    terms: Terms
    l1: float | None
    """Factor of the sum of ``|parameter|`` over all parameters, biases and norms included: 0 for
    losses without it, None where the source of the weights does not state it."""
    entropy_weight: float
    """lambda, the factor of :func:`anl_kernels.entropy_regulariser`; 0 for losses without it."""
    source: str
    """The paper of the loss."""
    note: str
    """What else the recipe needs, and where the setting comes from if not from ``source``."""


@dataclass(frozen=True)
class _Recipe:
    make: Callable[..., Term | Terms]
    source: str
    settings: Mapping[str, tuple[float, ...]]
    """For each data set, the arguments of ``make``."""
    l1: Mapping[str, float] | None = None
    entropy_weights: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def _sum(alpha: float, first: Term, beta: float, second: Term) -> Terms:
    """The weighted sum, without a first term of weight 0."""
    return alpha * first + beta * second if alpha else beta * second


_ANL = "Ye et al., Active Negative Loss Functions for Learning with Noisy Labels, NeurIPS 2023"
_ANL_ER = "Ye et al., Active Negative Loss: A Robust Framework for Learning with Noisy Labels, 2024"
_APL = "Ma et al., Normalized Loss Functions for Deep Learning with Noisy Labels, ICML 2020"
_ALF = "Zhou et al., Asymmetric Loss Functions for Learning with Noisy Labels, ICML 2021"
_SCE = "Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels, ICCV 2019"
_GCE = (
    "Zhang and Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with "
    "Noisy Labels, NeurIPS 2018"
)
_JAL = "Joint Asymmetric Loss for Learning with Noisy Labels, ICCV 2025"

_EPSILON = (
    "Wang et al., Epsilon-Softmax: Approximating One-Hot Vectors for Mitigating Label Noise, "
    "NeurIPS 2024"
)

_NUM_CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100, "webvision": 50, "clothing1m": 14}
_FAR = 4  # times as many classes, or as few
_WEIGHT_DECAY = {
    "mnist": 1e-3, "cifar10": 1e-4, "cifar100": 1e-5, "webvision": 3e-5, "clothing1m": 1e-3,
}  # fmt: skip
_FOLLOW_UP = "weights as in follow-up papers"
_JAL_L1 = {"cifar10": 5e-5, "cifar100": 5e-6, "webvision": 0.0, "clothing1m": 0.0}
_MIN_PROB_OF_EPSILON = 1e-8
"""No detail at these m: labels with p_y below (1 + m) times it have no gradient."""
_EPSILON_SETTINGS = {
    "cifar10-symmetric": (0.01, 5, 1e5),
    "cifar10-asymmetric": (0.02, 5, 1e3),
    "cifar10-instance": (0.045, 10, 1e5),
    "cifar100-symmetric-0.0": (0.1, 1, 1e4),
    "cifar100-symmetric-0.2": (0.05, 1, 1e4),
    "cifar100-symmetric-0.4": (0.03, 1, 1e4),
    "cifar100-symmetric-0.6": (0.00125, 1, 1e4),
    "cifar100-symmetric-0.8": (0.0075, 1, 1e4),
    "cifar100-asymmetric-0.1": (0.015, 1, 1e2),
    "cifar100-asymmetric-0.2": (0.007, 1, 1e2),
    "cifar100-asymmetric-0.3": (0.005, 1, 1e2),
    "cifar100-asymmetric-0.4": (0.004, 1, 1e2),
    "webvision": (0.015, 0.3, 1e3),
    "clothing1m": (0.012, 0.1, 1e3),
}
_EPSILON_NOTES = {
    dataset: "also for instance-dependent noise"
    for dataset in _EPSILON_SETTINGS
    if dataset.startswith("cifar100-symmetric")
}

_TABLE = {
    "anl_ce": _Recipe(
        lambda alpha, beta: _sum(alpha, NCE(), beta, NNCE()),
        _ANL,
        {
            "mnist": (1, 1),
            "cifar10": (5, 5),
            "cifar100": (10, 1),
            "webvision": (20, 1),
            "clothing1m": (5, 0.1),
        },
        l1={"mnist": 1e-6, "cifar10": 5e-5, "cifar100": 5e-7, "webvision": 5e-6},
    ),
    "anl_ce_er": _Recipe(
        # As coded, these clamp probabilities from above too.
        lambda alpha, beta: _sum(alpha, NCE(), beta, NNCE(1e-7, prob_max=1 - 1e-7)),
        _ANL_ER,
        {"cifar10": (5, 5), "cifar100": (10, 1)},
        l1={"cifar10": 5e-5, "cifar100": 5e-7},
        entropy_weights={"cifar10": 2.0, "cifar100": 0.01},
    ),
    "anl_fl": _Recipe(
        lambda alpha, beta: _sum(alpha, NFL(gamma=0.5), beta, NNFL(gamma=0.5)),
        _ANL,
        {"mnist": (1, 1), "cifar10": (5, 5), "cifar100": (10, 1), "clothing1m": (5, 0.1)},
        l1={"mnist": 1e-6, "cifar10": 5e-5, "cifar100": 5e-7},
    ),
    "nce_rce": _Recipe(
        lambda alpha, beta: _sum(alpha, NCE(), beta, RCE()),
        _APL,
        {
            "mnist": (1, 10),
            "cifar10": (1, 1),
            "cifar100": (10, 0.1),
            "webvision": (50, 0.1),
            "clothing1m": (10, 1),
        },
    ),
    "nfl_rce": _Recipe(
        lambda alpha, beta: _sum(alpha, NFL(gamma=0.5), beta, RCE()),
        _APL,
        {"mnist": (1, 10), "cifar10": (1, 1), "cifar100": (10, 0.1), "webvision": (50, 0.1)},
    ),
    "nce_mae": _Recipe(
        lambda alpha, beta: _sum(alpha, NCE(), beta, MAE()),
        _APL,
        {"mnist": (1, 10), "cifar10": (1, 1), "cifar100": (10, 0.1), "webvision": (50, 1)},
        notes={"cifar100": f"{_FOLLOW_UP}; the source has alpha 10, beta 1"},
    ),
    "nfl_mae": _Recipe(
        lambda alpha, beta: _sum(alpha, NFL(gamma=0.5), beta, MAE()),
        _APL,
        {"mnist": (1, 10), "cifar10": (1, 1), "cifar100": (10, 1), "webvision": (50, 1)},
    ),
    "sce": _Recipe(
        lambda alpha, beta: _sum(alpha, CE(), beta, RCE()),
        _SCE,
        {
            "mnist": (0.01, 1),
            "cifar10": (0.1, 1),
            "cifar100": (6, 0.1),
            "webvision": (10, 1),
            "clothing1m": (10, 1),
        },
    ),
    "gce": _Recipe(
        GCE,
        _GCE,
        {
            "mnist": (0.7,),
            "cifar10": (0.7,),
            "cifar100": (0.7,),
            "webvision": (0.7,),
            "clothing1m": (0.6,),
        },
    ),
    "nce_agce": _Recipe(
        lambda alpha, beta, a, q: _sum(alpha, NCE(), beta, AGCE(a, q)),
        _ALF,
        {
            "mnist": (0, 1, 4, 0.2),
            "cifar10": (1, 4, 6, 1.5),
            "cifar100": (10, 0.1, 1.8, 3),
            "webvision": (50, 0.1, 2.5, 3),
            "clothing1m": (50, 0.1, 2.5, 3),
        },
    ),
    "nce_aul": _Recipe(
        lambda alpha, beta, a, q: _sum(alpha, NCE(), beta, AUL(a, q)),
        _ALF,
        {"mnist": (0, 1, 3, 0.1), "cifar10": (1, 4, 6.3, 1.5), "cifar100": (10, 0.015, 6, 3)},
    ),
    "nce_ael": _Recipe(
        lambda alpha, beta, a: _sum(alpha, NCE(), beta, AEL(a)),
        _ALF,
        {"mnist": (0, 1, 3.5), "cifar10": (1, 4, 5), "cifar100": (10, 0.1, 1.5)},
    ),
    "nce_amse": _Recipe(
        lambda alpha, beta, a: _sum(alpha, NCE(), beta, AMSE(a)),
        _JAL,
        {
            "cifar10": (1, 1, 30),
            "cifar100": (5, 1, 20),
            "webvision": (50, 1, 30),
            "clothing1m": (5, 0.1, 5),
        },
        l1=_JAL_L1,
    ),
    "nfl_amse": _Recipe(
        lambda alpha, beta, a: _sum(alpha, NFL(gamma=0.5), beta, AMSE(a)),
        _JAL,
        {
            "cifar10": (1, 1, 30),
            "cifar100": (5, 1, 20),
            "webvision": (50, 1, 30),
            "clothing1m": (5, 0.1, 5),
        },
        l1=_JAL_L1,
    ),
    # The MAE of their code is 2 - 2 p_y.
    "eps_ce_mae": _Recipe(
        lambda alpha, beta, m: _sum(alpha, EpsilonCE(m, _MIN_PROB_OF_EPSILON), 2 * beta, MAE()),
        _EPSILON,
        _EPSILON_SETTINGS,
        notes=_EPSILON_NOTES,
    ),
    "eps_fl_mae": _Recipe(
        lambda alpha, beta, m: _sum(
            alpha, EpsilonFL(m, 0.1, _MIN_PROB_OF_EPSILON), 2 * beta, MAE()
        ),
        _EPSILON,
        _EPSILON_SETTINGS,
        notes=_EPSILON_NOTES,
    ),
}


def get(name: str, dataset: str) -> Preset:
    """The published setting of a loss on a data set.

    Args:
        name: a loss function of this module, such as "anl_ce".
        dataset: such as "cifar100".

    Raises:
        ValueError: there is no such loss, or the loss has no setting for the data set.
    """
    if not isinstance(name, str) or name not in _TABLE:
        raise ValueError(f"preset must be one of {', '.join(_TABLE)}, got {name!r}")
    recipe = _TABLE[name]
    if not isinstance(dataset, str) or dataset not in recipe.settings:
        raise ValueError(
            f"dataset must be one of {', '.join(recipe.settings)} for {name}, got {dataset!r}"
        )
    terms = as_terms(recipe.make(*recipe.settings[dataset]))
    l1 = recipe.l1.get(dataset) if recipe.l1 else 0.0
    entropy_weight = recipe.entropy_weights.get(dataset, 0.0)
    return Preset(
        name, dataset, _NUM_CLASSES[_images(dataset)], terms, l1, entropy_weight, recipe.source,
        _note(recipe, dataset),
    )  # fmt: skip


def _images(dataset: str) -> str:
    """A data set without its noise."""
    return dataset.partition("-")[0]


def list() -> tuple[Preset, ...]:
    """Every preset."""
    return tuple(get(name, dataset) for name in _TABLE for dataset in _TABLE[name].settings)


def anl_ce(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """ANL-CE, ``alpha NCE + beta NNCE`` (Ye et al., NeurIPS 2023).

    The paper adds ``get("anl_ce", dataset).l1`` times :func:`anl_kernels.l1_penalty` of all
    parameters, sets weight decay to 0, and clips the norm of the gradient of the sum at 5.0.

    Args:
        dataset: mnist, cifar10, cifar100, webvision or clothing1m.
        **options: as for :class:`anl_kernels.RobustLoss`.

    Raises:
        ValueError: there is no setting for the data set.
    """
    return _loss("anl_ce", dataset, options)


def anl_ce_er(dataset: str, **options: Unpack[LossOptions]) -> EntropyRegularisedLoss:
    """ANL-CE with the entropy regulariser (Ye et al., 2024); L1 and the rest as :func:`anl_ce`.

    Args:
        dataset: cifar10 or cifar100.
        **options: as for :class:`anl_kernels.RobustLoss`, but ``process_group`` is that of
            :class:`anl_kernels.EntropyRegularisedLoss`: ranks that share the batch.

    Raises:
        ValueError: there is no setting for the data set, or the regularised loss refuses an option.
    """
    preset = get("anl_ce_er", dataset)
    group = cast("ProcessGroup | None", options.pop("process_group", None))
    criterion = _PresetLoss(preset, options)
    return EntropyRegularisedLoss(criterion, preset.entropy_weight, process_group=group)


def anl_fl(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """ANL-FL, ``alpha NFL + beta NNFL`` with gamma 0.5; L1 and the rest as :func:`anl_ce`."""
    return _loss("anl_fl", dataset, options)


def nce_rce(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha NCE + beta RCE`` (Ma et al., ICML 2020), with RCE exact, not clamped at 1e-7."""
    return _loss("nce_rce", dataset, options)


def nfl_rce(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha NFL + beta RCE`` (Ma et al., ICML 2020), with RCE exact, not clamped at 1e-7."""
    return _loss("nfl_rce", dataset, options)


def nce_mae(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha NCE + beta MAE`` (Ma et al., ICML 2020)."""
    return _loss("nce_mae", dataset, options)


def nfl_mae(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha NFL + beta MAE`` (Ma et al., ICML 2020)."""
    return _loss("nfl_mae", dataset, options)


def sce(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha CE + beta RCE`` (Wang et al., ICCV 2019), with RCE exact, not clamped at 1e-7."""
    return _loss("sce", dataset, options)


def gce(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """GCE (Zhang and Sabuncu, NeurIPS 2018), exact, not clamped at 1e-7."""
    return _loss("gce", dataset, options)


def nce_agce(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha NCE + beta AGCE`` (Zhou et al., ICML 2021); on MNIST alpha is 0: AGCE alone."""
    return _loss("nce_agce", dataset, options)


def nce_aul(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha NCE + beta AUL`` (Zhou et al., ICML 2021); on MNIST alpha is 0: AUL alone."""
    return _loss("nce_aul", dataset, options)


def nce_ael(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha NCE + beta AEL`` (Zhou et al., ICML 2021); on MNIST alpha is 0: AEL alone."""
    return _loss("nce_ael", dataset, options)


def nce_amse(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """JAL-CE, ``alpha NCE + beta AMSE`` (Joint Asymmetric Loss, ICCV 2025).

    On CIFAR the code adds an L1 penalty as ANL's does; see :func:`anl_ce`.
    """
    return _loss("nce_amse", dataset, options)


def nfl_amse(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """JAL-FL, ``alpha NFL + beta AMSE`` with gamma 0.5; L1 and the rest as :func:`nce_amse`."""
    return _loss("nfl_amse", dataset, options)


def eps_ce_mae(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """CE of epsilon-softmax and MAE, ``alpha EpsilonCE(m) + 2 beta MAE`` (Wang et al., 2024).

    The factor 2 is that of their code's MAE. p' is clamped at 1e-8 as theirs is.

    Args:
        dataset: cifar10-symmetric, cifar10-asymmetric or cifar10-instance; cifar100-symmetric-RATE
            with a rate of 0.0, 0.2, 0.4, 0.6 or 0.8, or cifar100-asymmetric-RATE with one of 0.1,
            0.2, 0.3 or 0.4; webvision or clothing1m.
        **options: as for :class:`anl_kernels.RobustLoss`.

    Raises:
        ValueError: there is no setting for the data set and its noise.
    """
    return _loss("eps_ce_mae", dataset, options)


def eps_fl_mae(dataset: str, **options: Unpack[LossOptions]) -> RobustLoss:
    """``alpha EpsilonFL(m, gamma=0.1) + 2 beta MAE``, otherwise as :func:`eps_ce_mae`."""
    return _loss("eps_fl_mae", dataset, options)


jal_ce = nce_amse
jal_fl = nfl_amse


def large_vocabulary(**options: Unpack[LossOptions]) -> RobustLoss:
    """``RelativeGCE(q=0.7)``: where there are a thousand classes or more, and no rate was searched.

    No paper's, but what this package's study of many classes ended with (docs/many_classes.md). Its
    gradient starts as large as cross entropy's at any number of classes, and of the losses that
    were tried it lost least by a learning rate that was too high. It was **not** shown to beat GCE
    with a rate and a q of its own, and was the lowest, by one seed, where labels move to one other
    class each. On clean labels cross entropy was best.

    Args:
        **options: as for :class:`anl_kernels.RobustLoss`.
    """
    return RobustLoss(RelativeGCE(), **options)


def _loss(name: str, dataset: str, options: LossOptions) -> RobustLoss:
    return _PresetLoss(get(name, dataset), options)


_warned: set[tuple[str, str]] = set()


class _PresetLoss(RobustLoss):
    """A :class:`RobustLoss` that knows which number of classes its weights were found at."""

    def __init__(self, preset: Preset, options: LossOptions) -> None:
        super().__init__(preset.terms, **options)
        self._preset = preset

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        *,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Aux]:
        result = super().forward(logits, target, sample_weight, target_b=target_b, lam=lam)
        if not torch.compiler.is_compiling():
            _warn_of_classes(self._preset, self._classes_of(logits))
        return result

    def _classes_of(self, logits: Tensor) -> int:
        """Of all ranks; without a vocabulary's padding."""
        given, group = self.options.get("num_classes"), self.options.get("process_group")
        if isinstance(given, int):
            return given
        if isinstance(group, ClassShards):
            return group.num_classes
        here = logits.shape[class_dim(logits)]
        return here * cast("ProcessGroup", group).size() if group is not None else here

    def _get_name(self) -> str:
        return "RobustLoss"


def _warn_of_classes(preset: Preset, num_classes: int) -> None:
    few, many = sorted((preset.num_classes, num_classes))
    key = preset.name, preset.dataset
    if many <= _FAR * few or key in _warned:
        return
    _warned.add(key)
    warnings.warn(
        f"the weights of presets.{preset.name}({preset.dataset!r}) were found at "
        f"{preset.num_classes} classes, and the logits have {num_classes}: the normalised terms "
        f"shrink as 1/K, and the balance of the sum does not carry over; choose a loss for that "
        f"number of classes (docs/many_classes.md), or build the sum yourself with "
        f"ak.RobustLoss(presets.get({preset.name!r}, {preset.dataset!r}).terms)",
        stacklevel=2,
    )


def _note(recipe: _Recipe, dataset: str) -> str:
    notes = [recipe.notes[dataset]] if dataset in recipe.notes else []
    if dataset == "clothing1m" and recipe.source not in (_JAL, _EPSILON):
        notes.append(_FOLLOW_UP)
    elif recipe.l1 and recipe.l1[dataset]:
        notes.append("weight decay 0; gradient norm, L1 term included, clipped at 5.0")
    else:
        notes.append(f"weight decay {_WEIGHT_DECAY[_images(dataset)]:g}")
    return "; ".join(notes)
