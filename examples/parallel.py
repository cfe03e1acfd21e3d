"""Losses over processes: data parallel by DDP and FSDP2, the vocabulary over ranks, and both.

    torchrun --standalone --nproc-per-node 2 examples/parallel.py --mode tp
    torchrun --standalone --nproc-per-node 4 examples/parallel.py --mode ddp fsdp2 tp tp-fsdp2

Each trains a small language model for a few steps and compares losses and gradients with those of
one process that has all rows and all classes. It prints how far they are apart, and fails if that
is more than rounding. On GPUs the ranks talk by NCCL, else by gloo.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import anl_kernels as ak

VOCABULARY, WIDTH, ROWS, STEPS, RATE = 1003, 32, 96, 3, 30.0
TERMS = ak.GCE(q=0.7) + 0.1 * ak.CE()
MODES = ["ddp", "fsdp2", "tp", "tp-fsdp2"]
ROUNDING = 1e-10  # everything is float64, so that an error cannot hide in rounding

Criterion = Callable[[Tensor, Tensor], Tensor]
Found = tuple[list[float], dict[str, Tensor]]  # losses of the steps, gradients of the last


class Model(nn.Module):
    """An embedding, a layer, and a criterion with the head in it: the sum over the rows."""

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.criterion = criterion

    def forward(self, tokens: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.layer(self.embed(tokens)).tanh(), target)


def whole_head() -> nn.Linear:
    """The head, the same in every process."""
    torch.manual_seed(2)
    return nn.Linear(WIDTH, VOCABULARY)


def fused(head: nn.Linear, **options) -> ak.LinearRobustLoss:
    """Head and loss in one; the sum, since ranks may have different numbers of rows that count."""
    return ak.LinearRobustLoss(head, TERMS, reduction="sum", **options)


def rows(device: torch.device) -> tuple[Tensor, Tensor]:
    """(tokens, labels) of all ranks; more labels are ignored in the first part than in the rest."""
    generator = torch.Generator().manual_seed(3)
    tokens, target = torch.randint(VOCABULARY, (2, ROWS), generator=generator)
    target[: ROWS // 4] = -100
    return tokens.to(device), target.to(device)


def train(model: nn.Module, batch: tuple[Tensor, Tensor], replicas: int) -> Iterator[float]:
    """Steps on this rank's rows; the loss of each is the mean over the rows of all replicas.

    DDP and FSDP average gradients over replicas. So each replica's sum is divided by the number of
    rows of all, and multiplied by the number of replicas.
    """
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    tokens, target = batch
    count = (rows(target.device)[1] != -100).sum()
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = model(tokens, target) * (replicas / count)
        loss.backward()
        optimiser.step()
        yield loss.item()


def one_process(device: torch.device) -> Found:
    """What is to come out."""
    model = Model(fused(whole_head())).to(device)
    return list(train(model, rows(device), 1)), grads_of(model)


def grads_of(model: nn.Module) -> dict[str, Tensor]:
    """Whole gradients, whatever they are spread over."""
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}


def data_parallel(wrap: Callable[[nn.Module], nn.Module], device: torch.device) -> Found:
    """Each rank has its own rows, and the criterion is a module that is wrapped with the rest."""
    model = Model(fused(whole_head())).to(device)
    mine = tuple(t.chunk(dist.get_world_size())[dist.get_rank()] for t in rows(device))
    losses = train(wrap(model), mine, dist.get_world_size())
    return [mean_over_ranks(loss, device) for loss in losses], grads_of(model)


def mean_over_ranks(
    loss: float, device: torch.device, group: dist.ProcessGroup | None = None
) -> float:
    total = torch.tensor(loss, device=device)
    dist.all_reduce(total, group=group)
    return total.item() / dist.get_world_size(group)


def with_dtensors(mesh: DeviceMesh, device: torch.device, fuse: bool) -> Found:
    """The head's rows over ranks by ColwiseParallel; the loss of its weight, or of its logits.

    Both are DTensors sharded on the classes, which is all that a loss has to be told.
    """
    head = whole_head().to(device)
    plan = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(head, mesh, plan)

    def criterion(hidden: Tensor, target: Tensor) -> Tensor:
        if fuse:
            return ak.linear_robust_loss(
                hidden, head.weight, target, TERMS, head.bias, reduction="sum"
            )
        return ak.robust_loss(head(hidden), target, TERMS, reduction="sum")

    model = Model(criterion).to(device)
    model.head = head
    losses = list(train(model, rows(device), 1))
    grads = grads_of(model)
    return losses, {name.replace("head.", "criterion.head."): g for name, g in grads.items()}


def part_of_head(shards: ak.ClassShards) -> nn.Linear:
    """The rows of the head that this rank has."""
    whole, part = whole_head(), nn.Linear(WIDTH, shards.num_here)
    with torch.no_grad():
        for mine, all_of_it in zip(part.parameters(), whole.parameters(), strict=True):
            mine.copy_(all_of_it.narrow(0, shards.first, shards.num_here))
    return part


def with_shards(group: dist.ProcessGroup, device: torch.device) -> Found:
    """Plain tensors, with ak.ClassShards to say how the classes lie; here the parts are uneven."""
    few = [100] * (group.size() - 1)
    shards = ak.ClassShards(group, (VOCABULARY - sum(few), *few))
    model = Model(fused(part_of_head(shards), process_group=shards)).to(device)
    losses = list(train(model, rows(device), 1))
    return losses, with_whole_head(grads_of(model), shards)


def with_shards_and_fsdp(mesh: DeviceMesh, device: torch.device) -> Found:
    """A mesh of two dimensions: FSDP over the one, classes over the other."""
    shards = ak.ClassShards.chunked(mesh.get_group("classes"), VOCABULARY)
    model = Model(fused(part_of_head(shards), process_group=shards)).to(device)
    fully_shard(model, mesh=mesh["data"])
    replicas, mine = mesh["data"].size(), mesh.get_local_rank("data")
    losses = train(model, tuple(t.chunk(replicas)[mine] for t in rows(device)), replicas)
    losses = [mean_over_ranks(loss, device, mesh.get_group("data")) for loss in losses]
    return losses, with_whole_head(grads_of(model), shards)


def with_whole_head(grads: dict[str, Tensor], shards: ak.ClassShards) -> dict[str, Tensor]:
    """Gradients with those of the head put together of the ranks' parts."""

    def whole(grad: Tensor) -> Tensor:
        all_of_it = grad.new_zeros(shards.num_classes, *grad.shape[1:])
        all_of_it[shards.first : shards.first + shards.num_here] = grad
        dist.all_reduce(all_of_it, group=shards.group)
        return all_of_it

    return {n: whole(g) if n.startswith("criterion") else g for n, g in grads.items()}


