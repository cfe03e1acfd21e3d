"""Every error names the argument, the value received and the remedy."""

import pytest
import torch
from torch import nn

import anl_kernels as ak
from anl_kernels.options import LinearOptions
from tests.test_errors import assert_says, long

HIDDEN, WEIGHT, BIAS = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5)
TARGET = torch.tensor([0, 1, 2])


def loss(hidden=HIDDEN, weight=WEIGHT, target=TARGET, bias=BIAS, terms=None, **options):
    options = {name.removeprefix("class_of_"): value for name, value in options.items()}
    terms = ak.NCE() if terms is None else terms
    return ak.linear_robust_loss(hidden, weight, target, terms, bias, **options)


ARGUMENTS = {
    "hidden-list": (lambda: loss([[1.0]]), TypeError, ["hidden", "list"]),
    "hidden-int": (lambda: loss(HIDDEN.int()), TypeError, ["hidden", "int32", ".float()"]),
    "hidden-float8": (
        lambda: loss(HIDDEN.to(torch.float8_e5m2)),
        TypeError,
        ["hidden", "float8_e5m2", "bfloat16", ".float()"],
    ),
    "hidden-0d": (lambda: loss(torch.tensor(1.0)), ValueError, ["hidden", "(..., D)", "()"]),
    "hidden-width": (
        lambda: loss(torch.zeros(3, 6)),
        ValueError,
        ["hidden", "D = 4", "(5, 4)", "(3, 6)"],
    ),
    "linear_weight-list": (lambda: loss(weight=[[1.0]]), TypeError, ["linear_weight", "list"]),
    "linear_weight-int": (
        lambda: loss(weight=WEIGHT.long()),
        TypeError,
        ["linear_weight", "int64", ".float()"],
    ),
    "linear_weight-1d": (
        lambda: loss(weight=torch.zeros(4)),
        ValueError,
        ["linear_weight", "(K, D)", "(4,)"],
    ),
    "linear_weight-empty": (
        lambda: loss(weight=torch.zeros(0, 4), bias=None),
        ValueError,
        ["linear_weight", "no classes", "(0, 4)"],
    ),
    "linear_weight-device": (
        lambda: loss(weight=WEIGHT.to("meta")),
        ValueError,
        ["linear_weight", "meta", "cpu", ".to("],
    ),
    "linear_weight-dtype": (
        lambda: loss(weight=WEIGHT.double()),
        TypeError,
        ["linear_weight", "hidden", "float32", "float64", "autocast"],
    ),
    "linear_bias-list": (lambda: loss(bias=[1.0] * 5), TypeError, ["linear_bias", "list"]),
    "linear_bias-shape": (
        lambda: loss(bias=torch.zeros(4)),
        ValueError,
        ["linear_bias", "(5,)", "(4,)"],
    ),
    "linear_bias-device": (
        lambda: loss(bias=BIAS.to("meta")),
        ValueError,
        ["linear_bias", "meta", "cpu", ".to("],
    ),
    "linear_bias-dtype": (
        lambda: loss(bias=BIAS.half()),
        TypeError,
        ["linear_bias", "hidden", "float32", "float16", "autocast"],
    ),
    "target-list": (lambda: loss(target=[0, 1, 2]), TypeError, ["target", "list"]),
    "target-float": (
        lambda: loss(target=torch.zeros(3)),
        TypeError,
        ["target", "float32", "class indices"],
    ),
    "target-uint8": (lambda: loss(target=TARGET.byte()), TypeError, ["target", "uint8", ".long()"]),
    "target-shape": (
        lambda: loss(target=long(0, 1)),
        ValueError,
        ["target", "(3,)", "hidden", "(3, 4)", "(2,)"],
    ),
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
    "label-padding": (
        lambda: loss(target=long(0, 4, 1), num_classes=4),
        IndexError,
        ["target[1]", "4", "[0, 4)"],
    ),
    "label-nd": (
        lambda: loss(torch.zeros(2, 3, 4), target=long(0, 1, 2, 3, 9, 4).view(2, 3)),
        IndexError,
        ["target[1, 1]", "9"],
    ),
    "terms": (lambda: loss(terms="nce"), TypeError, ["terms", "'nce'", "str"]),
    "weight": (lambda: loss(class_of_weight=torch.ones(4)), ValueError, ["weight", "(5,)", "(4,)"]),
    "weight-padding": (
        lambda: loss(class_of_weight=torch.ones(5), num_classes=4),
        ValueError,
        ["weight", "(4,)", "(5,)"],
    ),
    "sample_weight": (
        lambda: loss(sample_weight=torch.ones(3, 1)),
        ValueError,
        ["sample_weight", "(3,)", "(3, 1)"],
    ),
    "target_b": (lambda: loss(target_b=torch.zeros(3)), TypeError, ["target_b needs lam"]),
    "lam": (lambda: loss(lam=0.5), TypeError, ["lam needs target_b"]),
    "ignore_index": (lambda: loss(ignore_index=1.5), TypeError, ["ignore_index", "1.5"]),
    "reduction": (lambda: loss(reduction="avg"), ValueError, ["reduction", "'none'", "'avg'"]),
    "class_scale": (lambda: loss(class_scale=0.0), ValueError, ["class_scale", "positive", "0.0"]),
    "num_classes-high": (lambda: loss(num_classes=6), ValueError, ["num_classes", "[1, 5]", "6"]),
    "num_classes-zero": (lambda: loss(num_classes=0), ValueError, ["num_classes", "[1, 5]", "0"]),
    "num_classes-float": (lambda: loss(num_classes=4.0), ValueError, ["num_classes", "4.0"]),
    "return_aux-probs": (
        lambda: loss(return_aux=["lse", "probs"]),
        ValueError,
        ["return_aux", "'probs'", "ak.robust_loss"],
    ),
    "return_aux-word": (lambda: loss(return_aux="all"), ValueError, ["return_aux", "'all'"]),
    "logit_softcap-zero": (
        lambda: loss(logit_softcap=0.0),
        ValueError,
        ["logit_softcap", "positive", "None", "0.0"],
    ),
    "logit_softcap-inf": (
        lambda: loss(logit_softcap=float("inf")),
        ValueError,
        ["logit_softcap", "inf"],
    ),
    "logit_softcap-nan": (
        lambda: loss(logit_softcap=float("nan")),
        ValueError,
        ["logit_softcap", "nan"],
    ),
    "logit_softcap-word": (lambda: loss(logit_softcap="30"), ValueError, ["logit_softcap", "'30'"]),
    "logit_softcap-bool": (lambda: loss(logit_softcap=True), ValueError, ["logit_softcap", "True"]),
    "chunk_bytes-zero": (
        lambda: loss(chunk_bytes=0),
        ValueError,
        ["chunk_bytes", "positive", "None", "0"],
    ),
    "chunk_bytes-negative": (lambda: loss(chunk_bytes=-1), ValueError, ["chunk_bytes", "-1"]),
    "chunk_bytes-float": (lambda: loss(chunk_bytes=1e6), ValueError, ["chunk_bytes", "1000000.0"]),
    "accum_dtype": (
        lambda: loss(accum_dtype=torch.float16),
        ValueError,
        ["accum_dtype", "None", "float32", "float16"],
    ),
    "accum_dtype-word": (lambda: loss(accum_dtype="float32"), ValueError, ["accum_dtype", "'flo"]),
    "accum_dtype-bfloat16": (
        lambda: loss(
            HIDDEN.bfloat16(), WEIGHT.bfloat16(), bias=None, accum_dtype=torch.float64
        ),
        ValueError,
        ["accum_dtype", "float32", "bfloat16", "weight", "float64"],
    ),
    "skip_ignored-lse": (
        lambda: loss(skip_ignored=True, return_aux=["lse", "p_y"]),
        ValueError,
        ["skip_ignored=True", "lse", "return_aux", "skip_ignored=False"],
    ),
    "skip_ignored-all": (
        lambda: loss(skip_ignored=True, return_aux=True),
        ValueError,
        ["skip_ignored=True", "lse and argmax"],
    ),
    "skip_ignored-word": (
        lambda: loss(skip_ignored="cpu"),
        ValueError,
        ["skip_ignored", "None", "'cpu'"],
    ),
    "unknown-keyword": (lambda: loss(inplace=True), TypeError, ["inplace"]),
    "min_prob": (
        lambda: loss(terms=ak.NNCE(0.3)),
        ValueError,
        ["NNCE", "min_prob", "0.3", "num_classes is 5"],
    ),
}  # fmt: skip

