"""Logits that are DTensors: one loss of all rows, with its gradient on every rank."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import anl_kernels as ak
from anl_kernels.integrations.items import LogitsLoss
from tests.cases import CASES, KINDS
from tests.distributed.helpers import NUM_CLASSES, assert_close, random_logits
from tests.distributed.meshes import (
    R,
    assert_same,
    distributed,
    leaf,
    mesh_of,
    of_rows,
    placed,
    whole,
)

TERMS = CASES["ANL-CE"]
# The logits' shape, the mesh, and for each dimension of the mesh the dimension that it shards.
LAYOUTS = {
    "rows": ((8, NUM_CLASSES), (4,), (0,)),
    "uneven": ((7, NUM_CLASSES), (4,), (0,)),
    "with-empty": ((5, NUM_CLASSES), (4,), (0,)),
    "fewer-rows-than-ranks": ((2, NUM_CLASSES), (4,), (0,)),
    "space": ((2, 9, 6), (4,), (2,)),
    "last-of-space": ((2, 9, 3, 5), (4,), (3,)),
    "rows-and-space": ((3, 9, 5), (2, 2), (0, 2)),
    "rows-twice": ((7, 9), (2, 2), (0, 0)),
    "rows-and-classes": ((5, NUM_CLASSES), (2, 2), (0, 1)),
    "classes-and-rows": ((5, 41), (2, 2), (1, 0)),
    "space-and-classes": ((2, 9, 5), (2, 2), (2, 1)),
    "rows-and-copies": ((5, NUM_CLASSES), (2, 2), (0, R)),
    "classes": ((5, NUM_CLASSES), (4,), (1,)),
    "classes-of-images": ((2, 41, 3), (4,), (1,)),
    "rank-without-classes": ((5, 5), (4,), (1,)),
    "copies": ((5, NUM_CLASSES), (4,), (R,)),
}


def batch_of(layout, dtype=torch.float64):
    """(logits, target, mesh, placements), with an ignored row."""
    shape, mesh, sharded = LAYOUTS[layout]
    return *random_logits(shape, dtype), mesh_of(mesh), placed(sharded)


def pair_of(layout):
    """(logits, target, mesh, placements) with logits as DTensor and whole, in float64."""
    logits, target, mesh, placements = batch_of(layout)
    return (distributed(leaf(logits), mesh, placements), leaf(logits)), target, mesh, placements


def check_terms(group, layout, names, backend, dtype, tolerance):
    logits, target, mesh, placements = batch_of(layout, dtype)
    labels = distributed(target, mesh, of_rows(placements))
    for name in names:
        for reduction in ("mean", "sum", "none"):
            given, one = distributed(leaf(logits), mesh, placements), leaf(logits)
            up = torch.rand(target.shape if reduction == "none" else (), dtype=dtype).to(dtype)
            with ak.use_backend(backend):
                loss = ak.robust_loss(given, labels, CASES[name], reduction=reduction)
                wanted = ak.robust_loss(one, target, CASES[name], reduction=reduction)
            (wanted * up).sum().backward()
            if reduction == "none" and not all(p.is_replicate() for p in labels.placements):
                assert loss.placements == labels.placements
                up = distributed(up, mesh, of_rows(placements))
            else:
                assert type(loss) is torch.Tensor
            (loss * up).sum().backward()
            assert given.grad.placements == given.placements
            assert_close(whole(loss).detach(), wanted.detach(), tolerance, (name, reduction))
            assert_close(whole(given.grad), one.grad, 10 * tolerance, (name, reduction))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(ranks, layout):
    ranks(4, check_terms, layout, ["ANL-CE", "GCE"], "auto", torch.float64, 1e-12)


@pytest.mark.parametrize("layout", ["with-empty", "rows-and-classes"])
def test_all_terms(ranks, layout):
    ranks(4, check_terms, layout, KINDS, "cpu", torch.float64, 1e-12)


@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
@pytest.mark.parametrize("layout", ["with-empty", "rows-and-classes"])
def test_backends(ranks, backend, layout):
    ranks(4, check_terms, layout, ["ANL-CE"], backend, torch.float64, 1e-12)


@pytest.mark.parametrize("layout", ["uneven", "space", "classes-and-rows"])
def test_float32(ranks, layout):
    ranks(4, check_terms, layout, ["ANL-CE", "CE"], "auto", torch.float32, 5e-7)


@pytest.mark.parametrize("layout", ["uneven", "space"])
def test_bfloat16(ranks, layout):
    """The gradient is rounded once, as that of one process."""
    ranks(4, check_terms, layout, ["ANL-CE", "CE"], "auto", torch.bfloat16, 1e-5)


def check_weights(group, layout, reduction, plain):
    """Class weights, learned weights of rows and of terms, of which each rank has the whole."""
    logits, target, mesh, placements = batch_of(layout)
    lie = of_rows(placements)
    copies = placed([R] * mesh.ndim)
    weight, factors = torch.rand(logits.shape[1]).double(), torch.rand(target.shape).double()
    alpha = torch.tensor(0.7)

    def found(logits, target, weight, factors, alpha):
        given = logits, weight, factors, alpha
        loss = ak.robust_loss(
            logits,
            target,
            alpha * ak.NCE() + ak.GCE(),
            weight=weight,
            sample_weight=factors,
            reduction=reduction,
        )
        grads = torch.autograd.grad(loss.sum(), given)
        return whole(loss.detach()), grads, given

    wanted, of_one, _ = found(*map(leaf, (logits,)), target, *map(leaf, (weight, factors, alpha)))
    others = [leaf(tensor) for tensor in (weight, factors, alpha)]
    if not plain:
        others = [
            distributed(tensor, mesh, where)
            for tensor, where in zip(others, (copies, lie, copies), strict=True)
        ]
        target = distributed(target, mesh, lie)
    loss, grads, given = found(distributed(leaf(logits), mesh, placements), target, *others)
    assert_close(loss, wanted, 1e-12)
    for grad, one, tensor in zip(grads, of_one, given, strict=True):
        assert type(grad) is type(tensor.detach())
        assert getattr(grad, "placements", None) == getattr(tensor, "placements", None)
        assert_close(whole(grad), one, 1e-6 if one.dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("layout", ["with-empty", "space", "rows-and-space", "rows-and-classes"])
def test_weights(ranks, layout, reduction, plain):
    ranks(4, check_weights, layout, reduction, plain)


def check_replicated_beside_rows(group):
    """Targets and weights that all ranks have, of rows that they share."""
    (given, one), target, mesh, _ = pair_of("with-empty")
    weights = target, torch.rand(target.shape).double()
    everywhere = (distributed(tensor, mesh, placed([R])) for tensor in weights)
    loss = lambda z, y, w: ak.robust_loss(z, y, TERMS, sample_weight=w)  # noqa: E731
    assert_same(loss, (given, *everywhere), (one, *weights))


def test_replicated_target_and_sample_weight(ranks):
    ranks(4, check_replicated_beside_rows)


def check_replicated_weights(group, sharded):
    """Beside logits that are replicated, sharded on classes, or plain."""
    logits, target = random_logits((5, NUM_CLASSES))
    weight, factors = torch.rand(NUM_CLASSES).double(), torch.rand(5).double()
    mesh, copies = mesh_of((4,)), placed([R])
    given = logits if sharded is None else distributed(logits, mesh, placed([sharded]))
    weights = {"weight": weight, "sample_weight": factors}
    everywhere = {name: distributed(value, mesh, copies) for name, value in weights.items()}
    alpha = distributed(torch.tensor(0.5), mesh, copies)
    loss = ak.robust_loss(given, target, alpha * ak.CE(), **everywhere)
    assert_close(loss, ak.robust_loss(logits, target, 0.5 * ak.CE(), **weights), 1e-12)


@pytest.mark.parametrize("sharded", [None, R, 1])
def test_replicated_weights(ranks, sharded):
    ranks(4, check_replicated_weights, sharded)


def check_ignored(group, ignored):
    (given, one), target, *_ = pair_of("uneven")
    target[ignored] = -100
    assert_same(lambda z: ak.robust_loss(z, target, TERMS), (given,), (one,))


@pytest.mark.parametrize("ignored", [slice(0, 2), slice(1, 6), slice(None)], ids=str)
def test_ranks_without_rows_that_count(ranks, ignored):
    ranks(4, check_ignored, ignored)


def check_flattened(group):
    """What is left of sequences that are sharded, after a view as rows."""
    logits, target = random_logits((6, 9, 8))
    mesh = mesh_of((4,))
    given = distributed(leaf(logits.transpose(1, 2)), mesh, placed([1]))
    labels = distributed(target, mesh, placed([1]))
    one = leaf(logits)
    for reduction in ("none", "mean"):
        options = {"terms": TERMS, "reduction": reduction}
        loss = ak.robust_loss(given.reshape(-1, 9), labels.reshape(-1), **options)
        wanted = ak.robust_loss(one, target, **options)
        assert_close(whole(loss).view(wanted.shape).detach(), wanted.detach(), 1e-12)
    loss.backward()
    wanted.backward()
    assert_close(whole(given.grad).transpose(1, 2), one.grad, 1e-11)


def test_flattened_sequences(ranks):
    ranks(4, check_flattened)


def check_sequences(group, shift):
    """The doors to transformers: (batch, positions, K), labels of the next position."""
    logits, labels = torch.randn(2, 8, 9).double(), torch.randint(9, (2, 8))
    mesh, where = mesh_of((4,)), placed([1])
    given, one = distributed(leaf(logits), mesh, where), leaf(logits)
    criterion = LogitsLoss(TERMS, {})
    spread = given, distributed(labels, mesh, where)
    assert_same(lambda z, y: criterion(z, y, shift=shift), spread, (one, labels))


@pytest.mark.parametrize("shift", [False, True])
def test_sequences_of_a_language_model(ranks, shift):
    ranks(4, check_sequences, shift)


def check_aux(group, layout):
    logits, target, mesh, placements = batch_of(layout)
    given = distributed(logits, mesh, placements)
    names = ["term_losses", "lse", "p_y", "argmax", "probs"]
    loss, aux = ak.robust_loss(given, target, TERMS, return_aux=names)
    wanted, one = ak.robust_loss(logits, target, TERMS, return_aux=names)
    torch.testing.assert_close(loss, wanted)
    for name in names:
        torch.testing.assert_close(whole(getattr(aux, name)), getattr(one, name))
    assert aux.p_y.placements == of_rows(placements)
    assert aux.probs.placements == placements


@pytest.mark.parametrize("layout", ["with-empty", "space", "rows-and-classes", "rows-and-space"])
def test_auxiliary_outputs(ranks, layout):
    ranks(4, check_aux, layout)


def check_padding(group, layout):
    (given, one), target, *_ = pair_of(layout)
    target = target.clamp(max=4)
    assert_same(lambda z: ak.robust_loss(z, target, TERMS, num_classes=5), (given,), (one,))
    if layout == "rows-and-classes":
        with pytest.raises(ValueError, match="cannot hold 'probs' with num_classes=5"):
            ak.robust_loss(given, target, TERMS, num_classes=5, return_aux=["probs"])


@pytest.mark.parametrize("layout", ["with-empty", "rows-and-classes"])
def test_padding(ranks, layout):
    ranks(4, check_padding, layout)


def check_inplace(group, layout):
    """The logits' memory stays as it is: the version that autograd looks at would not move."""
    logits, target, mesh, placements = batch_of(layout)
    given = distributed(leaf(logits), mesh, placements).tanh()
    with pytest.raises(RuntimeError, match="a DTensor, whose version is not that of its local"):
        ak.robust_loss(given, target, TERMS, inplace=True)
    if layout in ("classes", "copies"):
        options = {"process_group": group} if layout == "classes" else {}
        with pytest.raises(RuntimeError, match="the local part of a DTensor"):
            ak.robust_loss(given.to_local(), target, TERMS, inplace=True, **options)


