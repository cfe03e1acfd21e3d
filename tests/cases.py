"""The one table of losses that every test of the suite is parametrised over.

A new term needs an instance in ``TERMS`` and a formula in tests/formulas.py, and nothing else.
"""

import pytest

import anl_kernels as ak
from anl_kernels.terms import as_terms

TERMS = {
    "CE": ak.CE(),
    "CE-smoothed": ak.CE(0.1),
    "NCE": ak.NCE(),
    "NNCE": ak.NNCE(),
    "NNCE-clamped": ak.NNCE(min_prob=1e-3, prob_max=1 - 1e-3),
    "FL": ak.FL(),
    "FL-2": ak.FL(gamma=2.0),
    "FL-true": ak.FL(detach_weight=False),
    "FL-2-true": ak.FL(gamma=2.0, detach_weight=False),
    "NFL": ak.NFL(),
    "NFL-2": ak.NFL(gamma=2.0),
    "NFL-true": ak.NFL(detach_weight=False),
    "NFL-2-true": ak.NFL(gamma=2.0, detach_weight=False),
    "NNFL": ak.NNFL(),
    "NNFL-2": ak.NNFL(gamma=2.0, min_prob=1e-3),
    "NNFL-true": ak.NNFL(detach_weight=False),
    "NNFL-2-true": ak.NNFL(gamma=2.0, min_prob=1e-3, detach_weight=False),
    "MAE": ak.MAE(),
    "GCE": ak.GCE(),
    "GCE-clamped": ak.GCE(q=0.4, min_prob=1e-2),
    "RCE": ak.RCE(),
    "RCE-clamped": ak.RCE(log_clip=1e-3, min_prob=1e-2),
    "AGCE-1-2": ak.AGCE(a=1, q=2),
    "AGCE-6-1.5": ak.AGCE(a=6, q=1.5),
    "AUL-1.5-0.9": ak.AUL(a=1.5, q=0.9),
    "AUL-6.3-1.5": ak.AUL(a=6.3, q=1.5),
    "AEL": ak.AEL(a=3),
    "DFT": ak.DFT(),
    "NGCE": ak.NGCE(),
    "NGCE-clamped": ak.NGCE(q=0.4, min_prob=1e-2),
    "AMSE": ak.AMSE(a=30),
    "RelativeGCE": ak.RelativeGCE(),
    "EpsilonCE": ak.EpsilonCE(m=0.5),
    "EpsilonCE-clamped": ak.EpsilonCE(m=1e3, min_prob=1e-5),
    "EpsilonFL": ak.EpsilonFL(m=20),
    "EpsilonFL-clamped": ak.EpsilonFL(m=1e3, gamma=0.5, min_prob=1e-5),
    "OnlyTopP": ak.OnlyTopP(0.2),
    "OnlyBottomP": ak.OnlyBottomP(0.3),
    "OnlyTopLogP": ak.OnlyTopLogP(0.1),
    "OnlyBottomLogP": ak.OnlyBottomLogP(0.4),
    "EAFT": ak.EAFT(),
    "EAFT-0.5": ak.EAFT(alpha=0.5, unit=2.0),
    "DEFT": ak.DEFT(),
    "ZLoss": ak.ZLoss(),
}

_one_of_each_class = {type(term): term for term in TERMS.values()}

SUMS = {
    "ANL-CE": 5.0 * ak.NCE() + 5.0 * ak.NNCE(),
    "ANL-FL": 5.0 * ak.NFL() + 2.0 * ak.NNFL(),
    "APL": 10.0 * ak.NCE() + 0.1 * ak.RCE(),
    "SCE": 0.1 * ak.CE() + 1.0 * ak.RCE(),
    "all": sum(0.1 * (i + 1) * term for i, term in enumerate(_one_of_each_class.values())),
}

CASES = {name: as_terms(terms) for name, terms in (TERMS | SUMS).items()}

# One of each kind of sum a kernel makes (none, affine, dense, the lse's own slope, several), for
# tests of what surrounds the formulas.
KINDS = ("GCE", "CE-smoothed", "NNCE-clamped", "AMSE", "ZLoss", "ANL-CE")


DETACHED = (ak.DFT, ak.RelativeGCE, ak.EpsilonFL, ak.EAFT, ak.DEFT)


def is_detached(terms):
    """Whether some factor is a constant by definition, so that the gradient is not the slope."""
    return any(isinstance(t, DETACHED) or getattr(t, "detach_weight", False) for _, t in terms)


def is_shift_invariant(terms):
    return not any(isinstance(term, ak.ZLoss) for _, term in terms)


def over(names=CASES, where=lambda terms: True):
    """Parametrise a test's ``terms`` over cases, by name."""
    chosen = [pytest.param(CASES[name], id=name) for name in names if where(CASES[name])]
    return pytest.mark.parametrize("terms", chosen)
