"""Losses of logits whose classes a process group shares equal those of the whole."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.interface import AUX, RowRequest
from anl_kernels.rows.operators import Where
from tests.cases import CASES, KINDS
from tests.distributed.helpers import (
    NUM_CLASSES,
    SPLITS,
    assert_close,
    mine,
    random_logits,
    shards_of,
)

over_splits = pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
over_backends = pytest.mark.parametrize("backend", ["reference", "cpu", "cuda", "triton"])


def on_ranks(ranks, sizes, function, *args):
    ranks(len(sizes), function, sizes, *args)


def both(group, sizes, logits, target, terms, backend="auto", **options):
    """(loss, its gradient here) of the ranks together, and of one that has all classes."""
    shards = shards_of(group, sizes)
    here, whole = mine(logits, shards), logits.detach().clone().requires_grad_()
    with ak.use_backend(backend):
        loss = ak.robust_loss(here, target, terms, process_group=shards, **options)
        loss.sum().backward()
        wanted = ak.robust_loss(whole, target, terms, **options)
        wanted.sum().backward()
    return (loss, here.grad), (wanted, mine(whole.grad, shards))


def check_terms(group, sizes, names, backend):
    logits, target = random_logits((5, NUM_CLASSES))
    for name in names:
        (loss, grad), (wanted, wanted_grad) = both(
            group, sizes, logits, target, CASES[name], backend
        )
        assert_close(loss, wanted, 1e-12, name)
        assert_close(grad, wanted_grad, 1e-11, name)


@over_splits
@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
def test_terms(ranks, sizes, backend):
    on_ranks(ranks, sizes, check_terms, list(CASES), backend)


@pytest.mark.parametrize("sizes", [SPLITS["3-empty"]], ids=["3-empty"])
def test_terms_in_triton(ranks, sizes):
    on_ranks(ranks, sizes, check_terms, list(KINDS), "triton")


def check_dtype(group, sizes, dtype, shape, backend):
    logits, target = random_logits(shape, dtype)
    for name in KINDS:
        ours, whole = both(group, sizes, logits, target, CASES[name], backend)
        truth = both(group, sizes, logits.double(), target, CASES[name], "reference")[1]
        for actual, one_rank, true in zip(ours, whole, truth, strict=True):
            # As close to the truth as one rank is; the last bits are a matter of the order.
            if true.numel():
                allowed = (one_rank - true).norm() * 1.05 + 1e-6 * true.norm()
                assert (actual - true).norm() <= allowed, name


@pytest.mark.parametrize("shape", [(6, NUM_CLASSES), (2, NUM_CLASSES, 3)], ids=["rows", "pixels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
def test_dtypes(ranks, dtype, shape, backend):
    on_ranks(ranks, SPLITS["3-uneven"], check_dtype, dtype, shape, backend)


def check_reductions_and_weights(group, sizes, backend):
    logits, target = random_logits((5, NUM_CLASSES))
    weight = torch.rand(NUM_CLASSES, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        sample_weight = torch.rand(5, dtype=torch.float64)
        options = {"reduction": reduction, "weight": weight, "sample_weight": sample_weight}
        terms = CASES["ANL-CE"]
        (loss, grad), (wanted, wanted_grad) = both(
            group, sizes, logits, target, terms, backend, class_scale="auto", **options
        )
        assert_close(loss, wanted, 1e-12, reduction)
        assert_close(grad, wanted_grad, 1e-11, reduction)


@over_backends
def test_reductions_and_weights(ranks, backend):
    on_ranks(ranks, SPLITS["3-uneven"], check_reductions_and_weights, backend)


def check_int32_labels(group, sizes, backend):
    logits, target = random_logits((5, NUM_CLASSES))
    for ignore in (-100, -(2**63), 2**32 + 1):  # the latter two are classes, cast to int32
        target[:2] = torch.tensor([-100 if ignore == -100 else 1, 0])
        narrow = target.int()
        options = {"ignore_index": ignore, "weight": torch.rand(NUM_CLASSES, dtype=torch.float64)}
        ours, _ = both(group, sizes, logits, narrow, CASES["ANL-CE"], backend, **options)
        _, wanted = both(group, sizes, logits, target, CASES["ANL-CE"], backend, **options)
        for actual, value in zip(ours, wanted, strict=True):
            assert_close(actual, value, 1e-11, ignore)


@over_backends
def test_int32_labels(ranks, backend):
    on_ranks(ranks, SPLITS["3-uneven"], check_int32_labels, backend)


def check_gradients_of_weights(group, sizes, backend):
    logits, target = random_logits((5, NUM_CLASSES))
    found = []
    for shards in (shards_of(group, sizes), None):
        sample_weight = torch.full((5,), 0.3, dtype=torch.float64, requires_grad=True)
        learned = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        z = logits.requires_grad_() if shards is None else mine(logits, shards)
        with ak.use_backend(backend):
            loss = ak.robust_loss(
                z,
                target,
                learned * ak.NNCE() + ak.NCE(),
                sample_weight=sample_weight,
                process_group=shards,
            )
        found.append(torch.autograd.grad(loss, (sample_weight, learned)))
    for ours, wanted in zip(*found, strict=True):
        assert_close(ours, wanted, 1e-12)


@over_backends
def test_gradients_of_weights(ranks, backend):
    on_ranks(ranks, SPLITS["2-uneven"], check_gradients_of_weights, backend)


def check_aux(group, sizes, backend):
    logits, target = random_logits((6, NUM_CLASSES), torch.float32)
    logits[2, [3, 30]] = 50.0  # equals on two ranks
    logits[3, 39] = 60.0
    target[4] = logits[4].argmax()
    shards = shards_of(group, sizes)
    names = ("term_losses", "lse", "p_y", "argmax", "probs")
    with ak.use_backend(backend):
        options = {"return_aux": names}
        _, aux = ak.robust_loss(
            mine(logits, shards), target, CASES["ANL-CE"], process_group=shards, **options
        )
        _, wanted = ak.robust_loss(logits, target, CASES["ANL-CE"], **options)
    assert aux.argmax.tolist() == wanted.argmax.tolist()
    for name in ("term_losses", "lse", "p_y"):
        torch.testing.assert_close(getattr(aux, name), getattr(wanted, name))
    torch.testing.assert_close(aux.probs, mine(wanted.probs, shards).detach())


@pytest.mark.parametrize("sizes", [SPLITS["1"], SPLITS["3-empty"], SPLITS["4"]], ids=str)
@over_backends
def test_aux(ranks, sizes, backend):
    on_ranks(ranks, sizes, check_aux, backend)


def check_padding(group, sizes, num_classes, backend):
    """Columns from num_classes on hold garbage."""
    logits, target = random_logits((5, NUM_CLASSES))
    logits[:, num_classes:] = torch.nan
    target = target.clamp(max=num_classes - 1)
    shards = shards_of(group, sizes)
    here, whole = mine(logits, shards), logits[:, :num_classes].clone().requires_grad_()
    with ak.use_backend(backend):
        loss = ak.robust_loss(
            here, target, CASES["all"], process_group=shards, num_classes=num_classes
        )
        wanted = ak.robust_loss(whole, target, CASES["all"])
    loss.backward()
    wanted.backward()
    assert_close(loss, wanted, 1e-12)
    padded = torch.nn.functional.pad(whole.grad, (0, NUM_CLASSES - num_classes))
    torch.testing.assert_close(here.grad, mine(padded, shards).detach(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("num_classes", [39, 28, 9])
@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
def test_padded_vocabulary(ranks, num_classes, backend):
    on_ranks(ranks, SPLITS["4"], check_padding, num_classes, backend)


def check_missing_classes(group, sizes, backend):
    """Logits of -inf are classes that are not there, even all of a rank's."""
    logits, target = random_logits((5, NUM_CLASSES))
    logits[:, 5] = -torch.inf
    logits[:, 10:20] = -torch.inf
    target = target.clamp(min=20)
    target[1] = -100
    (loss, grad), (wanted, wanted_grad) = both(group, sizes, logits, target, CASES["all"], backend)
    assert_close(loss, wanted, 1e-12)
    torch.testing.assert_close(grad, wanted_grad.detach(), rtol=1e-9, atol=1e-14)


