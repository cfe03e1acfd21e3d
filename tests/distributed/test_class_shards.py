"""How classes lie over ranks, and what is refused."""

import copy

import numpy as np
import pytest
import torch

import anl_kernels as ak
from anl_kernels.rows import labels
from tests.distributed.helpers import NUM_CLASSES, SPLITS, mine, random_logits, shards_of


def check_chunked(group, num_classes):
    shards = ak.ClassShards.chunked(group, num_classes)
    chunks = torch.arange(num_classes).chunk(group.size())
    sizes = [len(chunk) for chunk in chunks] + [0] * (group.size() - len(chunks))
    assert list(shards.sizes) == sizes
    assert shards.num_classes == num_classes
    assert shards.first == sum(sizes[: group.rank()])


@pytest.mark.parametrize("num_classes", [1, 3, 8, 9, 10, 128_256])
def test_chunks_are_those_of_torch(ranks, num_classes):
    ranks(4, check_chunked, num_classes)


def check_padding(group):
    shards = ak.ClassShards(group, (10, 0, 10)).without_padding(13)
    assert shards.sizes == (10, 0, 3)
    assert ak.ClassShards(group, (10, 5, 10)).without_padding(9).sizes == (9, 0, 0)


def test_padding_is_at_the_end(ranks):
    ranks(3, check_padding)


def check_exchange(group):
    logits, target = random_logits((5, NUM_CLASSES))
    here = mine(logits, shards_of(group, SPLITS["3-uneven"]))
    loss = ak.robust_loss(here, target, ak.NCE(), process_group=group)
    torch.testing.assert_close(loss.detach(), ak.nce(logits, target))


def test_a_bare_group_asks_for_the_sizes(ranks):
    ranks(3, check_exchange)


def check_refusals(group):
    logits, target = random_logits((5, NUM_CLASSES))
    shards = shards_of(group, SPLITS["2-uneven"])
    here = mine(logits, shards)

    def refused(kind, *words, **options):
        with pytest.raises(kind) as caught:
            ak.robust_loss(options.pop("logits", here), target, ak.NCE(), **options)
        assert [word for word in words if word not in str(caught.value)] == []

    refused(TypeError, "process_group", "'gloo'", process_group="gloo")
    refused(ValueError, "logits", "(3, 37)", "40", logits=logits, process_group=shards)
    refused(ValueError, "num_classes", "[1, 40]", "41", process_group=shards, num_classes=41)
    refused(ValueError, "num_classes", "0", process_group=shards, num_classes=0)
    refused(ValueError, "weight", "(40,)", process_group=shards, weight=torch.ones(3))
    given = ak.ClassShards(group, (np.int64(20), np.int32(20)))
    assert given == ak.ClassShards.chunked(group, np.int64(40))
    assert given.sizes == (20, 20)
    assert all(type(size) is int for size in given.sizes)
    for sizes in ((40,), (41, -1), (20.0, 20), (True, 39), 40):
        with pytest.raises(ValueError, match=r"sizes must be 2 ints of at least 0"):
            ak.ClassShards(group, sizes)
    with pytest.raises(ValueError, match=r"num_classes must be a positive int, got 10.5"):
        ak.ClassShards.chunked(group, 10.5)
    with pytest.raises(TypeError, match=r"process_group must be .*init_process_group"):
        ak.ClassShards(None, (20, 20))
    wrong = target.clone()
    wrong[0] = 40
    with pytest.raises(IndexError, match="target"):
        ak.robust_loss(here, wrong, ak.NCE(), process_group=shards)


def test_refusals(ranks):
    ranks(2, check_refusals)


def check_different_targets(group, labels, backend):
    """As where the ranks of data parallelism are taken for those that share classes."""
    logits, target = random_logits((5, NUM_CLASSES))
    shards = shards_of(group, SPLITS["2"])
    target[0] = labels[group.rank()]
    with ak.use_backend(backend), pytest.raises(ValueError, match=r"target must be the same on"):
        ak.robust_loss(mine(logits, shards), target, ak.NNCE(), process_group=shards)


@pytest.mark.parametrize("labels", [(30, 5), (5, 30), (3, 4), (7, -100)], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_different_targets_are_refused(ranks, labels, backend):
    ranks(2, check_different_targets, labels, backend)


def check_copies(group):
    shards = shards_of(group, SPLITS["2"])
    criterion = ak.RobustLoss(ak.NCE(), process_group=shards)
    assert copy.deepcopy(criterion).options["process_group"] is shards


def test_a_module_with_shards_can_be_copied(ranks):
    ranks(2, check_copies)


def check_no_logits(group):
    head = torch.nn.Linear(4, 20)
    criterion = ak.LinearRobustLoss(head, ak.NCE(), process_group=shards_of(group, SPLITS["2"]))
    with pytest.raises(ValueError, match="every rank has some of the classes"):
        criterion.logits(torch.randn(3, 4))


def test_no_rank_has_logits_of_whole_rows(ranks):
    ranks(2, check_no_logits)


def check_label_out_of_range_in_a_graph(group):
    """Where labels are not looked at, as in exported code, the row is NaN on every rank."""
    logits, target = random_logits((3, NUM_CLASSES))
    target[0] = NUM_CLASSES
    shards = shards_of(group, SPLITS["2"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "recorded_for_others", lambda: True)
        loss = ak.robust_loss(
            mine(logits, shards), target, ak.NCE(), process_group=shards, reduction="none"
        )
    assert loss.isnan().tolist() == [True, False, False]


def test_a_label_that_no_rank_has_makes_nan(ranks):
    ranks(2, check_label_out_of_range_in_a_graph)
