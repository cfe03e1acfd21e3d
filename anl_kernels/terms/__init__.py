"""The losses: what each term is, and how terms add up. One class per loss."""

from anl_kernels.terms.argmax import EpsilonCE, EpsilonFL, RelativeGCE
from anl_kernels.terms.base import REGISTRY, Term, Terms, as_terms
from anl_kernels.terms.focal import FL, NFL, NNFL
from anl_kernels.terms.gated import (
    DEFT,
    EAFT,
    OnlyBottomLogP,
    OnlyBottomP,
    OnlyTopLogP,
    OnlyTopP,
)
from anl_kernels.terms.logarithmic import CE, NCE, NNCE, ZLoss
from anl_kernels.terms.probability import AEL, AGCE, AMSE, AUL, DFT, GCE, MAE, NGCE, RCE

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
    "REGISTRY",
    "EpsilonCE",
    "EpsilonFL",
    "OnlyBottomLogP",
    "OnlyBottomP",
    "OnlyTopLogP",
    "OnlyTopP",
    "RelativeGCE",
    "Term",
    "Terms",
    "ZLoss",
    "as_terms",
]
