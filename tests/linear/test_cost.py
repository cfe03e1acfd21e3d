"""What is not needed costs no product; what is, one."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.linear import loss as route
from anl_kernels.linear import operators
from tests.cases import CASES
from tests.linear.counting import products
from tests.linear.heads import chunks_of, fused_loss, random_head, unfused_loss

TERMS = CASES["ANL-CE"]


def cost(head, terms=TERMS, rows=None, **options):
    """Products of a step over chunks of 4 rows."""

    def step():
        loss = fused_loss(head, terms, **options, **chunks_of(4, head))
        if loss.requires_grad:
            loss.sum().backward()

    return products(step, head, rows)


def trained(*names, dtype=torch.float32, device="cpu"):
    """A head of which only some tensors require grad."""
    head = random_head(dtype=dtype, device=device)
    for name in names:
        getattr(head, name).requires_grad_()
    return head


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request):
    return request.param


def test_the_counter_counts(dtype, device):
    head = trained("hidden", "weight", dtype=dtype, device=device)
    assert products(lambda: unfused_loss(head, TERMS).backward(), head) == 3


def test_a_step_is_three_products(dtype, device):
    assert cost(trained("hidden", "weight", "bias", dtype=dtype, device=device)) == 3


@pytest.mark.parametrize("names", [["hidden"], ["weight"], ["hidden", "bias"], ["weight", "bias"]])
def test_a_frozen_factor_spares_a_product(names, dtype, device):
    assert cost(trained(*names, dtype=dtype, device=device)) == 2


def test_a_bias_alone_needs_no_more_than_the_logits(dtype, device):
    assert cost(trained("bias", dtype=dtype, device=device)) == 1


def test_nothing_to_train(dtype, device):
    assert cost(trained(dtype=dtype, device=device)) == 1


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients(without, dtype, device):
    head = trained("hidden", "weight", "bias", dtype=dtype, device=device)
    with without():
        assert cost(head) == 1


@pytest.mark.parametrize("names", [["hidden"], ["weight"], ["hidden", "weight"]])
@pytest.mark.parametrize(
    ("dtype", "reduction"),
    [(torch.float32, "none"), (torch.float16, "mean"), (torch.float64, "sum")],
)
def test_recomputing_is_one_product_more(dtype, reduction, names, device):
    head = trained(*names, dtype=dtype, device=device)
    assert cost(head, reduction=reduction) == 2 + len(names)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_gradient_of_sample_weights_alone_costs_nothing(reduction, device):
    factors = torch.rand(11, device=device, requires_grad=True)
    assert cost(trained(device=device), sample_weight=factors, reduction=reduction) == 1
    assert factors.grad is not None


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_gradient_of_term_weights_alone_costs_nothing(reduction, device):
    alpha = torch.tensor(2.0, device=device, requires_grad=True)
    assert cost(trained(device=device), alpha * ak.NCE() + ak.MAE(), reduction=reduction) == 1
    assert alpha.grad is not None


def test_learned_factors_cost_no_product(device):
    factors = torch.rand(11, device=device, requires_grad=True)
    alpha = torch.tensor(2.0, device=device, requires_grad=True)
    head = trained("hidden", "weight", device=device)
    assert cost(head, alpha * ak.NCE(), sample_weight=factors) == 3


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_cost_nothing_if_they_are_skipped(reduction, device):
    head = trained("hidden", "weight", device=device).with_ignored(0, 3, 4, 9)
    step = 3 if reduction == "mean" else 4
    options = {"reduction": reduction}
    assert cost(head, rows=7, skip_ignored=True, **options) == step
    assert cost(head, rows=11, skip_ignored=False, **options) == step


def test_ignored_rows_are_skipped_on_a_cpu_unless_told_otherwise(device):
    head = trained("hidden", "weight", device=device).with_ignored(0, 3, 4, 9)
    assert cost(head, rows=7 if device.type == "cpu" else 11) == 3


@pytest.mark.parametrize("wanted", ["lse", ["p_y", "argmax"]])
def test_ignored_rows_are_computed_where_their_results_are_asked_for(wanted, device):
    head = random_head(dtype=torch.float32, device=device).with_ignored(0, 3, 4, 9)
    assert products(lambda: fused_loss(head, TERMS, return_aux=wanted), head, rows=11) == 1


def test_all_rows_ignored_cost_nothing(device):
    head = trained("hidden", "weight", device=device).with_ignored(*range(11))
    assert cost(head, skip_ignored=True) == 0


def test_padding_costs_nothing(device):
    head = trained("hidden", "weight", "bias", device=device)
    head.target.clamp_(max=5)
    assert cost(head, num_classes=6) == pytest.approx(3 * 6 / 9)


@pytest.mark.parametrize("names", [["hidden"], ["weight"], ["bias"], ["hidden", "bias"]])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_what_is_trained_has_a_gradient(reduction, names, device):
    head = trained(*names, device=device)
    fused_loss(head, TERMS, reduction=reduction).sum().backward()
    with_one = {name for name, t in head._asdict().items() if t.grad is not None}
    assert with_one == set(names)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_gradient_without_need(reduction, device):
    assert not fused_loss(trained(device=device), TERMS, reduction=reduction).requires_grad


@pytest.mark.parametrize("names", [[], ["hidden"]])
def test_rows_have_gradients_only_where_they_are_needed(names, device, monkeypatch):
    asked, walk = [], operators.Walk

    def spy(*args):
        asked.append(args[-1])
        return walk(*args)

    monkeypatch.setattr(operators, "Walk", spy)
    cost(trained(*names, device=device))
    assert asked == [bool(names)]


def test_the_backend_is_chosen_for_the_logits(device, monkeypatch):
    """On a GPU it depends on their number of classes and dtype which kernels are faster."""
    chosen_for, choose = [], route.choose_backend

    def spy(logits, terms):
        chosen_for.append((logits.dtype, logits.shape[-1], logits.stride(-1), logits.device))
        return choose(logits, terms)

    monkeypatch.setattr(route, "choose_backend", spy)
    head = trained("weight", device=device)
    head.target.clamp_(max=7)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        fused_loss(head, TERMS, num_classes=8)
    assert chosen_for == [(torch.bfloat16, 8, 1, head.hidden.device)]


def test_a_second_backward_computes_again(device):
    """What the first one was handed may have changed since, so it is not kept."""
    head = trained("hidden", "weight", device=device)
    loss = fused_loss(head, TERMS)
    loss.backward(retain_graph=True)
    assert products(loss.backward, head) == 3
