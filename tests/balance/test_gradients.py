"""The value is the plain loss; the gradient is that of each term times its factor."""

import pytest
import torch

import anl_kernels as ak
from tests.balance.definitions import (
    IGNORE,
    MODES,
    NORMALISED,
    SOME,
    balance_of,
    balanced_by_formula,
    factors_of,
    losses_of_terms,
    problem,
    weights_of,
)
from tests.cases import CASES, over
from tests.forms import FORMS, forced
from tests.helpers import error, loss_and_grad
from tests.test_layouts import labels_for, make

SHAPES = [(7,), (5, 6), (2, 6, 4), (2, 6, 2, 3)]
SLACK = {torch.float64: 1e-12, torch.float32: 2e-6}
modes = pytest.mark.parametrize("mode", MODES)


def over_some():
    return pytest.mark.parametrize("terms", SOME.values(), ids=SOME)


def scale_of(target, reduction):
    number = max(1, int((target != IGNORE).sum()))
    return 1 / number if reduction == "mean" else 1.0


def assert_right(logits, target, terms, mode, reduction="mean", row_scale=1.0, **options):
    """In the accuracy of the dtype; the plain value to its last digits."""
    num_classes = logits.shape[min(1, logits.dim() - 1)]
    balance = balance_of(mode, terms, num_classes, logits.device, training=False)
    row_scale = row_scale * scale_of(target, reduction)
    wanted = balanced_by_formula(logits, target, terms, mode, row_scale, balance.running)
    options = {"reduction": reduction, **options}
    loss, grad = loss_and_grad(logits, target, terms, class_scale=balance, **options)
    slack = SLACK[loss.dtype]
    value = wanted[0] if reduction == "none" else wanted[0].sum()
    assert error(loss, value) <= slack
    plain, _ = loss_and_grad(logits, target, terms, **options)
    assert error(loss, plain) <= slack
    rounding = 0 if logits.dtype in SLACK else torch.finfo(logits.dtype).eps
    assert error(grad, wanted[1]) <= 4 * slack + rounding


@over([*NORMALISED, "ANL-CE", "ANL-FL", "all"])
def test_terms(terms, backend, device, poisoned):
    """Of what is interpreted two modes say it: "batch" takes what "row" and "running" have."""
    for mode in ("row", "running") if backend == "triton" else MODES:
        assert_right(*problem((5, 6), device=device), terms, mode)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@modes