def difference(found: Found, wanted: Found) -> float:
    """The largest difference of losses and gradients, relative to the largest of each."""
    losses, grads = (torch.tensor(x[0]) for x in (found, wanted)), (found[1], wanted[1])
    pairs = [tuple(losses), *((grads[0][name], grads[1][name]) for name in grads[1])]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def runs_of(mode: str, device: torch.device) -> Iterator[tuple[str, Found]]:
    """What a mode shows: names and results."""
    world, kind = dist.get_world_size(), device.type
    if mode == "ddp":
        yield "DDP", data_parallel(DistributedDataParallel, device)
    elif mode == "fsdp2":
        yield "FSDP2", data_parallel(fully_shard, device)
    elif mode == "tp":
        mesh = init_device_mesh(kind, (world,))
        yield "DTensor logits of ColwiseParallel", with_dtensors(mesh, device, fuse=False)
        yield "its DTensor weight, head fused", with_dtensors(mesh, device, fuse=True)
        yield "ak.ClassShards of uneven sizes, head fused", with_shards(mesh.get_group(), device)
    else:
        if world % 2:
            raise SystemExit(f"--mode tp-fsdp2 needs an even number of processes, got {world}")
        mesh = init_device_mesh(kind, (world // 2, 2), mesh_dim_names=("data", "classes"))
        yield "FSDP2 x classes over ranks, head fused", with_shards_and_fsdp(mesh, device)


def main() -> None:
    """Run, compare, print; exit with 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES, help="default: all")
    modes = parser.parse_args().mode
    if "RANK" not in os.environ:
        parser.error(
            "the processes are torchrun's: torchrun --standalone --nproc-per-node 2 "
            "examples/parallel.py"
        )
    torch.set_default_dtype(torch.float64)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    wanted, wrong = one_process(device), False
    for name, found in (run for mode in modes for run in runs_of(mode, device)):
        apart = difference(found, wanted)
        wrong |= not apart < ROUNDING
        if dist.get_rank() == 0:
            verdict = "the same" if apart < ROUNDING else "WRONG"
            print(f"{name}: loss {found[0][0]:.4f} to {found[0][-1]:.4f}; {verdict}, {apart:.1e}")
    dist.destroy_process_group()
    sys.exit(wrong)


if __name__ == "__main__":
    main()