@over_backends
def test_missing_classes(ranks, backend):
    on_ranks(ranks, SPLITS["4"], check_missing_classes, backend)


def check_labels(group, sizes, first, last, backend):
    logits, target = random_logits((5, NUM_CLASSES))
    target = first + target.clamp(min=0) % (last - first)
    (loss, grad), (wanted, wanted_grad) = both(
        group, sizes, logits, target, CASES["ANL-CE"], backend
    )
    assert_close(loss, wanted, 1e-12)
    assert_close(grad, wanted_grad, 1e-11)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 27), (27, 40)])
def test_ranks_without_a_label(ranks, first, last):
    on_ranks(ranks, SPLITS["3-uneven"], check_labels, first, last, "auto")


def check_all_ignored(group, sizes, backend):
    logits, target = random_logits((3, NUM_CLASSES))
    logits[0, 7] = torch.nan
    (loss, grad), _ = both(
        group, sizes, logits, torch.full_like(target, -100), CASES["ANL-CE"], backend
    )
    assert loss.item() == 0
    assert not grad.any()


@over_backends
def test_all_rows_ignored(ranks, backend):
    on_ranks(ranks, SPLITS["3-empty"], check_all_ignored, backend)


def check_ignore_index(group, sizes, ignore_index):
    logits, target = random_logits((4, NUM_CLASSES))
    target[1] = ignore_index
    (loss, grad), (wanted, wanted_grad) = both(
        group, sizes, logits, target, CASES["ANL-CE"], ignore_index=ignore_index
    )
    assert_close(loss, wanted, 1e-12)
    assert_close(grad, wanted_grad, 1e-11)


