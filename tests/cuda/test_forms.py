"""Which form rows take, and rows at the borders of forms and of vectors."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends.choice import extension, load_backend
from anl_kernels.interface import accumulator_dtype
from tests.cases import CASES
from tests.cuda import emulated
from tests.forms import FORMS, checked
from tests.helpers import error, expected, loss_and_grad, random_rows

pytestmark = pytest.mark.usefixtures("cuda_backend")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ARITHMETIC = {torch.float64: 1e-12}
TERMS = CASES["ANL-CE"]
LONG_FORMS = ["warp", "block", "cluster", "cluster-of-16", "stream", "split"]


@pytest.fixture
def device_like():
    """Plans are made for another device than an H200."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is what it is")
    from tests.cuda.emulation import build

    control = build.load_control(emulated.FOLDER)
    yield control.set_device
    control.set_device()


def launch_of(*shape, dtype=torch.bfloat16):
    logits = torch.empty(shape, dtype=dtype, device=extension("cuda").device_type)
    launch = extension("cuda").row_loss_launch(logits)
    return launch["kind"], launch["cluster"]


def assert_right(logits, target, terms=TERMS):
    exact = logits.detach().double()
    losses, grad = expected(exact, target, terms)
    for reduction in ("sum", "none"):
        loss, ours = loss_and_grad(logits, target, terms, reduction=reduction)
        assert error(loss, losses.sum() if reduction == "sum" else losses) <= slack(logits.dtype)
        assert_rounded(ours, grad)


def slack(dtype):
    return ARITHMETIC.get(dtype, 1e-6)


def assert_rounded(grad, exact):
    """The error is that of rounding to the dtype, and little more."""
    rounding = error(exact.to(grad.dtype), exact)
    assert error(grad, exact) <= 1.01 * rounding + slack(grad.dtype)


@pytest.mark.parametrize(
    ("num_rows", "num_classes", "wanted"),
    [
        (100, 10, ("tile", 1)),
        (100, 128, ("tile", 1)),
        (100, 129, ("warp_rows", 1)),
        (100, 2040, ("warp_rows", 1)),
        (100, 2041, ("cluster", 1)),
        (100, 1 << 14, ("cluster", 1)),
        (100, (1 << 14) + 1, ("cluster", 2)),
        (100, 1 << 17, ("cluster", 8)),
        (100, 1 << 18, ("cluster", 16)),
        (4, 1 << 20, ("cluster", 16)),
        (64, 1 << 21, ("stream", 1)),
        (63, 1 << 21, ("split", 1)),
    ],
)
def test_forms_by_size(num_rows, num_classes, wanted):
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a GPU with clusters")
    assert launch_of(num_rows, num_classes) == wanted


@pytest.mark.parametrize(
    ("num_rows", "num_classes", "wanted"),
    [
        (100, 50257, "cluster"),
        (100, 80000, "cluster"),
        (100, 90000, "stream"),
        (8, 1 << 18, "split"),
    ],
)
def test_a_device_without_clusters(num_rows, num_classes, wanted, device_like):
    device_like(capability=80, processors=108, shared_bytes=163 << 10, max_cluster=1)
    assert launch_of(num_rows, num_classes) == (wanted, 1)


@pytest.mark.parametrize(
    ("num_classes", "dtype", "threads"),
    [
        (24000, torch.bfloat16, 256),
        (40000, torch.bfloat16, 384),
        (60001, torch.bfloat16, 768),
        (30000, torch.float32, 768),
        (15000, torch.float64, 256),
    ],
)
def test_blocks_that_fill_shared_memory_have_more_threads(
    num_classes, dtype, threads, device_like, poisoned
):
    device_like(capability=80, processors=108, shared_bytes=163 << 10, max_cluster=1)
    logits, target = random_rows(2, num_classes, dtype)
    launch = extension("cuda").row_loss_launch(logits)
    assert (launch["kind"], launch["threads"]) == ("cluster", threads)
    assert_right(logits, target)


@pytest.mark.parametrize("form", ["cluster", "cluster-of-16"])
@pytest.mark.parametrize("placed", [1, 2])
def test_clusters_that_the_device_does_not_place(placed, form, device_like, monkeypatch, poisoned):
    """As under MPS, which the device's own description does not know of."""
    logits, target = random_rows(3, 53, torch.bfloat16)
    device_like(placed_cluster=placed)
    with checked("cuda", form, monkeypatch):
        assert_right(logits, target)


