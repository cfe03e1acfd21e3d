"""Noise that depends on the features of a sample."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from anl_kernels.noise.labels import CPU, check_rate, check_seed, generator, read
from anl_kernels.noise.result import NoisyLabels, report

RATE_DEVIATION = 0.1
SCORES_AT_ONCE = 1 << 22
"""Scores, rows times K, that are in memory together."""
SCORE_LIMIT = 1e37
"""Largest feature times d: an entry of W is below 10, and float32 ends at 3e38."""


def instance_dependent(
    features: Any,
    labels: Any,
    rate: float,
    num_classes: int,
    *,
    seed: int = 0,
    ignore_index: int = -100,
    part: int = 0,
) -> NoisyLabels:
    """Change labels with a probability and to a class that depend on the sample (PDN).

    Each sample has its own rate, from a normal distribution around ``rate`` with deviation 0.1,
    truncated to [0, 1]. With that probability the label changes, to a class drawn from the softmax
    of ``x W_y`` without the true class y, where ``W_y`` has one N(0, 1) matrix (d, K) for each
    class. Near 0 and 1 truncation moves the mean of the rates off ``rate``; at 0 nothing changes.
    The result has the share that did change.

    Matrices are made for one class at a time and scores for some rows, so that memory goes with
    d K and not with N d K. A class's matrix follows from the seed, K and d alone: parts of a data
    set that get noise in separate calls share it. Rates and draws of the i-th sample follow from
    the seed and i, whatever its features: two parts with one seed change at the same places. Give
    each another ``part``, as in ``instance_dependent(x, y, 0.4, 10, seed=seed, part=1)``.

    Args:
        features: (N, d) or (N, ...), flattened: numbers, as a tensor on any device, a NumPy array,
            or whatever NumPy makes an array of. The papers take the images themselves. The larger
            they are, the sharper the choice of the class.
        labels: (N,), as for :func:`anl_kernels.noise.symmetric`.
        rate: the mean share of labels that change, in [0, 1].
        num_classes: K, at least 2.
        seed: the same arguments and seed give the same labels, whatever the device.
        ignore_index: as for :func:`anl_kernels.noise.symmetric`.
        part: which part of a data set this is: other draws with the same matrices.

    Raises:
        TypeError: as for :func:`anl_kernels.noise.symmetric`; part is not an int.
        IndexError: as for :func:`anl_kernels.noise.symmetric`.
        ValueError: as for :func:`anl_kernels.noise.symmetric`; labels are not (N,), features do
            not have N rows, or a feature is not finite or so large that scores may overflow.

    Source: Xia et al., Part-dependent Label Noise, NeurIPS 2020.
    """
    checked = read(labels, num_classes, ignore_index)
    rows = _read_features(features, tuple(checked.given.shape))
    noisy, k = checked.flat.clone(), checked.num_classes
    rate = check_rate(rate)
    rng = generator(seed)
    class_seeds = torch.randint(2**62, (k,), generator=rng, device=CPU)
    if check_seed("part", part) != 0:
        rng = generator(_any_seed(rng) ^ _any_seed(generator(part)))
    if rate > 0:
        rates = _truncated_normal(len(noisy), rate, rng)
        changes = checked.counted & (_uniform(len(noisy), rng) < rates)
        for y in checked.flat[changes].unique().tolist():
            chosen = (changes & (checked.flat == y)).nonzero()[:, 0]
            matrix_rng = generator(int(class_seeds[y]))
            size = rows.shape[1], k
            matrix = torch.randn(size, generator=matrix_rng, dtype=torch.float32, device=CPU)
            without = [y] if checked.void is None else [y, checked.void]
            for some in chosen.split(max(1, SCORES_AT_ONCE // k)):
                noisy[some] = _other_class(rows[some].float() @ matrix, without, rng)
    return report(checked, noisy)


def _other_class(scores: Tensor, without: list[int], rng: torch.Generator) -> Tensor:
    """(n,) classes drawn from the softmax of scores (n, K) without some classes."""
    scores[:, without] = -torch.inf
    return scores.softmax(dim=1).multinomial(1, generator=rng)[:, 0]


def _truncated_normal(size: int, mean: float, rng: torch.Generator) -> Tensor:
    """(size,) rates from the normal distribution in [0, 1], by inverting its distribution."""
    scale = RATE_DEVIATION * math.sqrt(2)
    low, high = math.erf(-mean / scale), math.erf((1 - mean) / scale)
    rates = mean + scale * torch.erfinv(low + (high - low) * _uniform(size, rng))
    return rates.clamp(0, 1)  # the ends of erfinv are infinite


def _uniform(size: int, rng: torch.Generator) -> Tensor:
    return torch.rand(size, generator=rng, dtype=torch.float64, device=CPU)


def _any_seed(rng: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=rng, device=CPU))


def _read_features(features: Any, shape: tuple[int, ...]) -> Tensor:
    """(N, d) on the CPU."""
    if not isinstance(features, Tensor):
        import numpy as np

        # PyTorch takes no negative strides and warns of memory that is read-only.
        features = torch.from_numpy(np.require(features, requirements=["C", "W"]))
    if len(shape) != 1:
        raise ValueError(f"labels must have shape (N,), one for each sample, got {shape}")
    if features.dim() < 2 or len(features) != shape[0]:
        raise ValueError(
            f"features must have shape (N, d) or (N, ...) with N = {shape[0]} as the labels have, "
            f"got {tuple(features.shape)}"
        )
    rows = features.detach().cpu().flatten(1)
    if not rows.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")
    if rows.is_floating_point() and rows.numel():
        low, high = (end.item() for end in rows.aminmax())
        largest, limit = max(-low, high), SCORE_LIMIT / rows.shape[1]
        if largest > limit:
            raise ValueError(
                f"features must be at most {limit:.1g} in size, so that {rows.shape[1]} of them do "
                f"not overflow in float32, got {largest:.1g}; standardise them"
            )
    return rows