@pytest.mark.parametrize("ignore_index", [-1, -100, 0, 7, 255])
def test_any_ignore_index(ranks, ignore_index):
    on_ranks(ranks, SPLITS["3-uneven"], check_ignore_index, ignore_index)


def check_inplace(group, sizes):
    logits, target = random_logits((5, NUM_CLASSES), torch.float32)
    _, (_, wanted) = both(group, sizes, logits, target, CASES["ANL-CE"])
    shards = shards_of(group, sizes)
    leaf = mine(logits, shards)
    computed = leaf * 1
    memory = computed.data_ptr()
    computed.register_hook(lambda grad: seen.append(grad.data_ptr() == memory))
    seen = []
    ak.robust_loss(computed, target, CASES["ANL-CE"], inplace=True, process_group=shards).backward()
    assert_close(leaf.grad, wanted, 1e-6)
    assert seen == [True]


def test_inplace(ranks):
    on_ranks(ranks, SPLITS["2-uneven"], check_inplace)


def check_second_derivatives(group, sizes):
    logits, target = random_logits((3, NUM_CLASSES))
    up = torch.randn(logits.shape, dtype=torch.float64)
    shards = shards_of(group, sizes)
    found = []
    with ak.use_backend("reference"):
        for z, part, process_group in (
            (mine(logits, shards), mine(up, shards).detach(), shards),
            (logits.requires_grad_(), up, None),
        ):
            loss = ak.robust_loss(z, target, CASES["ANL-CE"], process_group=process_group)
            (grad,) = torch.autograd.grad(loss, z, create_graph=True)
            found.append(torch.autograd.grad((grad * part).sum(), z)[0])
    assert_close(found[0], mine(found[1], shards).detach(), 1e-10)


def test_second_derivatives_of_the_reference(ranks):
    on_ranks(ranks, SPLITS["3-uneven"], check_second_derivatives)


def check_no_second_derivatives(group, sizes):
    logits, target = random_logits((3, NUM_CLASSES))
    z = mine(logits, shards_of(group, sizes))
    loss = ak.robust_loss(z, target, ak.NCE(), process_group=shards_of(group, sizes))
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        grad.sum().backward()


def test_no_second_derivatives_of_kernels(ranks):
    on_ranks(ranks, SPLITS["2"], check_no_second_derivatives)


def check_compiled(group, sizes):
    logits, target = random_logits((5, NUM_CLASSES), torch.float32)
    shards = shards_of(group, sizes)
    terms = CASES["ANL-CE"]

    def loss(z):
        return ak.robust_loss(z, target, terms, process_group=shards)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    z, eager = mine(logits, shards), mine(logits, shards)
    compiled(z).backward()
    loss(eager).backward()
    assert torch.equal(z.grad, eager.grad)


