#!/usr/bin/env bash
# torch 2.13.0: item() of the loss that F.cross_entropy makes of a DTensor sharded on the batch.
#
# Expected: the number that full_tensor() has, since a DTensor stands for the whole tensor.
# Seen: every rank gets a number of its own, that of its rows, with no word. A loss that is logged, or
# compared with a threshold to stop or to skip a step, differs between ranks: they may then take
# different branches, and wait for each other.
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
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def work(rank, store):
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    whole = torch.randn(8, 10), torch.arange(8)
    logits, target = (distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in whole)
    loss = F.cross_entropy(logits, target)
    items = [None, None]
    dist.all_gather_object(items, loss.item())
    whole = loss.full_tensor().item()
    if rank == 0:
        print(f"{loss.placements}: item() is {items} on the ranks, full_tensor() is {whole}")
    assert items[0] != items[1] and whole not in items, "it has changed"
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = "file://" + os.path.abspath(__file__) + ".store"
    mp.spawn(work, args=(store,), nprocs=2)
PYTHON
"$work/venv/bin/python" "$work/find.py"
