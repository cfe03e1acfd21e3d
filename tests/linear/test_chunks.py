"""How many rows of logits exist at a time; and that no result says so."""

import pytest
import torch

from anl_kernels.linear.chunks import CHUNK_BYTES, LEAST_ROWS, Chunk, chunks_of, rows_of_chunk
from tests.cases import CASES, KINDS, over
from tests.helpers import error
from tests.linear import heads
from tests.linear.heads import IGNORE, fused, random_head

SIZES = [(num_rows, most) for num_rows in (1, 2, 15, 16, 17, 100, 1000) for most in (1, 7, 16, 40)]
ROW_BYTES = 1000


def each_of(num_rows, most):
    return rows_of_chunk(num_rows, ROW_BYTES, most * ROW_BYTES + 999, "cpu")


@pytest.mark.parametrize(("num_rows", "most"), SIZES)
def test_a_chunk_fits_the_memory(num_rows, most):
    assert 1 <= each_of(num_rows, most) <= most


@pytest.mark.parametrize(("num_rows", "most"), SIZES)
def test_there_are_no_more_chunks_than_there_have_to_be(num_rows, most):
    assert -(-num_rows // each_of(num_rows, most)) == -(-num_rows // most)


@pytest.mark.parametrize(("num_rows", "most"), SIZES)
def test_chunks_are_of_about_one_size(num_rows, most):
    count = -(-num_rows // most)
    assert each_of(num_rows, most) < num_rows / count + 16


def test_chunks_are_aligned_where_they_may_be():
    assert each_of(100, 64) == 64
    assert each_of(100, 60) == 50
    assert each_of(100, 100) == 100
    assert each_of(90, 100) == 96


@pytest.mark.parametrize("chunk_bytes", [1, ROW_BYTES - 1, ROW_BYTES])
def test_a_row_is_taken_however_long(chunk_bytes):
    assert rows_of_chunk(50, ROW_BYTES, chunk_bytes, "cpu") == 1


def test_no_rows_are_one_row():
    assert rows_of_chunk(0, ROW_BYTES, 0, "cpu") >= 1


@pytest.mark.parametrize("device_type", CHUNK_BYTES)
def test_default_memory(device_type):
    row_bytes = CHUNK_BYTES[device_type] // 4096
    assert rows_of_chunk(10**6, row_bytes, 0, device_type) == pytest.approx(4096, rel=0.05)
    assert rows_of_chunk(10**6, row_bytes, 0, device_type) <= 4096


@pytest.mark.parametrize("device_type", CHUNK_BYTES)
def test_long_rows_get_more_than_the_default_memory(device_type):
    row_bytes = CHUNK_BYTES[device_type]
    assert rows_of_chunk(10**6, row_bytes, 0, device_type) == LEAST_ROWS


@pytest.mark.parametrize("device_type", CHUNK_BYTES)
def test_long_rows_get_what_they_are_given(device_type):
    row_bytes = CHUNK_BYTES[device_type]
    assert rows_of_chunk(10**6, row_bytes, 3 * row_bytes, device_type) == 3


def test_other_devices_have_a_default_too():
    assert rows_of_chunk(10**6, ROW_BYTES, 0, "mps") > 1


def rows_in(target, skip, most=4):
    chunks = chunks_of(target, IGNORE, skip, ROW_BYTES, most * ROW_BYTES)
    everything = torch.arange(target.numel())
    return chunks, [chunk.of(everything).tolist() for chunk in chunks]


LABELS = {
    "all": [0] * 10,
    "some": [0, IGNORE, 1, 2, IGNORE, 3, 4, 5, 6, 7],
    "first": [IGNORE] * 9 + [1],
    "one": [3],
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("labels", LABELS.values(), ids=list(LABELS))
def test_every_row_is_in_one_chunk(labels, skip):
    target = torch.tensor(labels)
    chunks, rows = rows_in(target, skip)
    wanted = [i for i, label in enumerate(labels) if not (skip and label == IGNORE)]
    assert [row for some in rows for row in some] == wanted
    assert [len(chunk) for chunk in chunks] == [len(some) for some in rows]
    assert max(map(len, chunks)) <= 4


def test_rows_are_views_where_none_is_skipped():
    target = torch.zeros(10, dtype=torch.int64)
    for skip in (False, True):
        chunks, _ = rows_in(target, skip)
        assert all(chunk.of(target)._base is target for chunk in chunks)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("labels", [[], [IGNORE] * 5], ids=["empty", "ignored"])
def test_no_rows_no_chunks(labels, skip):
    target = torch.tensor(labels, dtype=torch.int64)
    chunks, _ = rows_in(target, skip)
    assert bool(chunks) == (len(labels) > 0 and not skip)


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([0, 3])], ids=["slice", "index"])
def test_what_is_put_is_got(rows):
    chunk, into = Chunk(rows), torch.zeros(5, 2)
    values = torch.randn(2, 2)
    chunk.put(into, values)
    assert torch.equal(chunk.of(into), values)
    assert into.count_nonzero() == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@over(KINDS)
def test_results_do_not_depend_on_the_size_of_chunks(terms, reduction, dtype, quick, device):
    head = random_head((33,), hidden=5, classes=40, dtype=dtype, device=device).with_ignored(7)
    whole = fused(head, terms, reduction=reduction)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    for rows in (2, 16, 32):
        made = fused(head, terms, reduction=reduction, **heads.chunks_of(rows, head))
        for actual, wanted in zip(made, whole, strict=True):
            assert error(actual, wanted) <= tolerance


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_batches_add_up(rows, quick, device):
    """Gradients accumulated over parts of a batch are those of the batch."""
    head = random_head((12,), device=device)
    _, *wanted = fused(head, CASES["ANL-CE"])
    parts = [head._replace(hidden=head.hidden[i::4], target=head.target[i::4]) for i in range(4)]
    made = [fused(p, CASES["ANL-CE"], **heads.chunks_of(rows, head))[1:] for p in parts]
    for i in range(4):
        torch.testing.assert_close(made[i][0] / 4, wanted[0][i::4], rtol=1e-12, atol=1e-12)
    for place in (1, 2):
        torch.testing.assert_close(sum(grads[place] for grads in made) / 4, wanted[place])
