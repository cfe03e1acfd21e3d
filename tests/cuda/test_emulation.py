"""The host's emulation of the device: right kernels run, and planted bugs are found, whatever the
order in which threads run."""

from functools import partial

import numpy as np
import pytest
import torch

from tests.cuda.emulation import build
from tests.cuda.emulation.scripts import Script

SCHEDULES = [("forward", 0), ("backward", 0), *(("shuffled", seed) for seed in range(4))]
WARP = 32


def load(folder="emulation_selftest", flags=()):
    """The module of selftest.cpp, and what sets its schedule."""
    if reason := build.why_not():
        pytest.skip(reason)
    sources = [build.HERE / "selftest.cpp"]
    module = build.load("emulation_selftest", sources, folder=folder, flags=flags)
    return module, build.load_control(folder)


@pytest.fixture(scope="module")
def loaded():
    return load()


@pytest.fixture
def emulation(loaded):
    return loaded[0]


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: f"{schedule[0]}{schedule[1] or ''}")
def run(request, loaded):
    """Runs a kernel on ``numbers(blocks, threads)``, under every schedule."""
    emulation, control = loaded
    control.set_schedule(*request.param)
    yield partial(run_kernel, emulation)
    control.set_schedule("forward")


def run_kernel(
    emulation, kernel, bug="none", *, blocks=(4, 2), threads=96, shared_bytes=None, cluster=1
):
    shared_bytes = 4 * threads * max(cluster, 1) if shared_bytes is None else shared_bytes
    x = numbers(blocks, threads)
    y = emulation.run(kernel, bug, x, *blocks, threads, shared_bytes, cluster)
    return y.reshape(x.shape)


def numbers(blocks, threads):
    """Small whole numbers, whose sums are exact; (y, x, threads)."""
    size = (blocks[1], blocks[0], max(threads, 0))
    if np.prod(size) > 1e6:
        return np.zeros(1, np.float32)
    return np.random.default_rng(0).integers(0, 5, size).astype(np.float32)


# ---- right kernels -----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [32, 96, 256])
def test_sum_of_block(threads, run):
    x = numbers((4, 2), threads)
    wanted = x.sum(-1, keepdims=True) + 1000 * (x * x).sum(-1, keepdims=True)
    assert (run("sum_of_block", threads=threads) == wanted).all()


def test_sum_of_warp(run):
    x = numbers((4, 2), 96)
    warps = x.reshape(-1, WARP)
    neighbours = warps[:, np.arange(WARP) ^ 5]
    assert np.array_equal(
        run("sum_of_warp"),
        (warps.sum(-1, keepdims=True) + 1000 * neighbours).reshape(x.shape),
    )


@pytest.mark.parametrize("cluster", [1, 2, 4, 16])
def test_sum_of_cluster(cluster, run):
    x = numbers((32, 2), 64)
    clusters = x.reshape(2, -1, cluster, 64)
    sums = (clusters + 1000 * clusters[..., :1]).sum(2, keepdims=True)
    wanted = np.broadcast_to(sums, clusters.shape).reshape(x.shape)
    assert np.array_equal(
        run("sum_of_cluster", blocks=(32, 2), threads=64, cluster=cluster), wanted
    )


def test_copies(run):
    assert np.array_equal(run("reverse"), numbers((4, 2), 96)[..., ::-1])
    assert np.array_equal(run("places"), numbers((4, 2), 96))


def test_halves_of_a_word_are_apart(run):
    x = numbers((4, 2), 96)
    assert np.array_equal(run("halves"), x[..., np.arange(96) ^ 1])


def test_unwritten_memory_is_nan_in_every_block(run):
    run("sum_of_block")
    assert np.isnan(run("unwritten")).all()


def test_largest_launch(run):
    size = {"blocks": (16, 1), "threads": 1024, "cluster": 16}
    assert np.isfinite(run("sum_of_cluster", **size)).all()


# ---- planted bugs ------------------------------------------------------------------------------

