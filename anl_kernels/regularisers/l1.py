"""The L1 norm of parameters: as a term of the loss, and as what an optimiser's step adds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anl_kernels.checks import FLOATING, check_dense
from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.interface import accumulator_dtype
from anl_kernels.numbers import as_number, shown
from anl_kernels.tracing import forward_mode, recorded_for_others, transforming

# Elements up to which a tensor is small; of what is made at once on a CPU, to stay in its cache.
_SMALL = 1 << 11
_PIECE = 1 << 18
_MOST = 1 << 25  # elsewhere, so that they do not take as much memory as the model


def l1_penalty(parameters: Iterable[Tensor] | Tensor) -> Tensor:
    """The sum of ``|theta|`` over all elements of all parameters, as one node of the graph.

    The gradient is the sign (0 at 0) times the upstream gradient, to the bit that of
    ``sum(p.abs().sum() for p in parameters)``, with which the code of ANL makes its penalty over
    ``model.parameters()``, biases and norms included. The second derivative is 0.

    Args:
        parameters: tensors, such as ``model.parameters()``, floating and dense; dtypes and devices
            may differ. What requires no grad counts in the value all the same, as in that code. A
            ``DTensor`` counts as a whole, not only with this rank's part, so that its mesh's
            ranks have to call this together.

    Returns:
        0-d, on the first parameter's device: float32, or float64 if a parameter is. 0 without
        parameters.

    Raises:
        TypeError: parameters are not tensors, or not floating, or sparse.
        ValueError: a DTensor is a partial sum.

    Source: Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS
    2023, and its code.

    Example:
        >>> loss = criterion(model(x), y) + 5e-5 * ak.l1_penalty(model.parameters())
    """
    tensors = _checked(parameters)
    if not tensors:
        return torch.zeros(())
    # In forward mode, and where the call is recorded for others, by what PyTorch knows itself.
    plain = forward_mode() or recorded_for_others()
    return _L1Function.forward(*tensors) if plain else _L1Function.apply(*tensors)


@torch.no_grad()
def add_l1_grad_(parameters: Iterable[Tensor] | Tensor, factor: float) -> None:
    """Add the gradient of ``factor * l1_penalty(parameters)`` to ``.grad``, without a graph.

    To be called between ``backward`` and what clips gradients; a gradient that is None is made.

    Args:
        parameters: as for :func:`l1_penalty`; those that require no grad are left alone.
        factor: of the penalty, at least 0.

    Raises:
        TypeError: as :func:`l1_penalty`, or a gradient is sparse, or a parameter is no leaf.
        ValueError: factor is negative, infinite or no number.
    """
    factor = _check_factor(factor)
    learned = [p for p in _checked(parameters) if p.requires_grad]
    for p in learned:
        if not p.is_leaf:
            raise TypeError(
                f"parameters must be leaves of the graph, which keep gradients, got {p.grad_fn}; "
                f"pass what it was computed from, or put ak.l1_penalty into the loss"
            )
        if p.grad is None:
            # Since torch 2.11 a parameter may want gradients of another dtype than its own.
            p.grad = torch.zeros_like(p, dtype=getattr(p, "grad_dtype", None) or p.dtype)
        elif p.grad.layout != torch.strided:
            raise TypeError(
                f"parameters must have dense gradients, got one of layout {p.grad.layout}; make "
                f"the embedding with sparse=False"
            )
    for group in _grouped(learned).values():
        for some in _batches(group):
            signs = torch._foreach_sign([_local(p) for p in some])
            torch._foreach_add_([_local(p.grad) for p in some], signs, alpha=factor)


class L1Hook:
    """Adds an L1 penalty to the gradients before every step of an optimiser, and then clips.

    Steps are those of training with ``factor * l1_penalty(parameters)`` in the loss and
    ``torch.nn.utils.clip_grad_norm_`` after ``backward``, without a graph for the penalty. It goes
    with learning rate schedulers, with accumulated gradients (the penalty enters once a step) and
    with ``GradScaler``: the gradients are unscaled by then.

    A copy of the optimiser (``deepcopy``, ``pickle``) has no hooks, as all of PyTorch's: make the
    hook anew for it.

    Args:
        optimizer: its parameters that require grad are penalised.
        factor: of the penalty, at least 0, such as 5e-5; an attribute that may be changed.
        max_norm: clip the norm of all gradients together, penalty included, at this; None does
            not. ANL's recipe has 5.0.

    Raises:
        TypeError: optimizer is no ``torch.optim.Optimizer``.
        ValueError: factor or max_norm has a value it cannot have.
        RuntimeError: (by the optimiser's step) the step was given a closure, which computes
            gradients after the hook, or a GradScaler left the gradients scaled, as it does for
            fused optimisers unless ``scaler.unscale_(optimizer)`` is called before.

    Example:
        >>> hook = ak.L1Hook(optimizer, factor=5e-5, max_norm=5.0)
        >>> loss.backward()
        >>> optimizer.step()
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, factor: float, max_norm: float | None = None
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        self.factor = _check_factor(factor)
        self.max_norm = _check_max_norm(max_norm)
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Take the hook off the optimiser."""
        self._handle.remove()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        _check_step(optimizer, args, kwargs)
        groups = optimizer.param_groups
        learned = [p for group in groups for p in group["params"] if p.requires_grad]
        add_l1_grad_(learned, self.factor)
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(learned, self.max_norm)


class _L1Function(torch.autograd.Function):
    """``apply(*parameters)``: the sum of their absolute values, 0-d."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*parameters: Tensor) -> Tensor:
        """Sum groups of a kind, then the sums."""
        wide = any(p.dtype == torch.float64 for p in parameters)
        dtype = torch.float64 if wide else torch.float32
        groups = _grouped(parameters).items()
        sums = [_whole(_sum_abs([_local(p) for p in group]), kind[-1]) for kind, group in groups]
        return torch.stack([s.to(parameters[0].device, dtype) for s in sums]).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the parameters."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Signs times the upstream gradient."""
        parameters, needed = ctx.saved_tensors, ctx.needs_input_grad
        learned = [p for p, needs in zip(parameters, needed, strict=True) if needs]
        if torch.is_grad_enabled() or forward_mode():
            grads = iter([p.sign() * grad.to(p.device, p.dtype) for p in learned])
        else:
            grads = iter(_signs(learned, grad))
        return tuple(next(grads) if needs else None for needs in needed)


def _signs(tensors: list[Tensor], factor: Tensor) -> list[Tensor]:
    """The sign of each tensor times a 0-d factor, without a graph."""
    made = {}
    for kind, group in _grouped(tensors).items():
        signs: list[Tensor] = []
        for some in _batches(group):
            signs += torch._foreach_sign([_local(tensor) for tensor in some])
            torch._foreach_mul_(signs[-len(some) :], factor.to(*kind[:2]))
        made[kind] = iter(signs)
    return [_placed_like(tensor, next(made[_kind(tensor)])) for tensor in tensors]


def _kind(tensor: Tensor) -> tuple[torch.device, torch.dtype, Any]:
    """Device, dtype and spread: tensors of one kind are what a ``_foreach`` function takes."""
    return tensor.device, tensor.dtype, _spread(tensor)


def _grouped(tensors: Sequence[Tensor]) -> dict[Any, list[Tensor]]:
    """Tensors by their kind."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(_kind(tensor), []).append(tensor)
    return groups


def _batches(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors, on one device, of which not too many signs are made at a time."""
    most = _PIECE if tensors[0].device.type == "cpu" else _MOST
    first = held = 0
    for i, tensor in enumerate(tensors):
        held += tensor.numel()
        if held > most and i > first:
            yield tensors[first:i]
            first, held = i, tensor.numel()
    yield tensors[first:]


def _sum_abs(tensors: list[Tensor]) -> Tensor:
    """The sum of |x| over tensors of one device and dtype."""
    dtype = accumulator_dtype(tensors[0].dtype)
    if tensors[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(tensors, 1, dtype=dtype)).sum()
    # On a CPU norms are added up one element after the other: of 10^7 in float32 0.6% are lost,
    # and large ones take six times as long.
    # vmap and forward mode have no rules for lists, and a compiler needs none.
    transformed = transforming() or recorded_for_others() or forward_mode()
    small = [t for t in tensors if t.numel() <= _SMALL and not transformed]
    sums = [torch.stack(torch._foreach_norm(small, 1, dtype=torch.float64)).sum()] if small else []
    for tensor in tensors:
        if tensor.numel() > _SMALL or transformed:
            whole = tensor.numel() <= _PIECE
            pieces = (tensor,) if whole else tensor.reshape(-1).split(_PIECE)
            sums += [piece.abs().sum(dtype=dtype) for piece in pieces]
    return torch.stack([s.to(dtype) for s in sums]).sum()


def _spread(tensor: Tensor) -> Any:
    """How a DTensor's sum is made of its parts' sums: a mesh, and placements on it."""
    if not is_dtensor(tensor):
        return None
    from torch.distributed.tensor import Partial, Replicate

    given: Any = tensor
    if any(place.is_partial() for place in given.placements):
        raise ValueError(
            f"parameters must not be partial sums, got a DTensor with placements "
            f"{given.placements}; redistribute it"
        )
    placements = (Partial() if place.is_shard() else Replicate() for place in given.placements)
    return given.device_mesh, tuple(placements)


def _whole(part: Tensor, spread: Any) -> Tensor:
    """The sum over all ranks, of this rank's."""
    if spread is None:
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(part, *spread, run_check=False).full_tensor()


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if is_dtensor(tensor) else tensor


def _placed_like(tensor: Any, local: Tensor) -> Tensor:
    """A DTensor that lies as another, of this rank's part; a plain tensor as it is."""
    if not is_dtensor(tensor):
        return local
    from torch.distributed.tensor import DTensor

    mesh, places, shape = tensor.device_mesh, tensor.placements, tensor.shape
    return DTensor.from_local(
        local, mesh, places, run_check=False, shape=shape, stride=tensor.stride()
    )


def _checked(parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    """The tensors; raise TypeError unless all have an absolute value to add up."""
    if isinstance(parameters, nn.Module):
        raise TypeError("parameters must be tensors, got a module; pass module.parameters()")
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for i, p in enumerate(tensors):
        if not isinstance(p, Tensor):
            raise TypeError(f"parameters must be tensors, got {type(p).__name__} at place {i}")
        if p.layout == torch.strided:
            check_dense(f"parameters[{i}]", p)
        if p.dtype not in FLOATING or p.layout != torch.strided:
            raise TypeError(
                f"parameters must be floating and dense, got {p.dtype} of layout {p.layout} at "
                f"place {i}; leave it out"
            )
    return tensors


def _check_factor(factor: float) -> float:
    number = as_number(factor)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(f"factor must be a finite number that is at least 0, got {shown(factor)}")
    return number


def _check_max_norm(max_norm: float | None) -> float | None:
    if max_norm is None:
        return None
    number = as_number(max_norm)
    if number is None or not number > 0:
        raise ValueError(
            f"max_norm must be above 0, or None for no clipping, got {shown(max_norm)}"
        )
    return number


def _check_step(
    optimizer: torch.optim.Optimizer, args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """Raise RuntimeError unless the gradients are there, and are what the step works with."""
    if any(map(callable, (*args[1:], *kwargs.values()))):
        raise RuntimeError(
            "L1Hook works before the step, whose closure computes gradients after that: call "
            "step() without one, or put ak.l1_penalty into the closure's loss"
        )
    if getattr(optimizer, "grad_scale", None) is not None or "grad_scaler" in kwargs:
        raise RuntimeError(
            "L1Hook needs gradients that are unscaled, which GradScaler leaves to a fused "
            "optimizer: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
        )
