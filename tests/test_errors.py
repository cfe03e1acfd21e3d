"""Every error names the argument, the value received and the remedy."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.options import LossOptions
from anl_kernels.settings import settings

LOGITS = torch.zeros(3, 5)
TARGET = torch.tensor([0, 1, 2])


def loss(logits=LOGITS, target=TARGET, terms=None, **options):
    return ak.robust_loss(logits, target, ak.NCE() if terms is None else terms, **options)


def long(*values):
    return torch.tensor(values)


ARGUMENTS = {
    "logits-list": (lambda: loss([[1.0]]), TypeError, ["logits", "list"]),
    "logits-int": (lambda: loss(LOGITS.int()), TypeError, ["logits", "int32", ".float()"]),
    "logits-complex": (lambda: loss(LOGITS.cfloat()), TypeError, ["logits", "complex64"]),
    "logits-0d": (lambda: loss(torch.tensor(1.0)), ValueError, ["logits", "(N, K", "()"]),
    "logits-no-classes": (lambda: loss(torch.zeros(3, 0)), ValueError, ["logits", "(3, 0)"]),
    "num_classes-0": (lambda: loss(num_classes=0), ValueError, ["num_classes", "[1, ", "got 0"]),
    "num_classes-many": (lambda: loss(num_classes=99), ValueError, ["num_classes", "99"]),
    "num_classes-float": (lambda: loss(num_classes=2.0), ValueError, ["num_classes", "2.0"]),
    "process_group": (
        lambda: loss(process_group="gloo"),
        TypeError,
        ["process_group", "ProcessGroup", "ClassShards", "'gloo'"],
    ),
    "target-list": (lambda: loss(target=[0, 1, 2]), TypeError, ["target", "list"]),
    "target-float": (
        lambda: loss(target=torch.zeros(3)),
        TypeError,
        ["target", "float32", "class indices", "(3, 5)", ".long()"],
    ),
    "target-float-shape": (
        lambda: loss(target=torch.zeros(3, 4)),
        ValueError,
        ["target", "(3, 5)", "(3, 4)"],
    ),
    "target-float-ignored": (
        lambda: loss(target=torch.zeros(3, 5), ignore_index=2),
        ValueError,
        ["ignore_index=2", "probabilities", "sample_weight"],
    ),
    "target-float-two": (
        lambda: loss(target=torch.zeros(3, 5), target_b=TARGET, lam=0.5),
        TypeError,
        ["target_b", "lam", "before the call"],
    ),
    "lam-alone": (lambda: loss(lam=0.5), TypeError, ["lam needs target_b"]),
    "target_b-alone": (lambda: loss(target_b=TARGET), TypeError, ["target_b needs lam"]),
    "lam-high": (lambda: loss(target_b=TARGET, lam=1.5), ValueError, ["lam", "[0, 1]", "1.5"]),
    "lam-word": (lambda: loss(target_b=TARGET, lam="x"), TypeError, ["lam", "'x'"]),
    "lam-shape": (
        lambda: loss(target_b=TARGET, lam=torch.ones(2)),
        ValueError,
        ["lam", "(3,)", "(2,)"],
    ),
    "target_b-float": (
        lambda: loss(target_b=torch.zeros(3), lam=0.5),
        TypeError,
        ["target_b", "float32", "class indices"],
    ),
    "target_b-label": (
        lambda: loss(target_b=long(0, 5, 1), lam=0.5),
        IndexError,
        ["target_b[1]", "5", "[0, 5)"],
    ),
    "log_prob-float": (
        lambda: ak.log_prob(LOGITS, torch.zeros(3)),
        TypeError,
        ["classes", "float32", "ak.robust_loss"],
    ),
    "target-uint8": (lambda: loss(target=TARGET.byte()), TypeError, ["target", "uint8", ".long()"]),
    "target-bool": (lambda: loss(target=TARGET.bool()), TypeError, ["target", "bool"]),
    "target-shape": (
        lambda: loss(target=long(0, 1)),
        ValueError,
        ["target", "(3,)", "(3, 5)", "(2,)"],
    ),
    "target-classes-last": (
        lambda: loss(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)),
        ValueError,
        ["target", "(2, 5)", "(2, 3)", "dimension 1"],
    ),
    "target-1d": (lambda: loss(torch.zeros(5), long(1)), ValueError, ["target", "()", "(1,)"]),
    "target-device": (
        lambda: loss(target=TARGET.to("meta")),
        ValueError,
        ["target", "meta", "cpu", ".to("],
    ),
    "label-high": (
        lambda: loss(target=long(0, 5, 1)),
        IndexError,
        ["target[1]", "5", "[0, 5)", "ignore_index"],
    ),
    "label-low": (lambda: loss(target=long(0, 1, -1)), IndexError, ["target[2]", "-1", "-100"]),
    "label-nd": (
        lambda: loss(torch.zeros(2, 5, 3), long(0, 1, 2, 3, 9, 4).view(2, 3)),
        IndexError,
        ["target[1, 1]", "9"],
    ),
    "label-1d": (lambda: loss(torch.zeros(5), torch.tensor(6)), IndexError, ["target", "6"]),
    "ignore-other": (
        lambda: loss(target=long(0, 255, 1), ignore_index=-1),
        IndexError,
        ["255", "ignore_index (-1)"],
    ),
    "weight-list": (lambda: loss(weight=[1.0] * 5), TypeError, ["weight", "list"]),
    "weight-int": (
        lambda: loss(weight=torch.ones(5).int()),
        TypeError,
        ["weight", "int32", ".float()"],
    ),
    "weight-shape": (lambda: loss(weight=torch.ones(4)), ValueError, ["weight", "(5,)", "(4,)"]),
    "weight-device": (
        lambda: loss(weight=torch.ones(5, device="meta")),
        ValueError,
        ["weight", "meta", "cpu"],
    ),
    "sample_weight-list": (
        lambda: loss(sample_weight=[1, 2, 3]),
        TypeError,
        ["sample_weight", "list"],
    ),
    "sample_weight-int": (
        lambda: loss(sample_weight=TARGET),
        TypeError,
        ["sample_weight", "int64", ".float()"],
    ),
    "sample_weight-shape": (
        lambda: loss(sample_weight=torch.ones(3, 1)),
        ValueError,
        ["sample_weight", "(3,)", "(3, 1)"],
    ),
    "sample_weight-device": (
        lambda: loss(sample_weight=torch.ones(3, device="meta")),
        ValueError,
        ["sample_weight", "meta"],
    ),
    "reduction": (
        lambda: loss(reduction="avg"),
        ValueError,
        ["reduction", "'mean'", "'sum'", "'none'", "'avg'"],
    ),
    "reduction-none": (lambda: loss(reduction=None), ValueError, ["reduction", "None"]),
    "class_scale-word": (
        lambda: loss(class_scale="big"),
        ValueError,
        ["class_scale", "'auto'", "'big'"],
    ),
    "class_scale-zero": (
        lambda: loss(class_scale=0.0),
        ValueError,
        ["class_scale", "positive", "0.0"],
    ),
    "class_scale-inf": (lambda: loss(class_scale=float("inf")), ValueError, ["class_scale", "inf"]),
    "return_aux": (
        lambda: loss(return_aux=("lse", "nope")),
        ValueError,
        ["return_aux", "'nope'", "term_losses", "probs"],
    ),
    "return_aux-word": (lambda: loss(return_aux="all"), ValueError, ["return_aux", "'all'"]),
    "terms-word": (lambda: loss(terms="nce"), TypeError, ["terms", "'nce'", "str", "NNCE"]),
    "terms-class": (lambda: loss(terms=ak.NCE), TypeError, ["terms", "5.0 * ak.NCE()"]),
    "unknown-keyword": (lambda: loss(nope=1), TypeError, ["nope"]),
    "min_prob-at-K": (
        lambda: loss(torch.zeros(3, 100), terms=ak.NNCE(0.01)),
        ValueError,
        ["NNCE", "min_prob", "0.01", "num_classes is 100", "works"],
    ),
    "min_prob-nnfl-at-K": (
        lambda: loss(torch.zeros(3, 100), terms=ak.CE() + ak.NNFL(min_prob=0.5)),
        ValueError,
        ["NNFL", "min_prob", "0.5", "100"],
    ),
    "softmax-dtype": (lambda: ak.softmax(TARGET), TypeError, ["logits", "int64"]),
    "softmax-0d": (lambda: ak.softmax(torch.tensor(1.0)), ValueError, ["logits", "()"]),
    "softmax-dim": (lambda: ak.softmax(LOGITS, 2), IndexError, ["dim", "[-2, 1]", "2"]),
}

TERMS = {
    "CE": (lambda: ak.CE(1.5), ["CE", "label_smoothing", "[0, 1]", "1.5"]),
    "CE-negative": (lambda: ak.CE(-0.1), ["CE", "label_smoothing", "-0.1"]),
    "NNCE-zero": (lambda: ak.NNCE(0.0), ["NNCE", "min_prob", "(0, 1)", "0.0"]),
    "NNCE-one": (lambda: ak.NNCE(1.0), ["NNCE", "min_prob", "1.0"]),
    "NNCE-prob_max": (lambda: ak.NNCE(0.1, 0.05), ["NNCE", "prob_max", "min_prob", "0.05"]),
    "NNCE-prob_max-high": (lambda: ak.NNCE(0.1, 1.5), ["NNCE", "prob_max", "1.5"]),
    "FL": (lambda: ak.FL(-1.0), ["FL", "gamma", "at least 0", "-1.0"]),
    "NFL": (lambda: ak.NFL(-1.0), ["NFL", "gamma", "-1.0"]),
    "NNFL": (lambda: ak.NNFL(-1.0), ["NNFL", "gamma", "-1.0"]),
    "NNFL-min_prob": (lambda: ak.NNFL(min_prob=2.0), ["NNFL", "min_prob", "2.0"]),
    "GCE": (lambda: ak.GCE(0.0), ["GCE", "q", "above 0", "CE", "0.0"]),
    "GCE-min_prob": (lambda: ak.GCE(min_prob=1.0), ["GCE", "min_prob", "[0, 1)", "1.0"]),
    "RCE": (lambda: ak.RCE(0.0), ["RCE", "log_clip", "(0, 1)", "0.0"]),
    "RCE-min_prob": (lambda: ak.RCE(min_prob=-0.5), ["RCE", "min_prob", "-0.5"]),
    "AGCE-a": (lambda: ak.AGCE(0.0, 1.0), ["AGCE", "a ", "above 0", "0.0"]),
    "AGCE-q": (lambda: ak.AGCE(1.0, -2.0), ["AGCE", "q", "above 0", "-2.0"]),
    "AUL-a": (lambda: ak.AUL(1.0, 1.0), ["AUL", "a ", "above 1", "1.0"]),
    "AUL-q": (lambda: ak.AUL(2.0, 0.0), ["AUL", "q", "above 0", "0.0"]),
    "AEL": (lambda: ak.AEL(0.0), ["AEL", "a ", "above 0", "0.0"]),
    "NGCE": (lambda: ak.NGCE(-1.0), ["NGCE", "q", "-1.0"]),
    "NGCE-min_prob": (lambda: ak.NGCE(min_prob=1.0), ["NGCE", "min_prob", "1.0"]),
    "AMSE": (lambda: ak.AMSE(-1.0), ["AMSE", "a ", "above 0", "-1.0"]),
    "RelativeGCE": (lambda: ak.RelativeGCE(0.0), ["RelativeGCE", "q", "above 0", "CE", "0.0"]),
    "EpsilonCE": (lambda: ak.EpsilonCE(-1.0), ["EpsilonCE", "m ", "at least 0", "-1.0"]),
    "EpsilonCE-min_prob": (lambda: ak.EpsilonCE(1.0, 1.0), ["EpsilonCE", "min_prob", "[0, 1)"]),
    "EpsilonFL": (lambda: ak.EpsilonFL(m=-2), ["EpsilonFL", "m ", "at least 0", "-2"]),
    "EpsilonFL-gamma": (lambda: ak.EpsilonFL(1, gamma=-1.0), ["EpsilonFL", "gamma", "-1.0"]),
    "EpsilonFL-min_prob": (lambda: ak.EpsilonFL(1, min_prob=-0.1), ["EpsilonFL", "min_prob"]),
    "OnlyTopP": (lambda: ak.OnlyTopP(1.0), ["OnlyTopP", "threshold", "[0, 1)", "1.0"]),
    "OnlyBottomP": (lambda: ak.OnlyBottomP(0.0), ["OnlyBottomP", "threshold", "(0, 1]", "0.0"]),
    "OnlyTopLogP": (lambda: ak.OnlyTopLogP(-0.1), ["OnlyTopLogP", "threshold", "-0.1"]),
    "OnlyBottomLogP": (lambda: ak.OnlyBottomLogP(2.0), ["OnlyBottomLogP", "threshold", "2.0"]),
    "EAFT": (lambda: ak.EAFT(0.0), ["EAFT", "alpha", "above 0", "CE", "0.0"]),
    "EAFT-unit": (lambda: ak.EAFT(unit=-1.0), ["EAFT", "unit", "above 0", "-1.0"]),
    "nan": (lambda: ak.GCE(float("nan")), ["GCE", "q", "nan"]),
    "weight-nan": (lambda: float("nan") * ak.NCE(), ["weight", "finite", "nan"]),
    "weight-inf": (lambda: ak.NCE() * float("inf"), ["weight", "finite", "inf"]),
    "weight-1d": (lambda: torch.ones(1) * ak.NCE(), ["weight", "0-d", "(1,)"]),
    "weight-int": (lambda: torch.tensor(1) * ak.NCE(), ["weight", "floating", "int64"]),
}

MODULES = {
    "terms": (lambda: ak.RobustLoss("nce"), TypeError, ["terms", "'nce'"]),
    "option": (
        lambda: ak.RobustLoss(ak.CE(), label_smoothing=0.1),
        TypeError,
        ["label_smoothing", "reduction"],
    ),
    "sample_weight": (
        lambda: ak.RobustLoss(ak.CE(), sample_weight=torch.ones(3)),
        TypeError,
        ["sample_weight", "call"],
    ),
    "reduction": (
        lambda: ak.RobustLoss(ak.CE(), reduction="avg"),
        ValueError,
        ["reduction", "'avg'"],
    ),
    "class_scale": (
        lambda: ak.RobustLoss(ak.CE(), class_scale=-1),
        ValueError,
        ["class_scale", "-1"],
    ),
    "return_aux": (
        lambda: ak.RobustLoss(ak.CE(), return_aux="x"),
        ValueError,
        ["return_aux", "'x'"],
    ),
    "active": (
        lambda: ak.ActiveNegativeLoss(active="ce"),
        ValueError,
        ["active", "nce", "nfl", "'ce'"],
    ),
    "passive": (
        lambda: ak.ActivePassiveLoss(passive="ce"),
        ValueError,
        ["passive", "mae", "rce", "'ce'"],
    ),
    "active-passive": (lambda: ak.ActivePassiveLoss(active="x"), ValueError, ["active", "'x'"]),
}


def assert_says(call, kind, fragments):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == []


@pytest.mark.parametrize(("call", "kind", "fragments"), ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_arguments(call, kind, fragments):
    assert_says(call, kind, fragments)


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name.startswith("label")])
def test_labels_on_every_backend(name, backend):
    assert_says(*ARGUMENTS[name])


@pytest.mark.parametrize(("call", "fragments"), TERMS.values(), ids=list(TERMS))
def test_terms(call, fragments):
    assert_says(call, ValueError, fragments)


@pytest.mark.parametrize(("call", "kind", "fragments"), MODULES.values(), ids=list(MODULES))
def test_modules(call, kind, fragments):
    assert_says(call, kind, fragments)


def test_every_option_has_an_error():
    tested = {name.partition("-")[0] for name in ARGUMENTS}
    assert set(LossOptions.__annotations__) - tested == {"ignore_index", "inplace"}


@pytest.mark.parametrize("num_classes", [2, 10, 128_256])
@pytest.mark.parametrize("term", [ak.NNCE, ak.NNFL])
def test_the_min_prob_that_an_error_proposes_works(term, num_classes):
    logits = torch.zeros(1, num_classes)
    with pytest.raises(ValueError, match="min_prob") as caught:
        loss(logits, long(0), term(min_prob=1.5 / num_classes))
    proposed = float(str(caught.value).rpartition("min_prob=")[2].split()[0])
    value = loss(logits, long(0), term(min_prob=proposed)).item()
    assert value == pytest.approx(1 - 1 / num_classes, rel=1e-4)


def test_min_prob_does_not_matter_for_one_class(backend, device):
    logits, target = torch.zeros(1, 1, device=device), torch.zeros(1, dtype=torch.int64)
    assert loss(logits, target.to(device), ak.NNCE(0.9)).item() == 0


@pytest.mark.parametrize("label", [-1, 5, 10**9])
def test_wrong_labels_on_a_gpu_are_nan_or_checked_on_request(label, backend, device, monkeypatch):
    target = long(0, label, 2).to(device)
    logits = LOGITS.to(device)
    with ak.check_labels(), pytest.raises(IndexError, match=r"target\[1\]"):
        loss(logits, target)
    monkeypatch.setattr("anl_kernels.rows.labels.recorded_for_others", lambda: True)
    monkeypatch.setattr("anl_kernels.functional.plain_loss", lambda *_: None)
    losses = loss(logits, target, reduction="none", weight=torch.ones(5, device=device))
    assert losses.isnan().tolist() == [False, True, False]
    assert loss(logits, target).isnan()


def test_check_labels_restores_itself_after_an_error():
    before = settings.check_labels
    with pytest.raises(RuntimeError), ak.check_labels():
        raise RuntimeError
    assert settings.check_labels == before


@pytest.mark.gpu
def test_wrong_labels_are_not_checked_on_a_gpu(device):
    losses = loss(LOGITS.to(device), long(0, 9, 2).to(device), reduction="none")
    assert losses.isnan().tolist() == [False, True, False]