NO_BARRIER = (
    r"race: thread \d+.* (reads|writes) word \d+ .*, which thread \d+ .* no barrier between"
)
MISALIGNED = r"the address ends in \d+, not in a multiple of"
OUTSIDE = r"\d+ bytes at offset -?\d+ of shared memory, which has 384"
BUGS = {
    "sum_of_block": {
        "no_barrier_after_write": NO_BARRIER,
        "no_barrier_before_reuse": NO_BARRIER,
        "thread_skips_barrier": NO_BARRIER + "|for ever; .*threads 0-32 in block_barrier, 33 ended",
        "thread_leaves_before_barrier": "waits in block_barrier for ever; .* 33 ended, 34-95 in",
        "barriers_of_two_kinds": "waits in block_barrier for ever; .*threads 0-31 ended, 32-95 in",
    },
    "sum_of_warp": {
        "no_warp_barrier": NO_BARRIER,
        "shuffle_for_warp_barrier": NO_BARRIER,
        "divergent_shuffle": r"for ever; .*threads 0-15 in shuffle_xor, 16-31 in warp_barrier",
        "shuffles_of_two_sizes": "shuffle_xor of [48] bytes in lane [67], of [48] in lane [67]",
        "shuffle_outside_warp": "shuffle_xor with the mask 32",
    },
    "reverse": {
        "no_wait_for_copies": r"while a copy by thread \d+ is under way: no wait_for_copies",
        "barrier_for_wait_for_copies": r"while a copy by thread \d+ is under way",
        "copies_at_end": "ends while 1 copies are under way: no wait_for_copies",
        "changed_source": "what is copied changed before wait_for_copies",
        "misaligned_copy": "copy_async from: " + MISALIGNED,
        "misaligned_copy_to": "copy_async to: " + MISALIGNED,
    },
    "places": {
        "misaligned_load": "load16: " + MISALIGNED,
        "misaligned_store": "store16: " + MISALIGNED,
        "misaligned_shared_load": "shared_load: " + MISALIGNED,
        "store_past_end": OUTSIDE,
        "store_before_start": OUTSIDE,
        "load_across_end": OUTSIDE,
        "copy_past_end": OUTSIDE,
        "peer_store_past_end": OUTSIDE,
        "plain_write_past_end": "something wrote past the end of shared memory",
    },
}
CLUSTER_BUGS = {
    "no_first_cluster_barrier": r"before the first cluster_barrier: rank \d may not have started",
    "early_exit": r"store_to_peer to rank 1, which has ended|rank 1 ended, and no cluster_barrier",
    "block_barrier_for_cluster_barrier": NO_BARRIER + "|has ended|ended, and no cluster_barrier",
    "no_such_peer": "rank 4 of a cluster of 4",
}
WHERE = r"emulated kernel {}, block \(\d+, \d+\), thread \d+: .*({})"


@pytest.mark.parametrize(
    ("kernel", "bug"), [(kernel, bug) for kernel, bugs in BUGS.items() for bug in bugs]
)
def test_bug_is_found(kernel, bug, run):
    with pytest.raises(RuntimeError, match=WHERE.format(kernel, BUGS[kernel][bug])):
        run(kernel, bug)
    run("sum_of_block")  # nothing is left of the error
    run("reverse")


@pytest.mark.parametrize("bug", CLUSTER_BUGS)
def test_bug_in_a_cluster_is_found(bug, run):
    with pytest.raises(RuntimeError, match=WHERE.format("sum_of_cluster", CLUSTER_BUGS[bug])):
        run("sum_of_cluster", bug, cluster=4)
    run("sum_of_cluster", cluster=4)


# ---- any accesses and barriers -----------------------------------------------------------------


def test_races_are_found_and_no_others(run, emulation):
    random = np.random.default_rng(0)
    racy = 0
    for _ in range(200):
        script = Script.by_chance(random)
        call = partial(emulation.run, "script", "none", script.numbers(), *script.grid())
        if script.has_race():
            racy += 1
            with pytest.raises(RuntimeError, match=NO_BARRIER):
                call()
        else:
            call()
    assert 60 <= racy <= 140


# ---- other errors ------------------------------------------------------------------------------