def test_shapes_and_reductions(mode, reduction, backend, device, poisoned):
    for shape in SHAPES[2:] if backend == "triton" else SHAPES:
        assert_right(*problem(shape, device=device), SOME["mixed"], mode, reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@modes
def test_dtypes(mode, dtype, backend, device, poisoned):
    """In one pass, and recomputed."""
    for reduction in ("sum", "none"):
        assert_right(*problem((5, 6), dtype, device), SOME["mixed"], mode, reduction)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@modes
def test_forms_of_gpus(mode, form, device, monkeypatch, poisoned):
    with forced(*form, monkeypatch):
        for reduction in ("sum", "none")[: 1 + (form[0] == "cuda")]:
            logits, target = problem((3, 37), torch.float32, device)
            assert_right(logits, target, SOME["mixed"] + ak.NNCE(), mode, reduction)


@pytest.mark.parametrize("shape", [(3, 9001), (3, 70, 40), (2, 9001, 2)], ids=str)
@modes
def test_long_rows_and_tiles_of_the_cpu(mode, shape, poisoned):
    terms = ak.NCE() + 0.5 * ak.NNCE() + ak.NFL() + ak.NNFL(gamma=2.0) + ak.NGCE() + ak.MAE()
    with ak.use_backend("cpu"):
        assert_right(*problem(shape, torch.float32), terms, mode)
        assert_right(*problem(shape, torch.float64), terms, mode, "none")


@pytest.mark.parametrize(
    "layout", ["one-row", "transposed", "columns-strided", "channels_last", "5d", "4d-window"]
)
@modes
def test_layouts(mode, layout, kernels, device, poisoned):
    logits = make(layout, device, torch.float32)
    before = logits.clone()
    assert_right(logits, labels_for(logits), CASES["ANL-CE"], mode)
    assert torch.equal(logits, before)


@modes
def test_class_weights_and_weights_of_rows(mode, quick, device):
    """They scale rows, and enter no mean of denominators."""
    logits, target = problem((5, 6), device=device)
    weight, sample_weight = torch.rand(6, device=device), torch.rand(5, device=device)
    of_labels = weight.double()[target.clamp(min=0)].masked_fill(target == IGNORE, 0)
    scale = of_labels * sample_weight
    options = {"weight": weight.double(), "sample_weight": sample_weight.double()}
    assert_right(logits, target, SOME["mixed"], mode, "none", scale, **options)
    balance = balance_of(mode, SOME["mixed"], 6, device, training=False)
    state = balance.running
    _, wanted = balanced_by_formula(
        logits, target, SOME["mixed"], mode, scale / of_labels.sum(), state
    )
    _, grad = loss_and_grad(logits, target, SOME["mixed"], class_scale=balance, **options)
    assert error(grad, wanted) <= 1e-12


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("learns", [True, False])
@modes
def test_learned_weights_have_the_plain_gradient(mode, learns, reduction, quick, device):
    """Of rows and of terms; whether or not logits learn too."""
    logits, target = problem((5, 6), device=device)
    numbers = {"dtype": torch.float64, "device": device}
    sample_weight, alpha = torch.rand(5, **numbers), torch.tensor(0.7, **numbers)
    up = torch.rand(5, **numbers) if reduction == "none" else torch.rand((), **numbers)

    def gradients(**options):
        given = [logits.clone(), sample_weight.clone(), alpha.clone()]
        for tensor in given if learns else given[1:]:
            tensor.requires_grad_()
        terms = given[2] * ak.NCE() + ak.GCE() + 0.5 * (given[2] * ak.NNCE())
        options = {"sample_weight": given[1], "reduction": reduction, **options}
        loss = ak.robust_loss(given[0], target, terms, **options)
        inputs = given if learns else given[1:]
        return terms, loss, torch.autograd.grad(loss, inputs, up)

    balance = balance_of(mode, 0.7 * ak.NCE() + ak.GCE() + 0.35 * ak.NNCE(), 6, device)
    before = None if balance.running is None else balance.running.clone()
    _, plain, wanted = gradients()
    _, loss, made = gradients(class_scale=balance)
    assert error(loss.detach(), plain.detach()) <= 1e-12
    for ours, theirs in zip(made[-2:], wanted[-2:], strict=True):
        assert error(ours, theirs) <= 1e-12
    if learns:
        terms = 0.7 * ak.NCE() + ak.GCE() + 0.35 * ak.NNCE()
        scale = sample_weight * up * scale_of(target, reduction)
        _, by_formula = balanced_by_formula(logits, target, terms, mode, scale, before)
        assert error(made[0], by_formula) <= 1e-12


@modes
def test_an_upstream_gradient_for_each_row(mode, quick, device):
    logits, target = problem((2, 6, 4), device=device)
    up = torch.randn(2, 4, dtype=torch.float64, device=device)
    balance = balance_of(mode, SOME["mixed"], 6, device, training=False)
    leaf = logits.clone().requires_grad_()
    loss = ak.robust_loss(leaf, target, SOME["mixed"], class_scale=balance, reduction="none")
    loss.backward(up)
    _, wanted = balanced_by_formula(logits, target, SOME["mixed"], mode, up, balance.running)
    assert error(leaf.grad, wanted) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@modes
def test_inplace(mode, dtype, quick, device):
    logits, target = problem((5, 6), dtype, device)
    for reduction in ("mean", "none"):
        results = []
        for inplace in (False, True):
            leaf = logits.clone().requires_grad_()
            balance = balance_of(mode, SOME["ANL-CE"], 6, device)
            options = {"class_scale": balance, "inplace": inplace, "reduction": reduction}
            ak.robust_loss(leaf * 1, target, SOME["ANL-CE"], **options).sum().backward()
            results.append(leaf.grad)
        assert torch.equal(*results)


@modes
def test_inplace_leaves_the_gradient_where_the_logits_were(mode, kernels, device):
    logits, target = problem((5, 6), torch.float32, device)
    leaf = logits.clone().requires_grad_()
    computed = leaf * 1
    balance = balance_of(mode, SOME["ANL-CE"], 6, device)
    ak.robust_loss(computed, target, SOME["ANL-CE"], class_scale=balance, inplace=True).backward()
    assert torch.equal(computed.detach(), leaf.grad)


@modes
def test_a_second_backward(mode, quick, device):
    for dtype in (torch.float32, torch.float64):
        logits, target = problem((5, 6), dtype, device)
        leaf = logits.requires_grad_()
        balance = balance_of(mode, SOME["mixed"], 6, device)
        loss = ak.robust_loss(leaf, target, SOME["mixed"], class_scale=balance)
        first, second = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
        assert error(second, first) <= (1e-6 if dtype == torch.float32 else 0)


@modes
def test_same_bits_twice(mode, quick, device):
    for reduction in ("mean", "none"):
        logits, target = problem((5, 6), torch.float32, device)
        first, second = (
            loss_and_grad(
                logits,
                target,
                SOME["mixed"],
                reduction=reduction,
                class_scale=balance_of(mode, SOME["mixed"], 6, device),
            )
            for _ in range(2)
        )
        assert all(map(torch.equal, first, second))


@modes
def test_a_hook_and_an_accumulated_gradient(mode, quick, device):
    logits, target = problem((5, 6), torch.float32, device)
    options = {"class_scale": balance_of(mode, SOME["ANL-CE"], 6, device, training=False)}
    _, wanted = loss_and_grad(logits, target, SOME["ANL-CE"], **options)
    leaf = logits.clone().requires_grad_()
    seen = []
    leaf.register_hook(lambda grad: seen.append(grad.clone()))
    for _ in range(2):
        ak.robust_loss(leaf, target, SOME["ANL-CE"], **options).backward()
    assert error(leaf.grad, 2 * wanted) <= 1e-6
    assert error(seen[1], wanted) <= 1e-6


@modes
def test_logits_written_to_between_forward_and_backward(mode, kernels, device):
    """As with the plain loss: a gradient of other logits is refused."""
    logits, target = problem((5, 6), torch.float64, device)
    leaf = logits.requires_grad_()
    computed = leaf * 1
    balance = balance_of(mode, SOME["ANL-CE"], 6, device)
    loss = ak.robust_loss(computed, target, SOME["ANL-CE"], class_scale=balance)
    computed.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["none", "mean"])
