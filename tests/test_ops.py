"""The operators, as ``torch.library.opcheck`` and others who read schemas see them."""

import math

import pytest
import torch

from anl_kernels.interface import NUM_SAVED
from anl_kernels.ops import RowSpec, encode
from tests.cases import CASES
from tests.helpers import backend_in_use, random_rows

pytestmark = pytest.mark.usefixtures("kernels")

OPS = torch.ops.anl_kernels
OPERATORS = {
    "row_loss",
    "row_loss_",
    "row_grad",
    "row_grad_",
    "scale_",
    "softmax",
    "softmax_backward",
    "pack_params",
    "watched_labels",
}
CHECKED_ELSEWHERE = {
    *("linear_loss", "linear_grad"),  # tests/linear
    *("entropy", "entropy_grad", "entropy_grad_"),  # tests/regularisers
}
TERMS = CASES["ANL-CE"]

# The in-place operators fail for want of fake kernels, and "one-pass" with them (scale_).
SPECS = {
    "loss": {},
    "none": {"reduce": False},
    "one-pass": {"write_grad": True},
    "aux": {"aux": True, "probs": True},
    "one-pass-aux": {"write_grad": True, "aux": True, "probs": True},
}


def spec(**options):
    return RowSpec(*encode(TERMS), -100, backend_in_use(), **options)


def row_args(device, dtype=torch.float32, requires_grad=True, per_row=False, weighted=False):
    logits, target = random_rows(3, 5, dtype, device)
    row_scale = torch.rand(3 if per_row else (), device=device)
    weights = torch.rand(len(TERMS), device=device) if weighted else None
    return logits.requires_grad_(requires_grad), target, row_scale, weights


def opcheck(operator, args):
    result = torch.library.opcheck(operator.default, args)
    assert set(result.values()) == {"SUCCESS"}, result


def test_every_operator_is_checked_here():
    registered = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("anl_kernels::")
    }
    assert registered == OPERATORS | CHECKED_ELSEWHERE


@pytest.mark.parametrize("options", SPECS.values(), ids=list(SPECS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_loss(dtype, options, device):
    opcheck(OPS.row_loss, (*row_args(device, dtype), *spec(**options)))


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_row_loss_of_weights(weighted, per_row, device):
    args = row_args(device, per_row=per_row, weighted=weighted)
    opcheck(OPS.row_loss, (*args, *spec(aux=True)))


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 5, 3), (2, 5, 2, 2)], ids=str)
def test_row_loss_of_shapes(shape, device):
    logits = torch.randn(shape, device=device, requires_grad=True)
    batch = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(5, batch, device=device)
    scale = torch.ones((), device=device)
    opcheck(OPS.row_loss, (logits, target, scale, None, *spec(reduce=False, aux=True)))


NUMBERS = torch.tensor(TERMS.params, dtype=torch.float64)


def in_a_tensor(spec):
    """As compiled code hands over numbers that change between calls."""
    return spec._replace(params=[], numbers=NUMBERS)


def test_watched_labels(device):
    """Hands on a copy, or raises; within vmap too."""
    target = torch.tensor([[0, 4], [-100, 2]], device=device)
    args = (5, -100, "classes")
    opcheck(OPS.watched_labels, (target, *args))
    made = torch.func.vmap(lambda labels: OPS.watched_labels(labels, *args), 1, 1)(target)
    assert torch.equal(made, target)
    for check in (OPS.watched_labels, torch.func.vmap(OPS.watched_labels, (0, None, None, None))):
        with pytest.raises(IndexError, match=r"classes\[0, 1\] is 4, outside \[0, 3\)"):
            check(target, 3, *args[1:])


def test_pack_params():
    unknown = [NUMBERS[1], NUMBERS[3]]
    params = [3.0, math.nan, 5.0, math.nan]
    opcheck(OPS.pack_params, (unknown, params))
    packed = OPS.pack_params(unknown, params)
    assert packed.tolist() == [3.0, NUMBERS[1], 5.0, NUMBERS[3]]