@pytest.mark.parametrize("layout", ["rows", "rows-and-classes", "classes", "copies"])
def test_inplace_is_refused(ranks, layout):
    ranks(4, check_inplace, layout)


def check_sum_with_dtensor(group, layout):
    """A loss that is a plain tensor, beside a penalty that is a DTensor."""
    (given, one), target, *_ = pair_of(layout)
    assert_same(lambda z: ak.robust_loss(z, target, TERMS) + 0.1 * (z * z).sum(), (given,), (one,))


@pytest.mark.parametrize("layout", ["rows", "rows-and-classes", "classes"])
def test_sum_with_a_dtensor(ranks, layout):
    ranks(4, check_sum_with_dtensor, layout)


def check_second_derivatives(group):
    (given, one), target, *_ = pair_of("with-empty")
    assert_same(lambda z: ak.robust_loss(z, target, TERMS), (given,), (one,), second=True)


def test_second_derivatives(ranks):
    ranks(4, check_second_derivatives)


def check_compiled(group, layout):
    logits, target, mesh, placements = batch_of(layout, torch.float32)
    weight = torch.rand(target.shape)
    labels, factors = (distributed(t, mesh, of_rows(placements)) for t in (target, weight))

    alpha = torch.tensor(0.5, requires_grad=True)

    terms = alpha * ak.NCE() + ak.NNCE()

    def loss(z, y, w):
        return ak.robust_loss(z, y, terms, sample_weight=w, weight=torch.ones(z.shape[1]))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = []
    for function in (loss, compiled):
        given = distributed(leaf(logits), mesh, placements)
        value = function(given, labels, factors)
        grads = torch.autograd.grad(value, (given, alpha))
        found.append((value.detach(), *map(whole, grads)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("layout", ["uneven", "rows-and-classes"])
def test_compiled(ranks, layout):
    ranks(4, check_compiled, layout)


def check_refusals(group):
    from torch.distributed.tensor import DTensor, Partial, Shard

    logits, target, mesh, (by_rows,) = batch_of("rows")
    given = distributed(logits, mesh, [by_rows])
    mine = slice(2 * group.rank(), 2 * group.rank() + 2)
    for name, options in (
        ("target", {"target": target[mine]}),
        ("sample_weight", {"sample_weight": torch.rand(2).double()}),
    ):
        with pytest.raises(
            ValueError, match=rf"{name} must have shape \(8,\).*DTensor\.from_local"
        ):
            ak.robust_loss(given, **{"target": target, "terms": TERMS, **options})
    other = distributed(target, mesh_of((2, 2)), placed([0, R]))
    with pytest.raises(ValueError, match="target must be replicated, or lie as the rows do"):
        ak.robust_loss(given, other, TERMS)
    by_classes = distributed(logits, mesh, placed([1]))
    with pytest.raises(ValueError, match="target must be replicated"):
        ak.robust_loss(by_classes, distributed(target, mesh, [by_rows]), TERMS)
    for tensor in (given, by_classes):
        with pytest.raises(ValueError, match=r"process_group must be None .* its rows and classes"):
            ak.robust_loss(tensor, target, TERMS, process_group=group)
    parts = DTensor.from_local(logits, mesh, [Partial()])
    with pytest.raises(ValueError, match="logits must not be a partial sum"):
        ak.robust_loss(parts, target, TERMS)
    weight = distributed(torch.rand(NUM_CLASSES), mesh, [Shard(0)])
    with pytest.raises(ValueError, match="weight must be replicated"):
        ak.robust_loss(given, target, TERMS, weight=weight)
    for name in ("target", "sample_weight"):
        options = {"target": target, "terms": TERMS, name: [1, 2]}
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
            ak.robust_loss(given, **options)


def test_refusals(ranks):
    ranks(4, check_refusals)


class LearnedGCE(nn.Module):
    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, log_p):
        q = F.softplus(self.raw)
        return -torch.expm1(q * log_p) / q


def check_log_prob(group, layout):
    logits, target, mesh, placements = batch_of(layout)
    shape = (target.shape[0], 3, *target.shape[1:])
    several = torch.randint(logits.shape[1], shape)
    cases = [target, target.unsqueeze(1)] if "classes" in layout else [target, several]
    for classes in cases:
        given, one = distributed(leaf(logits), mesh, placements), leaf(logits)
        assert_close(whole(ak.log_prob(given, classes)), ak.log_prob(one, classes), 1e-12)
        assert_same(lambda z, y: (ak.log_prob(z, y) ** 2).sum(), (given, classes), (one, classes))
    for reduction in ("mean", "none"):
        criteria = [ak.LogProbLoss(LearnedGCE(), reduction=reduction) for _ in range(2)]
        given, one = distributed(leaf(logits), mesh, placements), leaf(logits)
        loss, wanted = criteria[0](given, target), criteria[1](one, target)
        assert_close(whole(loss).detach(), wanted.detach(), 1e-12)
        loss.sum().backward()
        wanted.sum().backward()
        assert_close(whole(given.grad), one.grad, 1e-11)
        assert_close(criteria[0].head.raw.grad, criteria[1].head.raw.grad, 1e-11)


@pytest.mark.parametrize("layout", ["with-empty", "space", "rows-and-classes"])
def test_log_prob(ranks, layout):
    ranks(4, check_log_prob, layout)


def check_hidden_parameters(group):
    """What learns inside a function or a term would learn of this rank's rows alone."""
    logits, target, mesh, placements = batch_of("with-empty")
    given = distributed(leaf(logits), mesh, placements)
    parameter = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    class Learning(ak.terms.Term):
        def rows(self, row):
            return row.rest * parameter

    with pytest.raises(ValueError, match=r"head must be an nn\.Module"):
        ak.LogProbLoss(lambda log_p: parameter * log_p)(given, target)
    with pytest.raises(ValueError, match="Learning has something that is learned"):
        ak.robust_loss(given, target, Learning())
    with torch.no_grad():
        loss = ak.robust_loss(given, target, Learning())
        assert_close(loss, ak.robust_loss(logits, target, 2.0 * ak.MAE()), 1e-12)


def test_hidden_parameters_are_refused(ranks):
    ranks(4, check_hidden_parameters)


def check_other_rows(group):
    """Rows that are not spread as torch.chunk spreads them, 2, 2, 2 and 1."""
    from torch.distributed.tensor import DTensor

    logits, target = random_logits((7, NUM_CLASSES), torch.float64)
    here = (slice(0, 4), slice(4, 4), slice(4, 5), slice(5, 7))[group.rank()]
    mesh, layout = mesh_of((4,)), placed((0,))

    def spread(tensor):
        options = {"shape": tensor.shape, "stride": tensor.stride(), "run_check": False}
        return DTensor.from_local(tensor[here].contiguous(), mesh, layout, **options)

    wanted = ak.robust_loss(logits, target, TERMS)
    assert_close(ak.robust_loss(spread(logits), spread(target), TERMS), wanted, 1e-12, "spread")
    for labels in (target, distributed(target, mesh, placed((R,)))):
        with pytest.raises(ValueError, match=r"target must lie as the rows do, .* unevenly"):
            ak.robust_loss(spread(logits), labels, TERMS)


def test_rows_that_are_spread_otherwise(ranks):
    ranks(4, check_other_rows)
