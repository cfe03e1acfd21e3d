"""The operators, as ``torch.library.opcheck`` and others who read schemas see them."""

import importlib
import math

import pytest
import torch

from anl_kernels.backends.choice import extension, load_backend
from anl_kernels.backends.operators import SCHEMAS, namespace_of
from anl_kernels.interface import AUX, BITS, NUM_SAVED, REQUEST_SCHEMA, RowOutputs, RowRequest
from anl_kernels.rows import labels
from anl_kernels.rows.operators import Where
from anl_kernels.terms.encoding import encode
from tests.cases import CASES
from tests.helpers import backend_in_use, random_rows

pytestmark = pytest.mark.usefixtures("kernels")

OPS = torch.ops.anl_kernels
OPERATORS = {"pack_numbers", "label_scale"}
CHECKED_ELSEWHERE = {
    *("sharded_row_loss", "sharded_row_grad", "sharded_row_grad_into"),  # tests/distributed
    *("linear_loss", "linear_grad", "linear_log_probs", "linear_log_probs_grad"),  # tests/linear
    *("entropy", "entropy_grad"),  # tests/regularisers
}
INTERNAL = {"shard_partials", "shard_sums", "shard_finish", "column_sums", "column_grad"}
"""Called by operators only, and by a backend's kernels in Python."""
TERMS = CASES["ANL-CE"]

# The in-place operators fail for want of fake kernels, and "one-pass" with them (scale_).
REQUESTS = {
    "loss": ("loss", "row_losses", "saved"),
    "loss-alone": ("loss",),
    "one-pass": ("loss", "grad"),
    "aux": ("loss", "row_losses", "saved", *AUX, "probs"),
    "one-pass-aux": ("loss", "grad", *AUX, "probs"),
}
over_requests = pytest.mark.parametrize("outputs", REQUESTS.values(), ids=list(REQUESTS))


def ops():
    """The operators of the backend in use."""
    load_backend(backend_in_use())
    return getattr(torch.ops, namespace_of(backend_in_use()))


def request(*outputs, **options):
    return RowRequest.of(TERMS, -100, *outputs, **options)


def row_args(device, dtype=torch.float32, requires_grad=True, per_row=False, weighted=False):
    logits, target = random_rows(3, 5, dtype, device)
    row_scale = torch.rand(3 if per_row else (), device=device)
    weights = torch.rand(len(TERMS), device=device) if weighted else None
    return logits.requires_grad_(requires_grad), target, row_scale, weights


def opcheck(operator, args, compiled=True):
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if compiled:
        checks.append("test_aot_dispatch_dynamic")
    result = torch.library.opcheck(operator.default, args, test_utils=checks)
    assert set(result.values()) == {"SUCCESS"}, result


def registered(namespace):
    names = torch._C._dispatch_get_all_op_names()
    mine = [name for name in names if name.startswith(f"{namespace}::")]
    return {name.partition("::")[2].partition(".")[0] for name in mine}


def test_every_operator_is_checked_here():
    on_demand = "linear.operators", "linear.several_classes", "regularisers.entropy_operators"
    for module in on_demand:
        importlib.import_module(f"anl_kernels.{module}")
    assert registered("anl_kernels") == OPERATORS | CHECKED_ELSEWHERE
    assert ops()
    others = INTERNAL | {"empty_like_rows", "entropy"}
    assert registered(namespace_of(backend_in_use())) - others == set(SCHEMAS)


def test_the_schemas_are_those_of_all_backends():
    for name, schema in SCHEMAS.items():
        wanted = torch._C.parse_schema(f"{namespace_of(backend_in_use())}::{name}{schema}")
        assert str(getattr(ops(), name).default._schema) == str(wanted)


def test_the_outputs_have_the_bits_that_python_gives_them(kernels):
    if kernels == "triton":
        pytest.skip("knows no bits")
    assert extension(kernels).row_outputs() == list(BITS) == list(RowOutputs._fields)


def test_a_request_follows_its_schema():
    names = [argument.split()[-1] for argument in REQUEST_SCHEMA.split(", ")]
    assert names == list(RowRequest._fields)


@over_requests
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_loss(dtype, reduce, outputs, device):
    opcheck(ops().row_loss, (*row_args(device, dtype), *request(*outputs, reduce=reduce)))


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_row_loss_of_weights(weighted, per_row, device):
    args = row_args(device, per_row=per_row, weighted=weighted)
    opcheck(ops().row_loss, (*args, *request(*REQUESTS["aux"])))


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 5, 3), (2, 5, 2, 2)], ids=str)
def test_row_loss_of_shapes(shape, device):
    logits = torch.randn(shape, device=device, requires_grad=True)
    batch = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(5, batch, device=device)
    scale = torch.ones((), device=device)
    asked = request("loss", "row_losses", "saved", *AUX, reduce=False)
    opcheck(ops().row_loss, (logits, target, scale, None, *asked))


def test_an_output_is_made_where_it_is_asked_for(device):
    args = row_args(device, requires_grad=False)
    every = request(*BITS)
    made = every.named(ops().row_loss(*args, *every))
    for name in BITS:
        alone = request(name)
        (output,) = ops().row_loss(*args, *alone)
        torch.testing.assert_close(output, getattr(made, name), rtol=0, atol=0)


NUMBERS = torch.tensor(encode(TERMS)[1], dtype=torch.float64)


def in_a_tensor(request):
    """As compiled code hands over numbers that change between calls."""
    return request._replace(numbers=[], moving=NUMBERS)