def test_exceptions_come_out(run):
    with pytest.raises(IndexError, match="thrown by a kernel"):
        run("places", "exception")
    run("places")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"threads": 48}, "48 threads in a block, not a multiple of 32 up to 1024"),
        ({"threads": 1056}, "1056 threads"),
        ({"threads": 0}, "0 threads"),
        ({"blocks": (0, 1)}, "0 blocks in x"),
        ({"blocks": (2**31, 1)}, "2147483648 blocks in x"),
        ({"blocks": (1, 65536)}, "65536 blocks in y"),
        ({"shared_bytes": 232449}, "232449 bytes .* may have 232448"),
        ({"blocks": (32, 1), "cluster": 32}, "a cluster of 32 blocks, of at most 16"),
        ({"cluster": 0}, "a cluster of 0"),
        ({"blocks": (6, 1), "cluster": 4}, "6 blocks in x, not a multiple of the cluster's 4"),
    ],
)
def test_launches_that_no_device_takes(size, message, run):
    with pytest.raises(RuntimeError, match="emulated kernel unwritten: " + message):
        run("unwritten", **size)


def test_other_processors(run):
    """Where threads are switched by the C library, not by instructions written out."""
    other, _ = load("emulation_selftest_ucontext", ["-DANL_EMULATION_UCONTEXT"])
    for kernel in ("sum_of_block", "sum_of_warp", "sum_of_cluster", "reverse"):
        size = {"cluster": 4 if kernel == "sum_of_cluster" else 1}
        assert np.array_equal(run_kernel(other, kernel, **size), run(kernel, **size))
    for bug in ("no_barrier_after_write", "thread_leaves_before_barrier"):
        with pytest.raises(RuntimeError, match=WHERE.format("sum_of_block", "")):
            run_kernel(other, "sum_of_block", bug)


# ---- numbers -----------------------------------------------------------------------------------

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
over_dtypes = pytest.mark.parametrize("name", DTYPES)


def all_halves(name):
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(DTYPES[name])


def bits(x):
    return x.view({2: torch.int16, 4: torch.int32}[x.itemsize]).numpy()


@over_dtypes
def test_widen(name, emulation):
    x = all_halves(name)
    wide = torch.from_numpy(getattr(emulation, f"widen_{name}")(bits(x).view(np.uint16)))
    assert torch.equal(wide.isnan(), x.isnan())
    assert np.array_equal(bits(wide[~x.isnan()]), bits(x[~x.isnan()].float()))


def floats_to_narrow(name):
    """What rounds to every number: itself, ties, and their neighbours; and any float32."""
    exact = all_halves(name).float()
    exact = exact[exact.isfinite()].unique()
    ties = ((exact[1:].double() + exact[:-1].double()) / 2).float()
    edges = torch.cat([exact, ties, torch.tensor([65519.996, 65520, 3.3961776e38, torch.inf])])
    edges = torch.cat([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1)])
    spread = torch.randint(-(2**31), 2**31, (2**17,)).to(torch.int32).view(torch.float32)
    return torch.cat([edges, -edges, spread, torch.tensor([torch.nan, -torch.nan, -0.0])])


@over_dtypes
def test_narrow_pair(name, emulation):
    low = floats_to_narrow(name)
    high = low.flip(0)
    pairs = getattr(emulation, f"narrow_{name}")(low.numpy(), high.numpy())
    for half, x in ((pairs & 0xFFFF, low), (pairs >> 16, high)):
        narrow = torch.from_numpy(half.astype(np.uint16).view(np.int16)).view(DTYPES[name])
        assert torch.equal(narrow.isnan(), x.isnan())
        x = x.to(DTYPES[name])
        assert np.array_equal(bits(narrow[~x.isnan()]), bits(x[~x.isnan()]))


def test_exp2_fast(emulation):
    x = np.linspace(-126, 128, 10001, dtype=np.float32)[:-1]
    y = emulation.exp2_fast(x)
    np.testing.assert_allclose(y, np.exp2(x.astype(np.float64)), rtol=2**-22)
    below = np.array([-126.00001, -126.5, -140, -1e30, -np.inf], np.float32)
    assert not emulation.exp2_fast(below).any()
    assert emulation.exp2_fast(np.float32([-126]))[0] == np.finfo(np.float32).tiny
    at_ends = emulation.exp2_fast(np.float32([128, np.inf, np.nan, 1e-40, -0.0]))
    assert np.array_equal(at_ends, np.float32([np.inf, np.inf, np.nan, 1, 1]), equal_nan=True)


def test_device(emulation):
    assert emulation.describe_device() == (90, 132, 232448, 16)