LINEAR = nn.Linear(4, 5)


class Adapted(nn.Linear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def hooked():
    linear = nn.Linear(4, 5)
    linear.register_forward_hook(lambda *args: None)
    return linear


MODULES = {
    "head": (
        lambda: ak.LinearRobustLoss(WEIGHT, ak.CE()),
        TypeError,
        ["head", "nn.Linear", "Tensor"],
    ),
    "head-forward": (
        lambda: ak.LinearRobustLoss(Adapted(4, 5), ak.CE()),
        TypeError,
        ["head", "Adapted", "forward", "ak.linear_robust_loss"],
    ),
    "head-hooks": (
        lambda: ak.LinearRobustLoss(hooked(), ak.CE()),
        TypeError,
        ["head", "hooks", "remove"],
    ),
    "terms": (lambda: ak.LinearRobustLoss(LINEAR, "nce"), TypeError, ["terms", "'nce'"]),
    "option": (
        lambda: ak.LinearRobustLoss(LINEAR, ak.CE(), inplace=True),
        TypeError,
        ["inplace", "chunk_bytes"],
    ),
    "sample_weight": (
        lambda: ak.LinearRobustLoss(LINEAR, ak.CE(), sample_weight=torch.ones(3)),
        TypeError,
        ["sample_weight", "call"],
    ),
    "reduction": (
        lambda: ak.LinearRobustLoss(LINEAR, ak.CE(), reduction="avg"),
        ValueError,
        ["reduction", "'avg'"],
    ),
    "return_aux": (
        lambda: ak.LinearRobustLoss(LINEAR, ak.CE(), return_aux="x"),
        ValueError,
        ["return_aux", "'x'"],
    ),
    "return_aux-probs": (
        lambda: ak.LinearRobustLoss(LINEAR, ak.CE(), return_aux=("probs",)),
        ValueError,
        ["return_aux", "'probs'"],
    ),
    "logit_softcap": (
        lambda: ak.LinearRobustLoss(LINEAR, ak.CE(), logit_softcap=-1),
        ValueError,
        ["logit_softcap", "-1"],
    ),
    "chunk_bytes": (
        lambda: ak.LinearRobustLoss(LINEAR, ak.CE(), chunk_bytes=0),
        ValueError,
        ["chunk_bytes", "0"],
    ),
    "class_scale": (
        lambda: ak.LinearRobustLoss(LINEAR, ak.CE(), class_scale=-1),
        ValueError,
        ["class_scale", "-1"],
    ),
}


@pytest.mark.parametrize(("call", "kind", "fragments"), ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_arguments(call, kind, fragments):
    assert_says(call, kind, fragments)


@pytest.mark.parametrize(("call", "kind", "fragments"), MODULES.values(), ids=list(MODULES))
def test_modules(call, kind, fragments):
    assert_says(call, kind, fragments)


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name.startswith("label")])
def test_labels_on_every_backend(name, backend):
    assert_says(*ARGUMENTS[name])