@pytest.mark.parametrize("mean", [False, True])
def test_label_scale(mean, device):
    """One over the labels that count, or one; within vmap too."""
    target = torch.tensor([[0, 4], [-100, 2]], device=device)
    args = (5, -100, torch.float32, mean, "classes")
    opcheck(OPS.label_scale, (target, *args))
    assert OPS.label_scale(target, *args).item() == pytest.approx(1 / 3 if mean else 1)
    made = torch.func.vmap(lambda y: OPS.label_scale(y, *args), 1)(target)
    assert made.tolist() == ([1.0, 0.5] if mean else [1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_label_scale_of_labels_that_are_no_class(dtype, device):
    """The same words in C++ and in Python."""
    options = -100, torch.float32, True, "classes"
    target = torch.tensor([[0, 4], [-100, 2]], device=device, dtype=dtype)
    in_a_vmap = torch.func.vmap(OPS.label_scale, (0, *[None] * 5))
    for check in (OPS.label_scale, labels._label_scale, in_a_vmap):
        with pytest.raises(IndexError, match=r"classes\[0, 1\] is 4, outside \[0, 3\).*ignore_in"):
            check(target, 3, *options)
        with pytest.raises(IndexError, match=r"classes\[1, 0\] is -100, outside .* \(-1\); corr"):
            check(target, 5, -1, *options[1:])


def test_pack_numbers():
    unknown = [NUMBERS[1], NUMBERS[3]]
    numbers = [3.0, math.nan, 5.0, math.nan]
    opcheck(OPS.pack_numbers, (unknown, numbers))
    packed = OPS.pack_numbers(unknown, numbers)
    assert packed.tolist() == [3.0, NUMBERS[1], 5.0, NUMBERS[3]]


@over_requests
def test_numbers_in_a_tensor(outputs, device):
    args = row_args(device)
    opcheck(ops().row_loss, (*args, *in_a_tensor(request(*outputs))))
    made = ops().row_loss(*args, *in_a_tensor(request(*outputs)))
    for actual, wanted in zip(made, ops().row_loss(*args, *request(*outputs)), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


def test_row_grad_of_numbers_in_a_tensor(device):
    opcheck(ops().row_grad, (*grad_args(device), *in_a_tensor(request())))


def test_row_loss_in_place(device):
    """Compiled code, which recomputes, never calls it: PyTorch could not make it functional."""
    args = row_args(device, requires_grad=False)
    asked = request("loss", "grad", inplace=True)
    opcheck(ops().row_loss_, (*args, *asked), compiled=False)


def grad_args(device, dtype=torch.float32):
    logits, target, row_scale, _ = row_args(device, dtype, requires_grad=False, per_row=True)
    (saved,) = ops().row_loss(logits, target, row_scale, None, *request("saved"))
    assert saved.shape == (3, NUM_SAVED + len(TERMS))
    return logits, target, row_scale, saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_row_grad(dtype, device):
    opcheck(ops().row_grad, (*grad_args(device, dtype), *request()))


def test_row_grad_into(device):
    """Another tensor, or the logits."""
    logits, *rest = grad_args(device)
    opcheck(ops().row_grad_into, (torch.randn_like(logits), logits, *rest, *request()))
    wanted = ops().row_grad(logits, *rest, *request())
    ops().row_grad_into(logits, logits, *rest, *request())
    assert torch.equal(logits, wanted)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_scale(factor, device):
    factor = torch.tensor(factor, device=device)
    opcheck(ops().scale_, (torch.randn(3, 5, device=device), factor))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 5, 3), (0, 5)], ids=str)
def test_softmax(shape, device):
    opcheck(ops().softmax, (torch.randn(shape, device=device, requires_grad=True),))


def test_softmax_backward(device):
    probs = torch.randn(3, 5, device=device).softmax(1)
    opcheck(ops().softmax_backward, (torch.randn(3, 5, device=device), probs))


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
    args = (logits, target, scale, None, *request(*REQUESTS["one-pass-aux"]))
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
        fake = ops().row_loss(*fakes)
    for real, wanted in zip(ops().row_loss(*args), fake, strict=True):
        assert real.shape == wanted.shape
        assert real.stride() == wanted.stride()
        assert real.dtype == wanted.dtype


def test_scale_multiplies(device):
    tensor = torch.randn(3, 70, device=device)
    wanted = tensor * 2.5
    ops().scale_(tensor, torch.tensor(2.5, device=device))
    assert torch.equal(tensor, wanted)


def test_in_place_operators_bump_the_version(device):
    logits, target, scale, saved = grad_args(device)
    version = logits._version
    ops().row_grad_into(logits, logits, target, scale, saved, *request())
    assert logits._version > version
    version = logits._version
    ops().row_loss_(logits, target, scale, None, *request("loss", "grad", inplace=True))
    assert logits._version > version
    version = logits._version
    ops().scale_(logits, torch.tensor(2.0, device=device))
    assert logits._version > version


def test_unknown_term_and_backend(device):
    args = row_args(device, requires_grad=False)
    asked = request("loss")._replace(functors="Nope:nope", numbers=[1.0] * 4)
    with pytest.raises((ValueError, RuntimeError), match=r"unknown term 'Nope'|no functor nope"):
        ops().row_loss(*args, *asked)
    with pytest.raises(ValueError, match="'nope' is not a kernel backend"):
        Where("nope").load()