def test_compiled(ranks):
    on_ranks(ranks, SPLITS["2-uneven"], check_compiled)


def check_operators(group, sizes):
    logits, target = random_logits((5, NUM_CLASSES), torch.float32)
    shards = shards_of(group, sizes)
    z, scale, where = mine(logits, shards).detach(), torch.ones(()), Where.of("cpu", shards)
    outputs = ("loss", "row_losses", "saved", *AUX)

    def opcheck(name, *tensors, **options):
        request = RowRequest.of(CASES["ANL-CE"], -100, *outputs, **options)
        operator, args = getattr(torch.ops.anl_kernels, name).default, (*tensors, *request, *where)
        assert set(torch.library.opcheck(operator, args).values()) == {"SUCCESS"}
        made = operator(*args)
        return request.named(made) if isinstance(made, list) else made

    saved = opcheck("sharded_row_loss", z, target, scale, None).saved
    opcheck("sharded_row_loss", z, target, scale, torch.rand(2), reduce=False)
    grad = opcheck("sharded_row_grad", z, target, scale, saved)
    into = torch.empty_like(z)
    opcheck("sharded_row_grad_into", into, z, target, scale, saved)
    assert torch.equal(into, grad)


def test_operators(ranks):
    on_ranks(ranks, SPLITS["2-uneven"], check_operators)


def check_same_bits(group, sizes):
    logits, target = random_logits((5, NUM_CLASSES), torch.float32)
    first, _ = both(group, sizes, logits, target, CASES["ANL-CE"])
    second, _ = both(group, sizes, logits, target, CASES["ANL-CE"])
    assert all(map(torch.equal, first, second))


def test_same_bits_twice(ranks):
    on_ranks(ranks, SPLITS["3-uneven"], check_same_bits)


def check_large_labels(group, sizes):
    """Places among very many classes survive their way through a float."""
    num_here = (1 << 24) + 3
    shards = shards_of(group, (num_here, 5))
    logits = torch.full((1, shards.num_here), -1.0, dtype=torch.bfloat16)
    if group.rank() == 0:
        logits[0, -1] = 9.0
    target = torch.tensor([num_here + 2])
    _, aux = ak.robust_loss(
        logits, target, ak.GCE(), process_group=shards, return_aux=["argmax", "p_y"]
    )
    assert aux.argmax.item() == num_here - 1


def test_very_many_classes(ranks):
    ranks(2, check_large_labels, None)


def gce(log_p):
    return -torch.expm1(0.7 * log_p) / 0.7


def check_log_prob(group, sizes):
    shards = shards_of(group, sizes)
    logits, target = random_logits((5, NUM_CLASSES))
    here, whole = mine(logits, shards), logits.clone().requires_grad_()
    upstream = torch.randn(5, dtype=torch.float64)
    ours = ak.log_prob(here, target, process_group=shards)
    wanted = ak.log_prob(whole, target)
    ours.backward(upstream)
    wanted.backward(upstream)
    assert_close(ours.detach(), wanted.detach(), 1e-12)
    assert_close(here.grad, mine(whole.grad, shards).detach(), 1e-11)

    weight = torch.rand(NUM_CLASSES, dtype=torch.float64)
    here.grad = whole.grad = None
    ours = ak.LogProbLoss(gce, weight=weight, process_group=shards)(here, target)
    wanted = ak.LogProbLoss(gce, weight=weight)(whole, target)
    ours.backward()
    wanted.backward()
    assert_close(ours.detach(), wanted.detach(), 1e-12)
    assert_close(here.grad, mine(whole.grad, shards).detach(), 1e-11)

    with pytest.raises(ValueError, match="classes must be one for each row where ranks share"):
        ak.log_prob(here, target.clamp(0).unsqueeze(1).expand(-1, 2), process_group=shards)


@pytest.mark.parametrize("split", ["2-uneven", "3-empty"])
def test_log_prob(ranks, split):
    ranks(len(SPLITS[split]), check_log_prob, SPLITS[split])