@pytest.mark.parametrize("options", SPECS.values(), ids=list(SPECS))
def test_numbers_in_a_tensor(options, device):
    args = row_args(device)
    opcheck(OPS.row_loss, (*args, *in_a_tensor(spec(**options))))
    made = OPS.row_loss(*args, *in_a_tensor(spec(**options)))
    for actual, wanted in zip(made, OPS.row_loss(*args, *spec(**options)), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


def test_row_grad_of_numbers_in_a_tensor(device):
    opcheck(OPS.row_grad, (*grad_args(device), *in_a_tensor(spec())))


def test_row_loss_in_place(device):
    args = row_args(device, requires_grad=False)
    opcheck(OPS.row_loss_, (*args, *spec(write_grad=True, inplace=True)))


def grad_args(device, dtype=torch.float32):
    logits, target, row_scale, _ = row_args(device, dtype, requires_grad=False, per_row=True)
    saved = OPS.row_loss(logits, target, row_scale, None, *spec())[3]
    assert saved.shape == (3, NUM_SAVED + len(TERMS))
    return logits, target, row_scale, saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_row_grad(dtype, device):
    opcheck(OPS.row_grad, (*grad_args(device, dtype), *spec()))


def test_row_grad_in_place(device):
    opcheck(OPS.row_grad_, (*grad_args(device), *spec(inplace=True)))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_scale(factor, device):
    opcheck(
        OPS.scale_,
        (torch.randn(3, 5, device=device), torch.tensor(factor, device=device), backend_in_use()),
    )


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 5, 3), (0, 5)], ids=str)
def test_softmax(shape, device):
    opcheck(OPS.softmax, (torch.randn(shape, device=device, requires_grad=True), backend_in_use()))


def test_softmax_backward(device):
    probs = torch.randn(3, 5, device=device).softmax(1)
    opcheck(OPS.softmax_backward, (torch.randn(3, 5, device=device), probs, backend_in_use()))


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 5, 4, 3)], ids=str)
@pytest.mark.parametrize(
    "arrange",
    [
        lambda z: z,
        lambda z: z.contiguous(memory_format=torch.channels_last),
        lambda z: z.transpose(2, 3),
        lambda z: z[:, :, 1:, 1:],
        lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
    ],
)
def test_fake_outputs_have_the_strides_of_real_ones(arrange, shape, device):
    logits = arrange(torch.randn(shape, device=device))
    target = torch.randint(5, logits.shape[:1] + logits.shape[2:], device=device)
    scale = torch.ones((), device=device)
    args = (logits, target, scale, None, *spec(write_grad=True, aux=True, probs=True))
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
        fake = OPS.row_loss(*fakes)
    for real, wanted in zip(OPS.row_loss(*args), fake, strict=True):
        assert real.shape == wanted.shape
        assert real.stride() == wanted.stride()
        assert real.dtype == wanted.dtype


def test_scale_multiplies(device):
    tensor = torch.randn(3, 70, device=device)
    wanted = tensor * 2.5
    OPS.scale_(tensor, torch.tensor(2.5, device=device), backend_in_use())
    assert torch.equal(tensor, wanted)


def test_in_place_operators_bump_the_version(device):
    logits, target, scale, saved = grad_args(device)
    version = logits._version
    OPS.row_grad_(logits, target, scale, saved, *spec(inplace=True))
    assert logits._version > version
    version = logits._version
    OPS.row_loss_(logits, target, scale, None, *spec(write_grad=True, inplace=True))
    assert logits._version > version


def test_unknown_term_and_backend(device):
    args = row_args(device, requires_grad=False)
    with pytest.raises(ValueError, match=r"unknown term 'Nope'.*NCE"):
        OPS.row_loss(*args, *spec()._replace(names="Nope", params=[1.0]))
    with pytest.raises(ValueError, match="'nope' is not a kernel backend"):
        OPS.row_loss(*args, *spec()._replace(backend="nope"))
