"""Log-probabilities of given classes out of hidden states and the head's weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.backends.choice import choose_backend
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import of_rows
from anl_kernels.interface import RowRequest, accumulator_dtype
from anl_kernels.linear.loss import can_be_fused, linear_loss
from anl_kernels.linear.operators import Projection, Specs
from anl_kernels.linear.prepare import Operands, local_projection, skips_ignored, sum_dtype_of
from anl_kernels.linear.several_classes import (
    LinearLogProbsFunction,
    any_class,
    unfused_log_probs,
)
from anl_kernels.options import (
    check_chunk_bytes,
    check_ignore_index,
    check_softcap,
    check_temperature,
)
from anl_kernels.rows.autograd import apply
from anl_kernels.rows.labels import label_scale
from anl_kernels.rows.log_probs import CROSS_ENTROPY, LOG_P
from anl_kernels.rows.operators import Where
from anl_kernels.tracing import transforming

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def linear_log_prob(
    hidden: Tensor,
    linear_weight: Tensor,
    classes: Tensor,
    linear_bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    process_group: ProcessGroup | ClassShards | None = None,
    num_classes: int | None = None,
    logit_softcap: float | None = None,
    chunk_bytes: int | None = None,
    accum_dtype: torch.dtype | None = None,
    skip_ignored: bool | None = None,
) -> Tensor:
    """Log-probabilities of given classes, of logits which never exist as a whole.

    It is :func:`log_prob` of ``F.linear(hidden, linear_weight, linear_bias) / temperature``, a
    chunk of rows at a time. Forward keeps a few floats a row; backward computes the logits of a
    chunk once more, four matrix products in all, whatever the gradient is.

    Args:
        hidden: (..., D), as for :func:`linear_robust_loss`.
        linear_weight: (K, D), likewise.
        classes: (...), one class for each row; or (..., M), M >= 1 for each, in any order and of
            any number of times. int64 or int32.
        linear_bias: (K,).
        temperature: what the logits are divided by, after the softcap.
        ignore_index: an entry that stands for no class: its log-probability is 0, without gradient.
        process_group: as for :func:`linear_robust_loss`. With M classes a row the head is computed
            once for each.
        num_classes: as for :func:`linear_robust_loss`.
        logit_softcap: as for :func:`linear_robust_loss`.
        chunk_bytes: as for :func:`linear_robust_loss`.
        accum_dtype: as for :func:`linear_robust_loss`.
        skip_ignored: as for :func:`linear_robust_loss`; of rows all of whose classes are ignored.

    Returns:
        Of the shape of ``classes``, float32 (float64 for float64). The relative error is that of
        the arithmetic, also close to 0. Differentiable, twice and more (gradients of gradients
        hold all logits). A ``DTensor`` if ``hidden`` is one with rows over ranks.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, or a keyword has a value it cannot have.
        IndexError: a class is outside [0, K) and not ``ignore_index``. On a GPU only inside
            :func:`check_labels`; otherwise the row's log-probabilities are NaN there.
        RuntimeError: the backend asked for with :func:`use_backend` cannot run.

    Example:
        >>> log_p = ak.linear_log_prob(hidden, head.weight, tokens, temperature=0.7)
        >>> ratio = (log_p - old_log_p).exp()
    """
    ignore_index = check_ignore_index(ignore_index)
    operands = local_projection(hidden, linear_weight, linear_bias, process_group, num_classes)
    rows, shape = operands.rows, operands.hidden.shape[:-1]
    several = isinstance(classes, Tensor) and classes.dim() == hidden.dim()
    if several and classes.shape[-1] > 0:
        shape = torch.Size((*shape, classes.shape[-1]))
        rows = None if rows is None else rows.with_classes(hidden.dim() - 1, classes.shape[-1])
    classes = of_rows("classes", classes, rows)
    checks.check_labels_of(classes, shape, "hidden", operands.hidden, "classes")
    operands = operands._replace(target=any_class(classes, ignore_index) if several else classes)
    acc = accumulator_dtype(operands.dtype)
    one = label_scale(classes, operands.num_classes, ignore_index, acc, argument="classes")
    projection = Projection(
        softcap=check_softcap(logit_softcap) or 0.0,
        chunk_bytes=check_chunk_bytes(chunk_bytes) or 0,
        skip_ignored=skips_ignored(skip_ignored, operands.hidden.device.type, ()),
        dtype=operands.dtype,
        sum_dtype=sum_dtype_of(accum_dtype, operands.weight.dtype),
        num_classes=operands.num_here,
        temperature=check_temperature(temperature),
    )
    if not several:
        made = _of_one(operands, projection, one, ignore_index)
    elif classes.shape[-1] == 1 or operands.shards is not None:
        each = [operands._replace(target=labels) for labels in classes.unbind(-1)]
        made = torch.stack([_of_one(own, projection, one, ignore_index) for own in each], -1)
    else:
        made = _of_several(operands, projection, classes, ignore_index)
        made = made * one if transforming() else made  # which keeps the check of the classes
    return made if rows is None else rows.spread(made)


def _of_one(operands: Operands, projection: Projection, one: Tensor, ignore_index: int) -> Tensor:
    return linear_loss(operands, projection, one, LOG_P, ignore_index=ignore_index, reduce=False)[0]


def _of_several(
    operands: Operands, projection: Projection, classes: Tensor, ignore_index: int
) -> Tensor:
    target = operands.target.reshape(-1)
    hidden = operands.hidden.reshape(target.numel(), operands.hidden.shape[-1])  # D may be 0
    like = hidden.new_empty((0, projection.num_classes), dtype=projection.dtype)
    backend = choose_backend(like, CROSS_ENTROPY)
    projection = projection.needing(hidden, operands.weight, operands.bias)
    request = RowRequest.of(CROSS_ENTROPY, ignore_index, "row_losses", "saved", reduce=False)
    specs = Specs(request, Where(backend), projection)
    flat = classes.reshape(-1, classes.shape[-1])
    tensors = hidden, operands.weight, operands.bias, flat, target
    if not can_be_fused(CROSS_ENTROPY, backend):
        made = unfused_log_probs(*tensors, specs=specs)
    elif projection.gradients:
        made = apply(LinearLogProbsFunction, *tensors, *specs.flat)[0]
    else:
        made = torch.ops.anl_kernels.linear_log_probs(*tensors, *specs.flat)[0]
    return made.reshape(classes.shape)
