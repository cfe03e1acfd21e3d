"""The forms of the CUDA kernels, for rows of up to 64 neighbouring classes."""

from contextlib import contextmanager

from anl_kernels.backends.choice import extension, load_backend

LONG = {"tile_classes": 0, "warp_bytes": 0}  # neither in tiles nor by a warp
NO_ROOM = {**LONG, "shared_bytes": 0}
FORMS = {
    "tile": {},
    "elements": {"shared_bytes": 0},
    "warp": {"tile_classes": 0, "warp_bytes": 4096},
    "block": LONG,
    "cluster": {**LONG, "chunk_bytes": 48, "max_cluster": 4},
    "cluster-of-16": {**LONG, "chunk_bytes": 16, "max_cluster": 16},
    "stream": {**NO_ROOM, "split_below_rows": 0},
    "split": {**NO_ROOM, "split_below_rows": 1 << 30, "split_from_bytes": 0, "part_bytes": 48},
}
SHARD_FORMS = {
    "lanes": {},
    "block": {"tile_classes": 0, "max_cluster": 1},
    "cluster": {"tile_classes": 0, "max_cluster": 4, "part_bytes": 16},
    "cluster-of-16": {"tile_classes": 0, "max_cluster": 16, "part_bytes": 8},
}
NAMES = {"warp": "warp_rows", "block": "cluster", "cluster-of-16": "cluster"}


@contextmanager
def limited(**limits):
    """The kernels choose by these limits."""
    kernels = extension("cuda")
    before = kernels.limits()
    kernels.set_limits(**limits)
    try:
        yield
    finally:
        kernels.set_limits(**before)


def forced(form, monkeypatch=None):
    """Rows of neighbouring classes take this form."""
    return limited(**FORMS[form])


def forced_of_shards(form):
    """As ``forced``, for what is done to shards of rows."""
    return limited(**SHARD_FORMS[form])


@contextmanager
def checked(form, monkeypatch):
    """As ``forced``, and they do."""
    backend = load_backend("cuda")
    run = backend.row_loss

    def row_loss(logits, *args):
        if logits.stride(0 if logits.dim() == 1 else 1) == 1 and logits.numel():
            assert extension("cuda").row_loss_launch(logits)["kind"] == NAMES.get(form, form)
        return run(logits, *args)

    with forced(form, monkeypatch), monkeypatch.context() as patch:
        patch.setattr(backend, "row_loss", row_loss)
        yield
