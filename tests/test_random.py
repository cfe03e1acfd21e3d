"""Random shapes, strides, dtypes, terms and values: kernels against the reference."""

import math

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES
from tests.helpers import backend_in_use, loss_and_grad

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

SETTINGS = hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # to shrink takes minutes
    suppress_health_check=list(hypothesis.HealthCheck),
)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

ordinary = st.floats(-30, 30, width=16)
ties = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
extreme = st.sampled_from([-math.inf, -6e4, -1e4, -1e-40, -0.0, 5e-8, 1e-40, 1e4, 6e4])
anything = st.one_of(ordinary, extreme, st.sampled_from([math.inf, math.nan]))


@st.composite
def problems(draw, values):
    num_classes = draw(st.integers(1, 9))
    sizes = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    shape = (num_classes,) if not sizes else (sizes[0], num_classes, *sizes[1:])
    stretch = [draw(st.integers(1, 2)) for _ in shape]
    order = draw(st.permutations(range(len(shape))))
    full = [n * s for n, s in zip(shape, stretch, strict=True)]
    numbers = draw(st.lists(values, min_size=math.prod(full), max_size=math.prod(full)))
    dtype = draw(st.sampled_from(DTYPES))
    memory = torch.tensor(numbers, dtype=torch.float64).to(dtype).reshape([full[i] for i in order])
    logits = memory.permute([order.index(i) for i in range(len(shape))])
    logits = logits[tuple(slice(None, None, s) for s in stretch)]
    labels = st.one_of(st.integers(0, num_classes - 1), st.just(-100))
    target = torch.tensor(
        draw(st.lists(labels, min_size=math.prod(sizes), max_size=math.prod(sizes)))
    )
    return logits, target.reshape(sizes)


def both(logits, target, terms, device, **options):
    logits, target = logits.to(device), target.to(device)
    results = []
    for backend in (backend_in_use(), "reference"):
        with ak.use_backend(backend):
            results.append(loss_and_grad(logits, target, terms, **options))
    return results


def assert_agree(ours, wanted, dtype):
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5}.get(dtype, 4 * torch.finfo(dtype).eps)
    for actual, value in zip(ours, wanted, strict=True):
        size = value.nan_to_num(0, 0, 0).abs().max().item() if value.numel() else 0
        torch.testing.assert_close(
            actual, value, rtol=tolerance, atol=tolerance * max(size, 1e-3), equal_nan=True
        )


# "all" and z-loss square the lse, which overflows float32's narrower kin at 6e4.
names = st.sampled_from(sorted(set(CASES) - {"all", "ZLoss"}))
reductions = st.sampled_from(["mean", "sum", "none"])


@SETTINGS
@hypothesis.given(problems(st.one_of(ordinary, ties)), names, reductions)
def test_ordinary_values(kernels, device, problem, name, reduction):
    logits, target = problem
    assert_agree(*both(logits, target, CASES[name], device, reduction=reduction), logits.dtype)


def target_is_there(logits, target):
    classes_last = logits.movedim(1, -1) if logits.dim() > 1 else logits
    chosen = classes_last.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return bool(((chosen > -torch.inf) | (target == -100)).all())


@SETTINGS
@hypothesis.given(problems(st.one_of(ordinary, extreme)), names, reductions)
def test_extreme_values(kernels, device, problem, name, reduction):
    logits, target = problem
    hypothesis.assume(target_is_there(logits, target))
    (loss, grad), wanted = both(logits, target, CASES[name], device, reduction=reduction)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    assert_agree((loss, grad), wanted, logits.dtype)


@SETTINGS
@hypothesis.given(problems(anything), names)
def test_a_row_of_anything_harms_no_other(kernels, device, problem, name):
    logits, target = problem
    losses, grad = loss_and_grad(
        logits.to(device), target.to(device), CASES[name], reduction="none"
    )
    classes_last = logits.movedim(1, -1) if logits.dim() > 1 else logits
    sound = classes_last.isfinite().all(-1) & (classes_last.abs() < 1e3).all(-1)
    grad_rows = grad.movedim(1, -1) if grad.dim() > 1 else grad
    assert losses.cpu()[sound].isfinite().all()
    assert grad_rows.cpu()[sound].isfinite().all()


@SETTINGS
@hypothesis.given(problems(st.one_of(ordinary, ties)))
def test_aux(kernels, device, problem):
    logits, target = problem
    logits, target = logits.to(device), target.to(device)
    outputs = {}
    for backend in (kernels, "reference"):
        with ak.use_backend(backend):
            wanted = ("term_losses", "lse", "p_y", "argmax", "probs")
            _, outputs[backend] = ak.robust_loss(logits, target, CASES["ANL-CE"], return_aux=wanted)
    ours, reference = outputs[kernels], outputs["reference"]
    assert torch.equal(ours.argmax, reference.argmax)
    for name in ("term_losses", "lse", "p_y", "probs"):
        actual, value = getattr(ours, name), getattr(reference, name)
        assert_agree((actual,), (value,), value.dtype)


@SETTINGS
@hypothesis.given(problems(st.one_of(ordinary, extreme)))
def test_softmax(kernels, device, problem):
    logits, _ = problem
    dim = min(1, logits.dim() - 1)
    hypothesis.assume((logits > -torch.inf).any(dim).all())
    probs = ak.softmax(logits.to(device), dim).cpu()
    assert_agree((probs,), (torch.softmax(logits.double(), dim).to(logits.dtype),), logits.dtype)
