"""The losses under study, by name: terms, and the scale of the normalised ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import anl_kernels as ak
from anl_kernels.terms import Term, Terms

AUTO = "auto"
SCALES = (AUTO, "row", "batch", "running")
"""A name that ends with a space and one of these has it as ``class_scale``."""

# Weights are the papers' for CIFAR-10 where "auto" takes them to K, since "auto" is 1 there; of
# NCE+MAE without it, APL's for WebVision, the largest K they published.
TERMS: dict[str, Callable[[int, float], Term | Terms]] = {
    "CE": lambda K, min_prob: ak.CE(),
    "GCE(0.3)": lambda K, min_prob: ak.GCE(q=0.3),
    "GCE(0.5)": lambda K, min_prob: ak.GCE(q=0.5),
    "GCE(0.7)": lambda K, min_prob: ak.GCE(q=0.7),
    "GCE(0.9)": lambda K, min_prob: ak.GCE(q=0.9),
    "K^0.7 GCE(0.7)": lambda K, min_prob: K**0.7 * ak.GCE(q=0.7),
    "RelativeGCE(0.5)": lambda K, min_prob: ak.RelativeGCE(q=0.5),
    "RelativeGCE(0.7)": lambda K, min_prob: ak.RelativeGCE(q=0.7),
    "RelativeGCE(0.5)+ANL(1,1)": lambda K, min_prob: (
        ak.RelativeGCE(q=0.5) + ak.NCE() + ak.NNCE(min_prob=min_prob)
    ),
    "MAE": lambda K, min_prob: ak.MAE(),
    "DFT": lambda K, min_prob: ak.DFT(),
    "0.1 CE + MAE": lambda K, min_prob: 0.1 * ak.CE() + ak.MAE(),
    "NCE": lambda K, min_prob: ak.NCE(),
    "NNCE": lambda K, min_prob: ak.NNCE(min_prob=min_prob),
    "ANL(5,5)": lambda K, min_prob: 5.0 * ak.NCE() + 5.0 * ak.NNCE(min_prob=min_prob),
    "ANL(1,1)": lambda K, min_prob: ak.NCE() + ak.NNCE(min_prob=min_prob),
    "ANL(1,2)": lambda K, min_prob: ak.NCE() + 2.0 * ak.NNCE(min_prob=min_prob),
    "ANL(2,1)": lambda K, min_prob: 2.0 * ak.NCE() + ak.NNCE(min_prob=min_prob),
    "NCE+MAE(50,1)": lambda K, min_prob: 50.0 * ak.NCE() + ak.MAE(),
    "NCE+MAE(1,1)": lambda K, min_prob: ak.NCE() + ak.MAE(),
    "K log K NCE + MAE": lambda K, min_prob: K * math.log(K) * ak.NCE() + ak.MAE(),
    "NCE+AGCE(1,4)": lambda K, min_prob: ak.NCE() + 4.0 * ak.AGCE(a=6.0, q=1.5),
    "K/15 NCE + GCE": lambda K, min_prob: K / 15 * ak.NCE() + ak.GCE(q=0.7),
    "K/6 NCE + GCE": lambda K, min_prob: K / 6 * ak.NCE() + ak.GCE(q=0.7),
    "K/3 NCE + GCE": lambda K, min_prob: K / 3 * ak.NCE() + ak.GCE(q=0.7),
}


def loss_of(name: str, num_classes: int, min_prob: float) -> tuple[Term | Terms, float | str]:
    """Terms and ``class_scale`` of a loss."""
    plain, _, end = name.rpartition(" ")
    scale: float | str = end
    if end not in SCALES:
        plain, scale = name, 1.0
    elif end == AUTO:
        scale = auto_scale(num_classes)
    return TERMS[plain](num_classes, min_prob), scale


def auto_scale(num_classes: int) -> float:
    """What ``class_scale="auto"`` stood for: NCE's gradient at uniform logits is that of K = 10."""
    return num_classes * math.log(num_classes) / (10 * math.log(10))