def test_every_option_has_an_error():
    tested = {name.partition("-")[0] for name in ARGUMENTS}
    assert set(LinearOptions.__annotations__) - tested == {"process_group"}


def test_accum_dtype_of_float64():
    wide = [HIDDEN.double(), WEIGHT.double()]
    with pytest.raises(ValueError, match=r"None or torch.float64"):
        loss(*wide, bias=None, accum_dtype=torch.float32)


def test_an_error_under_autocast_does_not_ask_for_it():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError) as caught:
        loss(HIDDEN.double())
    assert "linear_weight" in str(caught.value)
    assert "use torch.autocast" not in str(caught.value)


def test_a_float_that_is_not_finite_is_no_softcap_of_a_module_either():
    with pytest.raises(ValueError, match=r"logit_softcap.*nan"):
        ak.LinearRobustLoss(LINEAR, ak.CE(), logit_softcap=float("nan"))


def test_a_term_without_a_kernel(quick, device):
    """The reference has every term; a kernel says what it lacks."""
    from dataclasses import dataclass

    from anl_kernels.terms import REGISTRY
    from anl_kernels.terms.base import Term

    @dataclass(frozen=True)
    class Nameless(Term):
        def rows(self, row):
            return row.rest

    tensors = [tensor.to(device) for tensor in (HIDDEN, WEIGHT, TARGET, BIAS)]
    try:
        call = lambda: loss(*tensors, terms=Nameless())  # noqa: E731
        if quick == "reference":
            assert call().item() == pytest.approx(0.8)
        else:
            assert_says(call, RuntimeError, [quick, "Nameless", "auto"])
    finally:
        REGISTRY.pop("Nameless", None)
