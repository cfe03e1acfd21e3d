#!/usr/bin/env bash
# torch 2.13.0: writing in place to the local part of a DTensor that autograd has saved.
#
# Expected: backward raises "one of the variables needed for gradient computation has been modified by
# an inplace operation", as it does for a plain tensor: to_local() hands out the DTensor's own memory.
# Seen: the version counter of the DTensor does not move with that of its local tensor, and backward
# computes a wrong gradient of the new values without a word. Whoever writes kernels that work in place
# on to_local() has to call torch.autograd.graph.increment_version on the DTensor as well.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.2.6"
cat > "$work/find.py" <<'PYTHON'
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def work(rank, store):
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    plain = x.clone().requires_grad_()
    saved = plain.tanh()
    with torch.no_grad():
        saved.zero_()
    try:
        saved.sum().backward()
        raise SystemExit("a plain tensor no longer raises")
    except RuntimeError as error:
        told = str(error).split(":")[0]
    spread = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
    saved = spread.tanh()
    with torch.no_grad():
        saved.to_local().zero_()
    versions = saved._version, saved.to_local()._version
    saved.sum().backward()
    grad, wanted = spread.grad.full_tensor(), 1 - x.tanh() ** 2
    error = ((grad - wanted).norm() / wanted.norm()).item()
    if rank == 0:
        print(f"plain tensor: {told}")
        print(f"DTensor: versions of it and of its part {versions}; relative error {error:.2f}")
    assert versions[0] == 0 and error > 0.1, "it has changed"
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = "file://" + os.path.abspath(__file__) + ".store"
    mp.spawn(work, args=(store,), nprocs=2)
PYTHON
"$work/venv/bin/python" "$work/find.py"