def test_neighbouring_positions_go_in_tiles():
    assert launch_of(2, 150, 64, 64) == ("tile", 1)
    assert launch_of(2, 5000, 64, 64) == ("elements", 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "num_classes", [127, 128, 129, 511, 512, 1023, 1025, 2039, 2040, 2041, 2049, 5000]
)
def test_sizes(num_classes, dtype, device, poisoned):
    logits, target = random_rows(3, num_classes, dtype, device)
    target[0], target[1] = 0, num_classes - 1
    assert_right(logits, target)


@pytest.mark.parametrize("num_rows", [1, 3, 4, 5, 127, 128, 129])
@pytest.mark.parametrize("num_classes", [3, 17, 200])
def test_numbers_of_rows(num_classes, num_rows, device, poisoned):
    assert_right(*random_rows(num_rows, num_classes, torch.float32, device))


def test_a_row_of_a_large_cluster_as_planned(device, poisoned):
    logits, target = random_rows(2, (1 << 18) - 5, torch.bfloat16, device)
    assert launch_of(*logits.shape) == ("cluster", 16)
    assert_right(logits, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_parts(dtype, device, monkeypatch, poisoned):
    """More than a block's threads, and than a warp's lanes, which merge them."""
    logits, target = random_rows(2, 8000, dtype, device)
    logits[0] *= 0.1  # a row without clamped classes, and one with
    with checked("cuda", "split", monkeypatch):
        assert_right(logits, target)
        _, aux = ak.robust_loss(logits, target, TERMS, return_aux="argmax")
    assert torch.equal(aux.argmax, logits.argmax(1))


def test_all_parts_agree_on_what_is_clamped(device, monkeypatch, poisoned):
    """Rows whose lowest class lies within a rounding of the clamp's margin."""
    logits = torch.randn(256, 560, device=device)
    target = torch.randint(560, (256,), device=device)
    lse = logits.logsumexp(1)
    edge = lse + torch.log(torch.tensor(1e-7)) + 1e-3
    target[target == 7] = 8
    steps = torch.arange(256, device=device) - 128
    logits[:, 7] = edge * (1 + steps * 2.0**-24)
    with checked("cuda", "split", monkeypatch):
        losses, grad = loss_and_grad(logits, target, ak.NNCE(), reduction="none")
    wanted, wanted_grad = expected(logits.double(), target, ak.terms.as_terms(ak.NNCE()))
    assert error(losses, wanted) <= 1e-6
    assert error(grad, wanted_grad) <= 1e-5


@pytest.mark.parametrize("form", LONG_FORMS)
def test_sums_and_gradient_agree_on_what_is_clamped(form, device, monkeypatch, poisoned):
    """Rows of which a class lies within a few roundings of the clamp."""
    logits = torch.randn(64, 41, device=device)
    target = torch.randint(41, (64,), device=device)
    target[target == 7] = 8
    edge = logits.logsumexp(1) + torch.log(torch.tensor(1e-7))
    steps = torch.arange(64, device=device) - 32
    logits[:, 7] = edge * (1 + steps * 2.0**-24)
    with checked("cuda", form, monkeypatch):
        _, grad = loss_and_grad(logits, target, ak.NNCE())
    assert (grad.double().sum(1).abs() <= 1e-6 * grad.abs().sum(1)).all()


@pytest.mark.parametrize("form", LONG_FORMS)
@pytest.mark.parametrize("dtype", DTYPES[1:3])
@pytest.mark.parametrize("offset", [1e3, -1e5, 9e8, -1.1e9, 3e9, -1e12, 1e30, -1e38])
@pytest.mark.parametrize("terms", ["CE", "ANL-CE"])
def test_rows_far_from_zero(terms, offset, dtype, form, device, monkeypatch, poisoned):
    logits, target = random_rows(5, 47, torch.float64, device)
    spread = max(abs(offset) * 2.0**-6, 1)
    logits[1:] *= spread  # the first row is of equal logits, where they are far
    logits = (logits.clamp(-4 * spread, 4 * spread) + offset).to(dtype)
    with checked("cuda", form, monkeypatch):
        assert_right(logits, target, CASES[terms])


def test_the_most_parts():
    kernels = extension("cuda")
    logits = torch.empty(2, 40_000_000, dtype=torch.bfloat16, device=kernels.device_type)
    launch = kernels.row_loss_launch(logits)
    assert launch["kind"] == "split"
    assert launch["blocks"] <= 2 * 1024


@pytest.mark.parametrize("cut", [0, 1, 8])
@pytest.mark.parametrize("num_classes", [96, 4000])
def test_softmax_of_rows_that_start_elsewhere_than_its_gradient(num_classes, cut, device):
    logits = torch.randn(3, num_classes, device=device, requires_grad=True)
    up = torch.randn(3, num_classes + cut, device=device)[:, cut:]
    (grad,) = torch.autograd.grad(ak.softmax(logits), logits, up)
    (by_torch,) = torch.autograd.grad(logits.softmax(-1), logits, up)
    torch.testing.assert_close(grad, by_torch)


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("num_classes", [64, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_columns_that_start_anywhere(dtype, num_classes, start, device):
    logits = torch.randn(3, num_classes, device=device).to(dtype)
    kernels, of_row = load_backend("cuda"), accumulator_dtype(dtype)
    _, lse_parts = kernels.column_sums(logits, None, 0.0, 1.0)
    slopes = torch.randn(start + num_classes, dtype=of_row, device=device)[start:]
    scale = torch.ones((), dtype=of_row, device=device)

    def grad_of(slopes):
        grad = torch.empty_like(logits)
        kernels.column_grad(grad, logits, None, lse_parts, slopes, scale, 0.0, 1.0, False)
        return grad

    torch.testing.assert_close(grad_of(slopes), grad_of(slopes.clone()))


@pytest.mark.parametrize("positions", [128, 131, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_tiles_of_positions(dtype, positions, device, poisoned):
    """Lines of a tile that start at multiples of 16 bytes, and that do not."""
    logits = torch.randn(2, 5, positions, dtype=torch.float64, device=device).to(dtype)
    assert_right(logits, torch.randint(5, (2, positions), device=device))


@pytest.mark.parametrize("form", LONG_FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", range(8))
def test_rows_that_start_anywhere(start, dtype, form, device, monkeypatch, poisoned):
    """The gradient starts elsewhere than its logits, in place it does not."""
    wide, target = random_rows(3, 53, dtype, device)
    logits = wide[:, start : start + 41]
    target %= 41
    with checked("cuda", form, monkeypatch):
        assert_right(logits, target)
        _, wanted = loss_and_grad(logits, target, TERMS)
        leaf = wide.clone().requires_grad_()
        inside = (leaf * 1)[:, start : start + 41]
        ak.robust_loss(inside, target, TERMS, inplace=True).backward()
    assert torch.equal(leaf.grad[:, start : start + 41], wanted)


@pytest.mark.parametrize("form", [form for backend, form in FORMS if backend == "cuda"])
@pytest.mark.parametrize("num_classes", [1, 2, 7, 8, 9, 16, 24])
def test_short_rows_in_every_form(num_classes, form, device, monkeypatch, poisoned):
    """Threads, warps and blocks of a cluster that have nothing to do."""
    logits, target = random_rows(3, num_classes, torch.bfloat16, device)
    with checked("cuda", form, monkeypatch):
        losses, grad = loss_and_grad(logits, target, TERMS, reduction="none")
    with ak.use_backend("reference"):
        wanted, wanted_grad = loss_and_grad(logits.double(), target, TERMS, reduction="none")
    assert error(losses, wanted) <= slack(torch.bfloat16)
    assert_rounded(grad, wanted_grad)


def test_the_most_terms(device):
    logits, target = random_rows(3, 20, torch.float64, device)
    many = [ak.NNCE(min_prob=1e-3 / (i + 1)) for i in range(extension("cuda").max_terms)]
    assert_right(logits, target, ak.terms.as_terms(sum(many[1:], 1.0 * many[0])))
    with pytest.raises(RuntimeError, match="up to 32 terms, got 33"):
        ak.robust_loss(logits, target, sum(many, 2.0 * ak.CE()))