@modes
def test_no_row_that_counts(mode, reduction, quick, device):
    for num_rows in (3, 0):
        logits = torch.randn(num_rows, 6, device=device)
        target = torch.full((num_rows,), IGNORE, device=device)
        balance = balance_of(mode, SOME["mixed"], 6, device)
        options = {"reduction": reduction, "class_scale": balance}
        loss, grad = loss_and_grad(logits, target, SOME["mixed"], **options)
        assert not loss.any()
        assert not grad.any()


@modes
def test_ignored_rows_are_not_read(mode, backend, device, poisoned):
    logits, target = problem((4, 6), torch.float32, device)
    wanted = loss_and_grad(
        logits, target, SOME["ANL-CE"], class_scale=balance_of(mode, SOME["ANL-CE"], 6, device)
    )
    logits[target == IGNORE] = torch.nan
    made = loss_and_grad(
        logits, target, SOME["ANL-CE"], class_scale=balance_of(mode, SOME["ANL-CE"], 6, device)
    )
    assert all(map(torch.equal, made, wanted))


@modes
def test_one_class(mode, backend, device):
    terms = SOME["ANL-CE"] + ak.NGCE()
    logits, target = torch.randn(3, 1, device=device), torch.zeros(3, device=device).long()
    _, grad = loss_and_grad(logits, target, terms, class_scale=balance_of(mode, terms, 1, device))
    assert not grad.any()


@modes
def test_missing_classes(mode, backend, device):
    terms = SOME["ANL-CE"] + ak.NFL() + ak.MAE()
    logits, target = problem((4, 9), device=device, ignored=False)
    there = torch.tensor([0, 2, 3, 5, 6, 8], device=device)
    masked = torch.full_like(logits, -torch.inf).index_copy(1, there, logits[:, there])
    target = target % len(there)
    balance = balance_of(mode, terms, 9, device, training=False)
    # Of a running mean the number of columns is known alone.
    state = None if balance.running is None else balance.running * 9 / len(there)
    losses, wanted = balanced_by_formula(logits[:, there], target, terms, mode, 1.0, state)
    for reduction in ("sum", "none"):
        options = {"class_scale": balance, "reduction": reduction}
        loss, grad = loss_and_grad(masked, there[target], terms, **options)
        assert error(loss.sum(), losses.sum()) <= 1e-12
        assert error(grad[:, there], wanted) <= 1e-12
        assert grad.count_nonzero() <= grad[:, there].numel()


