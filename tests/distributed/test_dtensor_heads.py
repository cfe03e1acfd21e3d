"""Fused heads of DTensors: as the whole one, also in what their parameters learn."""

import pytest
import torch
from torch import nn

import anl_kernels as ak
from tests.cases import CASES
from tests.distributed.helpers import NUM_CLASSES, assert_close
from tests.distributed.meshes import R, distributed, leaf, mesh_of, placed, whole

TERMS = CASES["ANL-CE"]
WIDTH = 6
# The shape of the hidden states, the mesh, where they and the weight lie on it; and how many
# classes there are, if not NUM_CLASSES.
HEADS = {
    "rows": ((8, WIDTH), (4,), (0,), (R,)),
    "with-empty": ((5, WIDTH), (4,), (0,), (R,)),
    "sequence": ((2, 7, WIDTH), (4,), (1,), (R,)),
    "rows-and-sequence": ((3, 5, WIDTH), (2, 2), (0, 1), (R, R)),
    "rows-and-classes": ((5, WIDTH), (2, 2), (0, R), (R, 0)),
    "classes-and-sequence": ((2, 5, WIDTH), (2, 2), (R, 1), (0, R)),
    "classes": ((7, WIDTH), (4,), (R,), (0,)),
    "classes-uneven": ((7, WIDTH), (4,), (R,), (0,), 41),
    "rank-without-classes": ((7, WIDTH), (4,), (R,), (0,), 9),
    "classes-of-plain-hidden": ((7, WIDTH), (4,), None, (0,), 41),
}


def head_inputs(shape, dtype, num_classes=NUM_CLASSES):
    """(hidden, weight, bias, target)."""
    hidden = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(num_classes, WIDTH, dtype=torch.float64)
    bias = torch.randn(num_classes, dtype=torch.float64)
    target = torch.randint(num_classes, shape[:-1])
    target.view(-1)[1] = -100
    return *(t.to(dtype) for t in (hidden, weight, bias)), target


def linear(weight, bias):
    """An nn.Linear of copies of these."""
    head = nn.Linear(WIDTH, NUM_CLASSES, dtype=torch.float64)
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def of_head(tensors, target, options):
    loss = ak.linear_robust_loss(tensors[0], tensors[1], target, TERMS, tensors[2], **options)
    up = torch.arange(1.0, 1.0 + loss.numel(), dtype=loss.dtype).view(loss.shape)
    if hasattr(loss, "full_tensor"):
        up = distributed(up, loss.device_mesh, loss.placements)
    grads = torch.autograd.grad((loss * up).sum(), tensors)
    return whole(loss.detach()), grads


def check_head(group, layout, plain, backend, dtype, tolerance, reductions):
    shape, mesh, sharded, by, *num_classes = HEADS[layout]
    *tensors, target = head_inputs(shape, dtype, *num_classes)
    mesh, by = mesh_of(mesh), placed(by)

    def lying(tensor):
        return tensor if sharded is None else distributed(tensor, mesh, placed(sharded))

    labels = lying(target)
    for reduction in reductions:
        options = {"reduction": reduction, "chunk_bytes": 2 * NUM_CLASSES * 8}
        given = [lying(leaf(tensors[0]))]
        for tensor in map(leaf, tensors[1:]):
            given.append(tensor if plain else distributed(tensor, mesh, by))
        ones = [leaf(tensor) for tensor in tensors]
        with ak.use_backend(backend):
            wanted, of_one = of_head(ones, target, options)
            loss, grads = of_head(given, target if plain else labels, options)
        assert_close(loss, wanted, tolerance, reduction)
        for grad, one, tensor in zip(grads, of_one, given, strict=True):
            assert getattr(grad, "placements", None) == getattr(tensor, "placements", None)
            assert_close(whole(grad), one, 20 * tolerance, reduction)


ALL = ("mean", "sum", "none")


@pytest.mark.parametrize("layout", HEADS)
def test_head(ranks, layout):
    ranks(4, check_head, layout, False, "auto", torch.float64, 1e-12, ALL)


@pytest.mark.parametrize("layout", ["with-empty", "rows-and-sequence"])
def test_head_whose_weight_is_plain(ranks, layout):
    ranks(4, check_head, layout, True, "auto", torch.float64, 1e-12, ALL)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("layout", ["with-empty", "rows-and-classes"])
def test_backends_of_the_head(ranks, layout, backend):
    ranks(4, check_head, layout, False, backend, torch.float64, 1e-12, ["mean"])


@pytest.mark.parametrize("layout", ["rows", "rows-and-classes"])
def test_head_in_float32(ranks, layout):
    ranks(4, check_head, layout, False, "auto", torch.float32, 1e-6, ALL)


