"""What a noise model gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anl_kernels.noise.labels import Labels

DENSE_CLASSES = 10_000
"""The most classes for a dense transition matrix: 800 MB in float64."""


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Labels after noise, and what it did.

    Where the labels came as a tensor, all three are tensors on its device; else NumPy arrays.
    """

    labels: Any
    """With noise; shape and dtype of the labels given (int64 for a list)."""
    clean: Any
    """The labels given."""
    changed: Any
    """bool, in the shape of the labels: those that differ."""
    num_classes: int
    rate: float
    """The share of labels that changed, of those that are not ``ignore_index``; 0 of none."""
    _pairs: Tensor
    """(3, P) int64: clean class, noisy class and how often, for pairs that occur."""

    def transition_matrix(self, *, sparse: bool = False) -> Tensor:
        """How often a label of class i became class j, as a share of class i.

        Args:
            sparse: a sparse COO tensor, of at most as many entries as there are labels.

        Returns:
            (K, K) float64 on the CPU. A row sums to 1, or to 0 where the class has no label.

        Raises:
            ValueError: a dense matrix of more than 10,000 classes was asked for.
        """
        if not sparse and self.num_classes > DENSE_CLASSES:
            gigabytes = 8e-9 * self.num_classes**2
            raise ValueError(
                f"a dense matrix of {self.num_classes} classes has {gigabytes:.1f} GB: "
                f"pass sparse=True"
            )
        pairs, count = self._pairs[:2], self._pairs[2].double()
        size = count.new_zeros(self.num_classes).index_add_(0, pairs[0], count)
        matrix = torch.sparse_coo_tensor(
            pairs,
            count / size[pairs[0]],
            (self.num_classes, self.num_classes),
            device=pairs.device,
            is_coalesced=True,  # torch.unique has sorted them
            check_invariants=True,
        )
        return matrix if sparse else matrix.to_dense()


def report(labels: Labels, noisy: Tensor) -> NoisyLabels:
    """Noisy labels (M,) in the kind of those given, with what has become of each class."""
    changed_labels, changed = labels.changed_to(noisy)
    clean, noisy = labels.flat[labels.counted], noisy[labels.counted]
    pairs, count = torch.unique(torch.stack((clean, noisy)), dim=1, return_counts=True)
    rate = (clean != noisy).double().mean().item() if len(clean) else 0.0
    return NoisyLabels(
        labels=changed_labels,
        clean=labels.given,
        changed=changed,
        num_classes=labels.num_classes,
        rate=rate,
        _pairs=torch.cat((pairs, count[None])),
    )
