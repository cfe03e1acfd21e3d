"""Softmax and terms over a batch whose rows ranks share, by a DTensor or each with its own."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels import recipes
from tests.cases import CASES
from tests.distributed.helpers import assert_close, random_logits
from tests.distributed.meshes import R, assert_same, distributed, leaf, mesh_of, placed, whole

SHAPES = {"uneven": ((7, 9), (4,), (0,)), "with-empty": ((5, 9), (4,), (0,))} | {
    "space": ((2, 9, 6), (4,), (2,)),
    "copies": ((5, 9), (4,), (R,)),
    "rows-and-copies": ((5, 9), (2, 2), (R, 0)),
}


def pair(layout):
    """Logits that are spread, the same whole, and labels."""
    shape, mesh, sharded = SHAPES[layout]
    logits, target = random_logits(shape)
    return distributed(leaf(logits), mesh_of(mesh), placed(sharded)), leaf(logits), target


def check_equal(layout, function, second=False):
    given, one, target = pair(layout)
    assert_same(function, (given, target), (one, target), second)


def check_softmax(group, layout, backend):
    with ak.use_backend(backend):
        check_equal(layout, lambda z, _: (ak.softmax(z, 1) ** 2).sum())
    given, one, _ = pair(layout)
    assert ak.softmax(given, 1).placements == given.placements
    assert_close(whole(ak.softmax(given, 1)).detach(), one.detach().softmax(1), 1e-12)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("layout", SHAPES)
def test_softmax(ranks, layout, backend):
    ranks(4, check_softmax, layout, backend)


def check_entropy(group, layout, backend, second):
    with ak.use_backend(backend):
        check_equal(layout, lambda z, _: ak.entropy_regulariser(z), second)
        counted = lambda z, y: ak.entropy_regulariser(z, counted=y != -100)  # noqa: E731
        check_equal(layout, counted, second)
        criterion = ak.EntropyRegularisedLoss(ak.RobustLoss(CASES["ANL-CE"]), 0.3)
        check_equal(layout, criterion, second)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("layout", SHAPES)
def test_entropy(ranks, layout, backend, second):
    ranks(4, check_entropy, layout, backend, second)


def check_column_means_of_dtensors(group, layout):
    def entropy(logits, _):
        means = ak.column_means(ak.softmax(logits))
        assert not hasattr(means, "placements") or not any(
            place.is_partial() for place in means.placements
        )
        total = (means * means.log()).sum()
        return whole(total)

    check_equal(layout, entropy)


@pytest.mark.parametrize("layout", ["uneven", "with-empty", "copies", "rows-and-copies"])
def test_column_means_of_dtensors(ranks, layout):
    ranks(4, check_column_means_of_dtensors, layout)


def check_column_means(group):
    """The gradient, averaged over ranks as DDP does, is that of one process with all rows."""
    counts = [3, 0, 5, 2]
    logits = torch.randn(sum(counts), 7, dtype=torch.float64)
    first = sum(counts[: group.rank()])
    here = logits[first : first + counts[group.rank()]].clone().requires_grad_()
    whole = logits.clone().requires_grad_()

    def entropy(means):
        return -(means * means.log()).sum()

    means = ak.column_means(ak.softmax(here), group)
    wanted = ak.column_means(ak.softmax(whole))
    torch.testing.assert_close(means, whole.softmax(1).mean(0))
    entropy(means).backward()
    entropy(wanted).backward()
    averaged = here.grad / group.size()
    torch.testing.assert_close(averaged, whole.grad[first : first + len(here)])


def test_column_means(ranks):
    ranks(4, check_column_means)


def check_column_means_of_many_rows(group):
    means = ak.column_means(torch.full((40_000, 2), 0.5, dtype=torch.float16), group)
    assert means.tolist() == [0.5, 0.5]


def test_column_means_of_more_rows_than_float16_counts(ranks):
    ranks(2, check_column_means_of_many_rows)


def check_column_means_refuse(group):
    with pytest.raises(TypeError, match=r"rows must be float64, .*, got torch\.int64"):
        ak.column_means(torch.ones(3, 4).long())
    with pytest.raises(ValueError, match=r"\(N, K\), got \(3,\)"):
        ak.column_means(torch.rand(3))
    with pytest.raises(TypeError, match="process_group"):
        ak.column_means(torch.rand(3, 4), "gloo")


def test_column_means_refuse(ranks):
    ranks(1, check_column_means_refuse)


def check_truncated(group):
    given, one, target = pair("with-empty")
    target[target == -100] = 0
    index = torch.arange(5)
    criteria = [recipes.TruncatedGCE(5, k=0.1) for _ in range(2)]
    for criterion, logits in zip(criteria, (given, one), strict=True):
        criterion.refresh(logits, target, index)
    assert criteria[0].sample_weight.tolist() == criteria[1].sample_weight.tolist()
    losses = [
        criterion(z, target, index) for criterion, z in zip(criteria, (given, one), strict=True)
    ]
    assert_close(losses[0].detach(), losses[1].detach(), 1e-12)


def test_truncated_gce(ranks):
    ranks(4, check_truncated)


def check_refusals(group):
    logits, target = random_logits((8, 9))
    mesh = mesh_of((4,))
    by_rows = distributed(logits, mesh, placed([0]))
    by_classes = distributed(logits, mesh, placed([1]))
    both = distributed(logits.unsqueeze(-1).expand(8, 9, 4), mesh_of((2, 2)), placed([0, 2]))
    labels = distributed(target, mesh, placed([0]))
    calls = {
        r"logits must have whole rows": lambda: ak.softmax(by_classes),
        r"whole rows \(dimension 1\)": lambda: ak.entropy_regulariser(by_classes),
        r"process_group must be None": lambda: ak.entropy_regulariser(by_rows, process_group=group),
        r"rows spread over one dimension of a mesh": lambda: ak.entropy_regulariser(both),
        r"process_group must be None for rows": lambda: ak.column_means(by_rows, group),
        r"target must be a plain tensor with all rows": lambda: recipes.TruncatedGCE(8)(
            by_rows, labels, torch.arange(8)
        ),
        r"logits must be a plain tensor": lambda: recipes.NegativeLearning(9)(by_rows, target),
    }
    for message, call in calls.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_refusals(ranks):
    ranks(4, check_refusals)
