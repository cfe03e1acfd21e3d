"""Export: what is recorded for others holds PyTorch's own operators, and what they compute."""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim, export

import anl_kernels as ak
from tests.cases import CASES

D, K = 4, 7
SHAPES = ({0: Dim("n")}, {0: Dim("n")})


class Model(nn.Module):
    """A layer and all that may be done with what it says."""

    def __init__(self, door):
        super().__init__()
        self.layer = nn.Linear(D, K)
        self.door = door

    def forward(self, hidden, target):
        return self.door(self.layer, hidden, target)


def with_aux(layer, hidden, target):
    names = ("term_losses", "lse", "p_y", "argmax", "probs")
    loss, aux = ak.robust_loss(layer(hidden), target, CASES["all"], return_aux=names)
    return loss, *(getattr(aux, name) for name in names)


def of_weights(layer, hidden, target):
    options = {
        "weight": torch.arange(1.0, K + 1, device=hidden.device),
        "sample_weight": hidden[:, 0],
    }
    terms = ak.CE(0.0) + ak.NNCE(1e-3, 0.9)
    return ak.robust_loss(layer(hidden), target, terms, reduction="none", **options)


def of_head(layer, hidden, target):
    weight, bias = layer.weight, layer.bias
    terms = ak.GCE() + ak.CE(0.1)
    return ak.linear_robust_loss(hidden, weight, target, terms, bias, logit_softcap=3.0)


def others(layer, hidden, target):
    z = layer(hidden)
    several = torch.stack([target, target.clamp(0)], 1)
    regularised = ak.EntropyRegularisedLoss(ak.ActiveNegativeLoss(5.0, 5.0), weight=2.0)
    total = regularised(z, target) + ak.l1_penalty(layer.parameters())
    return total, ak.softmax(z), ak.log_prob(z, target), ak.log_prob(z, several)


DOORS = pytest.mark.parametrize("door", [with_aux, of_weights, of_head, others])


def inputs(rows):
    target = torch.randint(K, (rows,))
    target[1] = -100
    return torch.randn(rows, D), target


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


@DOORS
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict, door):
    model, batch = Model(door), inputs(9)
    program = export(model, inputs(6), strict=strict, dynamic_shapes=SHAPES)
    assert "anl_kernels" not in program.graph_module.code
    ours, wanted = outputs(program.module()(*batch)), outputs(model(*batch))
    torch.testing.assert_close(ours, wanted)
    module = program.module()
    outputs(module(*batch))[0].sum().backward()
    wanted[0].sum().backward()
    torch.testing.assert_close(module.layer.weight.grad, model.layer.weight.grad)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:# The axis name")
@DOORS
def test_onnx(door):
    model, batch = Model(door).eval(), inputs(9)
    program = torch.onnx.export(model, inputs(6), dynamo=True, verbose=False, dynamic_shapes=SHAPES)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    names = [given.name for given in session.get_inputs()]
    ours = session.run(None, {n: x.numpy() for n, x in zip(names, batch, strict=True)})
    for got, wanted in zip(ours, outputs(model(*batch)), strict=True):
        np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=2e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@DOORS
def test_trace(door):
    model, batch = Model(door), inputs(9)
    traced = torch.jit.trace(model, inputs(6), check_trace=False)
    torch.testing.assert_close(outputs(traced(*batch)), outputs(model(*batch)))
    torch.jit.save(traced, io.BytesIO())


def test_a_backend_asked_for_by_name_stays_in_the_program():
    model, batch = Model(lambda layer, h, y: ak.robust_loss(layer(h), y, ak.GCE())), inputs(6)
    with ak.use_backend("cpu"):
        program = export(model, batch)
    assert "anl_kernels_cpu.row_loss" in program.graph_module.code
    torch.testing.assert_close(program.module()(*batch), model(*batch))


@DOORS
@pytest.mark.parametrize("mode", ["meta", "fake"])
def test_without_values(mode, door):
    model, batch = Model(door), inputs(6)
    wanted = outputs(model(*batch))
    if mode == "meta":
        model.to("meta")
        ours = outputs(model(*(tensor.to("meta") for tensor in batch)))
        ours[0].sum().backward()
    else:
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:
            ours = outputs(model(*map(fake.from_tensor, batch)))
            ours[0].sum().backward()
    assert [(x.shape, x.dtype) for x in ours] == [(x.shape, x.dtype) for x in wanted]
    assert model.layer.weight.grad.shape == (K, D)


def test_a_symbolic_trace():
    from torch.fx.experimental.proxy_tensor import make_fx

    logits, target = torch.randn(3, K), torch.tensor([0, 3, 6])

    def loss(z, y):
        return ak.robust_loss(z, y, ak.NCE())

    traced = make_fx(loss, tracing_mode="symbolic")(logits, target)
    torch.testing.assert_close(traced(logits, target), loss(logits, target))
