"""An error names the argument, the value it got, and what to do."""

import re

import pytest
import torch

import anl_kernels as ak
from anl_kernels.integrations.items import LogitsLoss

Z, Y = torch.randn(3, 5), torch.tensor([0, 1, 2])
ANL = 1.0 * ak.NCE() + 1.0 * ak.NNCE()


def loss(scale, **options):
    return ak.robust_loss(Z, Y, ANL, class_scale=scale, **options)


def running(state):
    return loss(ak.Balance("running", running=state))


CASES = {
    "word": (lambda: loss("runing"), ValueError, ["class_scale", "'running'", "'runing'"]),
    "module": (
        lambda: ak.RobustLoss(ANL, class_scale="Batch"),
        ValueError,
        ["class_scale", "'batch'", "'Batch'"],
    ),
    "over": (lambda: ak.Balance("rows"), ValueError, ["over", "row, batch, running", "'rows'"]),
    "over-type": (lambda: ak.Balance(2), ValueError, ["over", "got 2"]),
    "momentum-zero": (lambda: ak.Balance("running", 0), ValueError, ["momentum", "(0, 1]", "0"]),
    "momentum-above": (lambda: ak.Balance("running", 1.5), ValueError, ["momentum", "1.5"]),
    "momentum-nan": (
        lambda: ak.Balance("running", float("nan")),
        ValueError,
        ["momentum", "nan"],
    ),
    "momentum-type": (lambda: ak.Balance("running", "0.1"), ValueError, ["momentum", "'0.1'"]),
    "group": (
        lambda: ak.Balance("batch", process_group="gloo"),
        TypeError,
        ["process_group", "'gloo'", "init_process_group"],
    ),
    "state-type": (
        lambda: ak.Balance("running", running=[0.0, 0.0]),
        ValueError,
        ["running", "torch.zeros(2)", "[0.0, 0.0]"],
    ),
    "state-dtype": (
        lambda: ak.Balance("running", running=torch.zeros(2).long()),
        ValueError,
        ["running", "floating", "(2,)"],
    ),
    "state-shape": (lambda: running(torch.zeros(3)), ValueError, ["running", "2 terms", "(3,)"]),
    "state-device": (
        lambda: running(torch.zeros(2, device="meta")),
        ValueError,
        ["running", "cpu", "meta"],
    ),
    "no-state": (
        lambda: loss("running"),
        ValueError,
        ["class_scale='running'", "ak.RobustLoss", "torch.zeros(2)"],
    ),
    "no-state-in-a-head": (
        lambda: ak.linear_robust_loss(Z, torch.eye(5), Y, ANL, class_scale="running"),
        ValueError,
        ["class_scale='running'", "module"],
    ),
    "no-state-of-anl": (
        lambda: ak.anl(Z, Y, class_scale="running"),
        ValueError,
        ["class_scale='running'", "module"],
    ),
    "two-labels": (
        lambda: loss("batch", target_b=Y.flip(0), lam=0.5),
        ValueError,
        ["class_scale=", "'batch'", "class_scale='row'"],
    ),
    "soft-labels": (
        lambda: ak.RobustLoss(ANL, class_scale="running")(Z, Z.softmax(1)),
        ValueError,
        ["class_scale=", "'running'", "class_scale='row'"],
    ),
    "head-two-labels": (
        lambda: ak.linear_robust_loss(
            Z, torch.eye(5), Y, ANL, class_scale="batch", target_b=Y, lam=0.5
        ),
        ValueError,
        ["class_scale=", "'batch'", "class_scale='row'"],
    ),
    "smoothed-weights": (
        lambda: ak.robust_loss(
            Z, Y, ak.CE(0.1) + ak.NCE(), weight=torch.ones(5), class_scale="batch"
        ),
        ValueError,
        ["class_scale=", "'batch'", "class_scale='row'"],
    ),
    "accumulated-items": (
        lambda: LogitsLoss(ANL, {"class_scale": "running"}),
        TypeError,
        ["class_scale='running'", "'batch'", "running=tensor"],
    ),
    "aux": (lambda: loss(1.0, return_aux="denominator"), ValueError, ["denominators"]),
}


@pytest.mark.parametrize(("call", "error", "words"), CASES.values(), ids=CASES)
def test_messages(call, error, words):
    for learns in (True, False):
        with torch.set_grad_enabled(learns), pytest.raises(error) as raised:
            call()
        for word in words:
            assert re.search(re.escape(word), str(raised.value)), str(raised.value)


def test_repr():
    assert repr(ak.Balance("batch")) == "Balance('batch')"
    moved = ak.Balance("running", 0.5, running=torch.zeros(2))
    assert repr(moved) == "Balance('running', momentum=0.5, running=a tensor of shape (2,))"
    text = repr(ak.RobustLoss(ak.NCE(), class_scale="running"))
    assert text == "RobustLoss(1.0 * NCE(), class_scale=Balance('running'))"


def test_auto_says_what_to_pass_instead():
    with pytest.warns(DeprecationWarning, match=r"class_scale='auto'.*'batch'.*K \* log\(K\)"):
        ak.RobustLoss(ak.NCE(), class_scale="auto")
