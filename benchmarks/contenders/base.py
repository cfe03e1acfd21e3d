"""What a contender is, and how it is given its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import anl_kernels as ak
from benchmarks.clocks import Step
from benchmarks.inputs import Inputs
from benchmarks.timing import Prepare

Criterion = Callable[..., Tensor]
"""Of the leaves of the inputs and the target; gives a 0-d loss."""
Build = Callable[[Inputs], Prepare]


@dataclass(frozen=True)
class Contender:
    """Something to measure; ``build`` may raise, which is what its row then says."""

    label: str
    build: Build
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it is measured unless one asks otherwise."""
    backend: str | None = None
    """The library's that it runs on; None if it is not the library."""
    criterion: Criterion | None = None
    """What it computes, and ..."""
    truth: Criterion | None = None
    """... what that has to be equal to, in float64; both are given of what is the library."""
    rounds: bool = False
    """The result has the dtype of the inputs, and the rounding of PyTorch's own at that dtype."""


CONTENDERS: dict[str, Contender] = {}


def contender(label: str, *devices: str) -> Callable[[Build], Build]:
    """Register the decorated function, by its name."""

    def register(build: Build) -> Build:
        CONTENDERS[build.__name__] = Contender(label, build, devices or ("cpu", "cuda"))
        return build

    return register


def register(
    name: str,
    label: str,
    criterion: Criterion | str,
    /,
    *devices: str,
    take: Callable[[Criterion, Inputs], Prepare] | None = None,
    compiled: bool = False,
    backend: str | None = None,
    truth: Criterion | None = None,
    **facts: Any,
) -> None:
    """Register a contender that is a criterion, or whatever else ``take`` makes steps of.

    Args:
        name, label: of the contender.
        criterion: it, or "module:function" of a package that need not be there.
        devices, backend, truth, facts: see ``Contender``.
        take: makes steps of the criterion; ``loss_and_gradient`` if not given.
        compiled: the criterion goes through torch.compile.
    """

    def made() -> Criterion:
        function = _imported(criterion) if isinstance(criterion, str) else criterion
        return compiled_alone(function) if compiled else function

    def build(inputs: Inputs) -> Prepare:
        prepare = (take or loss_and_gradient)(made(), inputs)
        return on_backend(backend, prepare) if backend not in (None, "auto") else prepare

    if truth:
        facts = {"criterion": lambda *tensors: made()(*tensors), "truth": truth} | facts
    where = devices or ("cpu", "cuda")
    CONTENDERS[name] = Contender(label, build, where, backend, **facts)


def _imported(path: str) -> Criterion:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def is_library(name: str) -> bool:
    """Whether a contender of this name is there and is the library."""
    return name in CONTENDERS and CONTENDERS[name].backend is not None


def loss_and_gradient(criterion: Criterion, inputs: Inputs) -> Prepare:
    """The phase of a training step that the problem asks for, as the step does it."""
    phase = _PHASES[inputs.problem.phase]
    return lambda i: phase(criterion, inputs.leaves[i], inputs.target)


def loss_over_gradient(criterion: Criterion, inputs: Inputs) -> Prepare:
    """Forward and backward of a criterion that leaves the gradient where the logits were.

    The logits have to be there again for the next step; that is done outside the timed steps.
    """
    if inputs.problem.phase != "both":
        raise ValueError("what overwrites the logits is measured forward and backward at once")

    def prepare(i: int) -> Step:
        anchor = torch.zeros((), requires_grad=True)
        logits = _Layer.apply(anchor, inputs.borrow())
        return lambda: criterion(logits, inputs.target).backward()

    return prepare


def compiled_alone(criterion: Criterion) -> Criterion:
    """The criterion through torch.compile, for one shape.

    In its default mode: max-autotune concerns matrix products above all.
    """
    import_module("torch._inductor.compile_fx")  # else the first call of the first one would

    def alone(*tensors: Tensor) -> Tensor:
        return criterion(*tensors)

    # Code of its own: what was compiled is kept with it, is looked through in every call, and may
    # not grow past a limit.
    alone.__code__ = alone.__code__.replace()
    return torch.compile(alone, dynamic=False, fullgraph=True)


def on_backend(backend: str, prepare: Prepare) -> Prepare:
    """Run the steps on one backend of the library; the switch costs the host a microsecond or two.

    Where the backend cannot run, the first step raises the reason.
    """

    def switched(i: int) -> Step:
        with ak.use_backend(backend):
            step = prepare(i)

        def run() -> None:
            with ak.use_backend(backend):
                step()

        return run

    return switched


def _both(criterion: Criterion, leaves: tuple[Tensor, ...], target: Tensor) -> Step:
    def step() -> None:
        criterion(*leaves, target).backward()
        # Timed, and here rather than before the forward pass, so that each contender pays for
        # returning its own gradient to the system.
        for leaf in leaves:
            leaf.grad = None

    return step


def _forward(criterion: Criterion, leaves: tuple[Tensor, ...], target: Tensor) -> Step:
    return lambda: criterion(*leaves, target)


def _backward(criterion: Criterion, leaves: tuple[Tensor, ...], target: Tensor) -> Step:
    loss = criterion(*leaves, target)

    def step() -> None:
        loss.backward()
        for leaf in leaves:
            leaf.grad = None

    return step


def _inference(criterion: Criterion, leaves: tuple[Tensor, ...], target: Tensor) -> Step:
    def step() -> None:
        with torch.no_grad():
            criterion(*leaves, target)

    return step


_PHASES = {
    "both": _both,
    "forward": _forward,
    "backward": _backward,
    "inference": _inference,
}


class _Layer(torch.autograd.Function):
    """Stands for the layer that made the logits, at no cost in either direction."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, logits: Tensor) -> Tensor:
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:
        return None, None