@modes
def test_an_absent_label(mode, backend, device):
    """NCE is divided by infinity there: no gradient, no NaN, and no part in a mean."""
    logits, target = problem((4, 6), device=device, ignored=False)
    terms = SOME["NCE"]
    others = [0, 2, 3]
    balance = balance_of(mode, terms, 6, device, training=False)
    _, wanted = balanced_by_formula(logits[others], target[others], terms, mode, 1, balance.running)
    logits[1, target[1]] = -torch.inf
    for reduction in ("sum", "none"):
        options = {"class_scale": balance, "reduction": reduction}
        _, grad = loss_and_grad(logits, target, terms, **options)
        assert error(grad[others], wanted) <= 1e-12
        assert not grad[1].any()


@modes
def test_nan_is_of_its_row(mode, backend, device):
    logits, target = problem((4, 6), device=device, ignored=False)
    logits[1, 2] = torch.nan
    others = [0, 2, 3]
    balance = balance_of(mode, SOME["ANL-CE"], 6, device)
    given = None if balance.running is None else balance.running.clone()
    _, wanted = balanced_by_formula(
        logits[others], target[others], SOME["ANL-CE"], mode, 1.0, given
    )
    options = {"class_scale": balance, "reduction": "none"}
    loss, grad = loss_and_grad(logits, target, SOME["ANL-CE"], **options)
    assert loss.isnan().tolist() == [False, True, False, False]
    assert error(grad[others], wanted) <= 1e-12
    assert grad[1].isnan().all()
    assert balance.running is None or balance.running.isfinite().all()


@modes
def test_padded_classes(mode, quick, device):
    """Columns beyond ``num_classes`` are none."""
    logits, target = problem((4, 6), device=device)
    padded = torch.cat([logits, torch.full((4, 3), 50.0, device=device)], 1)
    terms = SOME["mixed"]
    balance = balance_of(mode, terms, 6, device, training=False)
    ours = loss_and_grad(padded, target, terms, class_scale=balance, num_classes=6)
    wanted = loss_and_grad(logits, target, terms, class_scale=balance)
    assert error(ours[0], wanted[0]) <= 1e-12
    assert error(ours[1][:, :6], wanted[1]) <= 1e-12
    assert not ours[1][:, 6:].any()


@modes
def test_without_normalised_terms_nothing_changes(mode, quick, device):
    logits, target = problem((4, 6), torch.float32, device)
    balance = balance_of(mode, ak.GCE() + ak.MAE(), 6, device)
    before = None if balance.running is None else balance.running.clone()
    ours = loss_and_grad(logits, target, ak.GCE() + ak.MAE(), class_scale=balance)
    assert all(map(torch.equal, ours, loss_and_grad(logits, target, ak.GCE() + ak.MAE())))
    assert before is None or torch.equal(before, balance.running)


@modes
def test_without_gradients_it_is_the_plain_call(mode, quick, device):
    logits, target = problem((4, 6), torch.float32, device)
    balance = balance_of(mode, SOME["mixed"], 6, device)
    before = None if balance.running is None else balance.running.clone()
    with torch.no_grad():
        ours = ak.robust_loss(logits, target, SOME["mixed"], class_scale=balance)
        assert torch.equal(ours, ak.robust_loss(logits, target, SOME["mixed"]))
    assert before is None or torch.equal(before, balance.running)


@modes
def test_aux_is_that_of_the_plain_loss(mode, backend, device):
    logits, target = problem((4, 6), torch.float32, device)
    names = ("term_losses", "lse", "p_y", "argmax", "probs", "denominators")
    _, wanted = ak.robust_loss(logits, target, SOME["mixed"], return_aux=names)
    balance = balance_of(mode, SOME["mixed"], 6, device)
    for leaf in (logits, logits.clone().requires_grad_()):
        _, aux = ak.robust_loss(leaf, target, SOME["mixed"], class_scale=balance, return_aux=names)
        for name in names:
            assert torch.equal(getattr(aux, name), getattr(wanted, name)), name
            assert not getattr(aux, name).requires_grad
    _, some = ak.robust_loss(leaf, target, SOME["mixed"], class_scale=balance, return_aux=("lse",))
    assert some.term_losses is None
    assert some.denominators is None


def test_the_parts_of_the_definition_agree(device):
    """The factors here, and the sums that make a value, are of the same terms."""
    logits, target = problem((5, 6), device=device)
    terms = CASES["all"]
    factors = factors_of(logits, target, terms, "batch")
    plain = [not term.normalised for term in terms.terms]
    assert (factors[plain] == 1).all()
    weights = weights_of(terms, logits)[:, None]
    value = (weights * losses_of_terms(logits, target, terms)).sum()
    torch.testing.assert_close(value, ak.robust_loss(logits, target, terms, reduction="sum"))
