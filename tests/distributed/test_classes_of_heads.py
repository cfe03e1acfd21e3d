"""Fused heads whose classes a process group shares equal the whole ones."""

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from tests.cases import CASES, KINDS
from tests.distributed.helpers import NUM_CLASSES, SPLITS, assert_close, mine, shards_of

WIDTH = 6


def inputs(dtype=torch.float64, rows=(9,)):
    """(hidden, weight, bias, target), the same on every rank."""
    hidden = torch.randn(*rows, WIDTH, dtype=torch.float64)
    weight = torch.randn(NUM_CLASSES, WIDTH, dtype=torch.float64)
    bias = torch.randn(NUM_CLASSES, dtype=torch.float64)
    target = torch.randint(NUM_CLASSES, rows)
    target.view(-1)[2:4] = -100
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), target


def loss_and_grads(leaves, target, terms, **options):
    hidden, weight, bias = leaves
    loss = ak.linear_robust_loss(hidden, weight, target, terms, bias, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)


def of_ranks(group, sizes, tensors, terms, **options):
    """The loss and the gradients of hidden, weight and bias here."""
    shards = shards_of(group, sizes)
    hidden, weight, bias, target = tensors
    leaves = hidden.clone().requires_grad_(), mine(weight, shards, 0), mine(bias, shards, 0)
    return loss_and_grads(leaves, target, terms, process_group=shards, **options)


def of_one(group, sizes, tensors, terms, **options):
    """The same by one that has all classes."""
    shards = shards_of(group, sizes)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    loss, of_hidden, of_weight, of_bias = loss_and_grads(leaves, tensors[3], terms, **options)
    here = [mine(grad, shards, 0).detach() for grad in (of_weight, of_bias)]
    return loss, of_hidden, *here


def check_values(group, sizes, names, backend, options):
    tensors = inputs()
    for name in names:
        with ak.use_backend(backend):
            ours = of_ranks(group, sizes, tensors, CASES[name], **options)
            wanted = of_one(group, sizes, tensors, CASES[name], **options)
        for actual, one in zip(ours, wanted, strict=True):
            assert_close(actual, one, 1e-11, name)


def bytes_of(rows):
    return {"chunk_bytes": rows * NUM_CLASSES * 8}


@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_terms(ranks, sizes, backend):
    options = {"chunk_bytes": 3 * max(sizes) * 8}
    names = KINDS if backend == "reference" else list(CASES)
    ranks(len(sizes), check_values, sizes, names, backend, options)