def check_head_module(group):
    """A criterion whose head lies over a mesh, as distribute_module makes it."""
    from torch.distributed.tensor import distribute_module

    hidden, weight, bias, target = head_inputs((7, WIDTH), torch.float64)
    mesh, by_rows = mesh_of((4,)), placed([0])
    factors = torch.rand(7).double()
    criteria = []
    for _ in range(2):
        alpha = nn.Parameter(torch.tensor(0.5).double())
        terms = alpha * ak.CE() + ak.NCE()
        by_class = torch.linspace(1, 2, NUM_CLASSES).double()
        head, options = linear(weight, bias), {"weight": by_class, "return_aux": ["lse"]}
        criteria.append(ak.LinearRobustLoss(head, terms, **options))
    spread, one = criteria
    distribute_module(spread, mesh)
    loss, aux = spread(*(distributed(t, mesh, by_rows) for t in (hidden, target, factors)))
    wanted, wanted_aux = one(hidden, target, factors)
    loss.backward()
    wanted.backward()
    assert_close(loss.detach(), wanted.detach(), 1e-12)
    assert_close(whole(aux.lse), wanted_aux.lse, 1e-12)
    grads = {name: parameter.grad for name, parameter in one.named_parameters()}
    for name, parameter in spread.named_parameters():
        assert_close(whole(parameter.grad), grads[name], 1e-11, name)


def test_head_of_a_module(ranks):
    ranks(4, check_head_module)


def check_head_compiled(group):
    *tensors, target = head_inputs((7, WIDTH), torch.float32)
    mesh = mesh_of((4,))
    labels = distributed(target, mesh, placed([0]))

    def loss(h, w, b):
        return ak.linear_robust_loss(h, w, labels, TERMS, b)

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        given = [
            distributed(leaf(t), mesh, placed([at]))
            for t, at in zip(tensors, (0, R, R), strict=True)
        ]
        value = function(*given)
        grads = torch.autograd.grad(value, given)
        found.append((value.detach(), *map(whole, grads)))
    torch.testing.assert_close(*found)


def test_head_compiled(ranks):
    ranks(4, check_head_compiled)


def check_log_probs(group, several):
    """Rows over ranks: a DTensor that lies as they do, and whole gradients of the head."""
    hidden, weight, bias, target = head_inputs((7, WIDTH), torch.float64)
    mesh, by_rows = mesh_of((4,)), placed([0])
    classes = torch.stack([target, target.clamp(0).roll(1)], -1) if several else target
    upstream = torch.randn(classes.shape, dtype=torch.float64)
    ones = [leaf(tensor) for tensor in (hidden, weight, bias)]
    wanted = ak.linear_log_prob(*ones[:2], classes, ones[2])
    of_one = torch.autograd.grad(wanted, ones, upstream)
    for labels in (classes, distributed(classes, mesh, by_rows)):
        given = [distributed(leaf(hidden), mesh, by_rows), leaf(weight), leaf(bias)]
        log_p = ak.linear_log_prob(*given[:2], labels, given[2])
        assert log_p.placements == tuple(by_rows)
        assert_close(whole(log_p.detach()), wanted.detach(), 1e-12)
        total = (log_p * distributed(upstream, mesh, by_rows)).sum()
        for grad, one in zip(torch.autograd.grad(total, given), of_one, strict=True):
            assert_close(whole(grad), one, 1e-11)


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_log_probs(ranks, several):
    ranks(4, check_log_probs, several)


def check_head_refusals(group):
    from torch.distributed.tensor import DTensor, Partial

    hidden, weight, bias, target = head_inputs((8, WIDTH), torch.float64)
    mesh = mesh_of((4,))
    by_rows = distributed(hidden, mesh, placed([0]))
    with pytest.raises(ValueError, match="hidden must have whole rows"):
        ak.linear_robust_loss(distributed(hidden, mesh, placed([1])), weight, target, TERMS)
    parts = DTensor.from_local(hidden, mesh, [Partial()])
    with pytest.raises(ValueError, match="hidden must not be a partial sum"):
        ak.linear_robust_loss(parts, weight, target, TERMS)
    with pytest.raises(ValueError, match="linear_weight must be replicated, or sharded once"):
        ak.linear_robust_loss(by_rows, distributed(weight, mesh, placed([1])), target, TERMS)
    by_classes = distributed(weight, mesh, placed([0]))
    with pytest.raises(ValueError, match="linear_weight must be replicated over the ranks that"):
        ak.linear_robust_loss(by_rows, by_classes, target, TERMS)
    copies = distributed(bias, mesh, placed([R]))
    with pytest.raises(ValueError, match="linear_bias"):
        ak.linear_robust_loss(hidden, by_classes, target, TERMS, copies)
    other = distributed(weight, mesh_of((2, 2)), placed([R, R]))
    with pytest.raises(ValueError, match="linear_weight must be on the mesh of the rows"):
        ak.linear_robust_loss(by_rows, other, target, TERMS)


def test_head_refusals(ranks):
    ranks(4, check_head_refusals)


def check_fsdp(group):
    """A criterion that FSDP shards over the ranks that share the rows."""
    from torch.distributed.fsdp import fully_shard

    hidden, weight, bias, target = head_inputs((7, WIDTH), torch.float64)
    mesh = mesh_of((4,))
    criteria = [ak.LinearRobustLoss(linear(weight, bias), TERMS) for _ in range(2)]
    fully_shard(criteria[0], mesh=mesh)
    given, one = distributed(leaf(hidden), mesh, placed([0])), leaf(hidden)
    for criterion, rows in zip(criteria, (given, one), strict=True):
        criterion(rows, target).backward()
    assert_close(whole(given.grad), one.grad, 1e-11)
    for ours, wanted in zip(*(c.parameters() for c in criteria), strict=True):
        assert_close(whole(ours.grad), wanted.grad, 1e-11)


def test_fsdp_over_the_same_ranks(ranks):
    ranks(4, check_fsdp)
