"""Loss and gradient of the official implementations, obtained from their code in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import anl_kernels as ak
from anl_kernels.terms import as_terms
from tests.helpers import error, loss_and_grad

VECTORS = np.load(Path(__file__).parent / "data" / "official_losses.npz")

# As coded: every probability clamped at 1e-7.
RCE, GCE, NGCE = ak.RCE(min_prob=1e-7), ak.GCE(0.7, min_prob=1e-7), ak.NGCE(0.7, min_prob=1e-7)

LOSSES = {
    "ce": ak.CE(),
    "mae": ak.MAE(),
    "rce": RCE,
    "gce_q0.7": GCE,
    "sce_a0.1_b1": 0.1 * ak.CE() + 1.0 * RCE,
    "nce": ak.NCE(),
    "nnce": ak.NNCE(),
    "fl_g0.5": ak.FL(0.5),
    "nfl_g0.5": ak.NFL(0.5),
    "nnfl_g0.5": ak.NNFL(0.5),
    "agce_a1_q2": ak.AGCE(1, 2),
    "agce_a6_q1.5": ak.AGCE(6, 1.5),
    "aul_a1.5_q0.9": ak.AUL(1.5, 0.9),
    "ael_a3": ak.AEL(3),
    "nce_rce_1_1": ak.NCE() + RCE,
    "nce_mae_10_1": 10 * ak.NCE() + 1 * ak.MAE(),
    "nfl_rce_1_1": ak.NFL(0.5) + RCE,
    "anl_ce_5_5": 5 * ak.NCE() + 5 * ak.NNCE(),
    "anl_fl_5_5": 5 * ak.NFL(0.5) + 5 * ak.NNFL(0.5),
    "ngce_q0.7": NGCE,
    "amse_a30": ak.AMSE(30),
    "ece_m1e2": ak.EpsilonCE(1e2, min_prob=1e-8),
    "ece_mae_0.02_5_m1e3": 0.02 * ak.EpsilonCE(1e3, min_prob=1e-8) + 10 * ak.MAE(),
    "efl_mae_0.01_5_m1e5": 0.01 * ak.EpsilonFL(1e5, 0.1, min_prob=1e-8) + 10 * ak.MAE(),
}

# ANL-CE-ER adds a regulariser of the whole batch, not a term of a row: tests/regularisers.
NOT_ROW_LOSSES = {"anl_ce_er_5_5_2"}

CASES = sorted({key.split("/")[0] for key in VECTORS})


def vector(*path):
    return torch.from_numpy(VECTORS["/".join(path)])


def has_nnfl(terms):
    return any(isinstance(term, ak.NNFL) for _, term in as_terms(terms))


def test_every_official_loss_is_covered():
    official = {key.split("/")[1] for key in VECTORS} - {"logits", "target"}
    assert official == set(LOSSES) | NOT_ROW_LOSSES


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_official_values(case, loss, backend, device):
    logits, target = vector(case, "logits").to(device), vector(case, "target").to(device)
    # Their float32 constant shows in NNFL's gradient: see the tests below.
    tolerance = 5e-6 if has_nnfl(LOSSES[loss]) else 1e-6
    value, grad = loss_and_grad(logits, target, LOSSES[loss])
    assert error(value, vector(case, loss, "loss").to(device)) <= tolerance
    assert error(grad, vector(case, loss, "grad").to(device)) <= tolerance


def official_nnfl(logits, target):
    """NNFL with the constants that the official code holds in float32."""
    log_min = torch.tensor(1e-7).log()
    largest = -((1 - 1e-7) ** 0.5) * log_min
    l = logits.log_softmax(-1).clamp(min=log_min.item())
    u = largest + (1 - l.exp()).pow(0.5).detach() * l
    return (1 - u.gather(-1, target[:, None]).squeeze(-1) / u.sum(-1)).mean()


def gradient(function, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(function(logits), logits)[0]


@pytest.mark.parametrize("case", CASES)
def test_float32_constants_explain_the_difference_in_nnfl(case, backend, device):
    logits, target = vector(case, "logits"), vector(case, "target")
    official = vector(case, "nnfl_g0.5", "grad")
    theirs = gradient(lambda z: official_nnfl(z, target), logits)
    _, ours = loss_and_grad(logits.to(device), target.to(device), ak.NNFL(0.5))
    assert error(theirs, official) <= 1e-6
    assert abs(error(ours.cpu(), theirs) - error(ours.cpu(), official)) <= 1e-6


def test_float32_rounds_their_constant():
    assert -torch.tensor(1e-7).log().item() != pytest.approx(-math.log(1e-7), rel=1e-9)