@pytest.mark.parametrize(
    "options",
    [
        bytes_of(1),
        bytes_of(100),
        {"reduction": "none"},
        {"reduction": "sum", "skip_ignored": False},
        {"logit_softcap": 2.0, **bytes_of(2)},
        {"class_scale": "auto", "weight": torch.rand(NUM_CLASSES).double()},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
def test_options(ranks, options, backend):
    ranks(3, check_values, SPLITS["3-empty"], ["ANL-CE"], backend, options)


def check_dtype(group, sizes, dtype):
    tensors = inputs(dtype, (3, 5))
    doubles = [t.double() if t.is_floating_point() else t for t in tensors]
    for name in KINDS:
        ours = of_ranks(group, sizes, tensors, CASES[name], chunk_bytes=200)
        one = of_one(group, sizes, tensors, CASES[name], chunk_bytes=200)
        truth = of_one(group, sizes, doubles, CASES[name])
        for i, (actual, whole, true) in enumerate(zip(ours, one, truth, strict=True)):
            if not true.numel():
                continue
            # Gradients are sums of parts, of ranks or of chunks, which are rounded before.
            rounding = torch.finfo(dtype).eps / 2 * true.norm() if i else 0
            allowed = 1.1 * (whole - true).norm() + 2e-6 * true.norm() + rounding
            assert (actual - true).norm() <= allowed, (name, i)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(ranks, dtype):
    ranks(3, check_dtype, SPLITS["3-uneven"], dtype)


def check_log_probs(group, sizes, backend, several):
    """Log-probabilities and what is found beside a loss, by ranks and by one."""
    hidden, weight, bias, target = inputs()
    classes = torch.randint(NUM_CLASSES, (9, 3)) if several else target
    shards = shards_of(group, sizes)
    law = {"temperature": 0.7, "logit_softcap": 5.0, **bytes_of(4)}
    ours = hidden.clone().requires_grad_(), mine(weight, shards, 0), mine(bias, shards, 0)
    whole = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    upstream = torch.randn(classes.shape, dtype=torch.float64)
    with ak.use_backend(backend):
        log_p = ak.linear_log_prob(*ours[:2], classes, ours[2], process_group=shards, **law)
        wanted = ak.linear_log_prob(*whole[:2], classes, whole[2], **law)
        options = {"return_aux": ("entropy", "log_p_y", "p_y")}
        given = classes[:, 0] if several else classes
        _, aux = ak.linear_robust_loss(
            *ours[:2], given, ak.GCE(), ours[2], process_group=shards, **options
        )
        _, of_one = ak.linear_robust_loss(*whole[:2], given, ak.GCE(), whole[2], **options)
    assert_close(log_p.detach(), wanted.detach(), 1e-11, backend)
    grads = torch.autograd.grad(log_p, ours, upstream)
    of_hidden, *of_head = torch.autograd.grad(wanted, whole, upstream)
    here = of_hidden, *(mine(grad, shards, 0).detach() for grad in of_head)
    for actual, one in zip(grads, here, strict=True):
        assert_close(actual, one, 1e-11, backend)
    for name in options["return_aux"]:
        torch.testing.assert_close(getattr(aux, name), getattr(of_one, name))


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_log_probs(ranks, backend, several):
    ranks(3, check_log_probs, SPLITS["3-uneven"], backend, several)


def check_padding(group, sizes, num_classes):
    hidden, weight, bias, target = inputs()
    target = target.clamp(max=num_classes - 1)
    garbage = weight.clone()
    garbage[num_classes:] = torch.nan
    ours = of_ranks(
        group, sizes, (hidden, garbage, bias, target), CASES["all"], num_classes=num_classes
    )
    wanted = of_one(
        group, sizes, (hidden, weight, bias, target), CASES["all"], num_classes=num_classes
    )
    for actual, one in zip(ours, wanted, strict=True):
        torch.testing.assert_close(actual, one)


@pytest.mark.parametrize("num_classes", [39, 9])
def test_padded_vocabulary(ranks, num_classes):
    ranks(4, check_padding, SPLITS["4"], num_classes)


def check_frozen(group, sizes, frozen):
    hidden, weight, _, target = inputs()
    shards = shards_of(group, sizes)
    h, w = hidden.clone().requires_grad_(), mine(weight, shards, 0)
    (h if frozen == "hidden" else w).requires_grad_(False)
    ak.linear_robust_loss(h, w, target, ak.NCE(), process_group=shards).backward()
    whole_h, whole_w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    ak.linear_robust_loss(whole_h, whole_w, target, ak.NCE()).backward()
    assert (h.grad is None) == (frozen == "hidden")
    assert (w.grad is None) == (frozen == "weight")
    if frozen == "hidden":
        assert_close(w.grad, mine(whole_w.grad, shards, 0).detach(), 1e-12)
    else:
        assert_close(h.grad, whole_h.grad, 1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen(ranks, frozen):
    ranks(2, check_frozen, SPLITS["2-uneven"], frozen)


def check_autocast(group, sizes):
    hidden, weight, _, target = inputs(torch.float32)
    shards = shards_of(group, sizes)
    h, w = hidden.clone().requires_grad_(), mine(weight, shards, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ak.linear_robust_loss(h, w, target, ak.GCE(), process_group=shards)
    loss.backward()
    whole = hidden.clone().requires_grad_()
    ak.robust_loss(F.linear(whole, weight), target, ak.GCE()).backward()
    assert h.grad.dtype == w.grad.dtype == torch.float32
    assert_close(h.grad, whole.grad, 1e-2)


def test_autocast(ranks):
    ranks(2, check_autocast, SPLITS["2-uneven"])


def check_module(group, sizes):
    hidden, weight, bias, target = inputs()
    shards = shards_of(group, sizes)
    head = torch.nn.Linear(WIDTH, shards.num_here, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(mine(weight, shards, 0))
        head.bias.copy_(mine(bias, shards, 0))
    loss, aux = ak.LinearRobustLoss(
        head, ak.NCE(), process_group=shards, return_aux=["argmax", "lse"]
    )(hidden, target)
    logits = F.linear(hidden, weight, bias)
    torch.testing.assert_close(loss.detach(), ak.nce(logits, target))
    assert aux.argmax.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(aux.lse, logits.logsumexp(-1))


def test_module(ranks):
    ranks(2, check_module, SPLITS["2-uneven"])


def check_second_derivatives(group, sizes):
    hidden, weight, _, target = inputs()
    shards, found = shards_of(group, sizes), []
    up = torch.randn(hidden.shape, dtype=torch.float64)
    with ak.use_backend("reference"):
        for w, process_group in ((mine(weight, shards, 0), shards), (weight.clone(), None)):
            h = hidden.clone().requires_grad_()
            w.requires_grad_()
            loss = ak.linear_robust_loss(h, w, target, ak.NCE(), process_group=process_group)
            (grad,) = torch.autograd.grad(loss, h, create_graph=True)
            found.append(torch.autograd.grad((grad * up).sum(), (h, w)))
    (of_hidden, of_weight), (whole_hidden, whole_weight) = found
    assert_close(of_hidden, whole_hidden, 1e-10)
    assert_close(of_weight, mine(whole_weight, shards, 0).detach(), 1e-10)


def test_second_derivatives_of_the_reference(ranks):
    ranks(3, check_second_derivatives, SPLITS["3-uneven"])


def check_compiled(group, sizes):
    hidden, weight, _, target = inputs(torch.float32)
    shards = shards_of(group, sizes)

    def grads(function):
        h, w = hidden.clone().requires_grad_(), mine(weight, shards, 0)
        function(h, w).backward()
        return h.grad, w.grad

    def loss(h, w):
        return ak.linear_robust_loss(h, w, target, CASES["ANL-CE"], process_group=shards)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, grads(compiled), grads(loss)))


def test_compiled(ranks):
    ranks(2, check_compiled, SPLITS["2-uneven"])


def check_without_gradients(group, sizes):
    hidden, weight, _, target = inputs()
    shards = shards_of(group, sizes)
    with torch.no_grad():
        loss = ak.linear_robust_loss(
            hidden, mine(weight, shards, 0), target, ak.GCE(), process_group=shards
        )
        whole = ak.linear_robust_loss(hidden, weight, target, ak.GCE())
    torch.testing.assert_close(loss, whole)


def test_without_gradients(ranks):
    ranks(3, check_without_gradients, SPLITS["3-empty"])
