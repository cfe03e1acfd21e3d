"""Noise that depends on the class alone, with an exact number of changed labels in each class.

How many labels of a class change: of n_c labels ``floor(rate n_c)``, and one more in the classes
with the largest remainders (equal ones in random order), so that ``round(rate n)`` labels change
among the n of all classes that flip. Which labels of a class change is drawn without replacement.
On CIFAR, whose classes are of one size, the official code has the same counts for symmetric noise
and for CIFAR-10's flips. On MNIST it changes the same count of each class, ``rate n / K``, whatever
its size; asymmetric labels of MNIST and CIFAR-100 it draws one by one, with probability ``rate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from anl_kernels.noise.labels import CPU, as_int, check_num_classes, check_rate, generator, read
from anl_kernels.noise.result import NoisyLabels, report

_BLOCK = 5

FLIPS: Mapping[str, Mapping[int, int]] = MappingProxyType(
    {
        "mnist": MappingProxyType({7: 1, 2: 7, 5: 6, 6: 5, 3: 8}),
        # truck to automobile, bird to aeroplane, cat and dog, deer to horse
        "cifar10": MappingProxyType({9: 1, 2: 0, 3: 5, 5: 3, 4: 7}),
        "cifar100": MappingProxyType(
            {i: i - i % _BLOCK + (i + 1) % _BLOCK for i in range(100)}  # _BLOCK divides 100
        ),
    }
)
"""What :func:`asymmetric` flips, by data set: clean class to noisy class."""

_NUM_CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100}


def symmetric(
    labels: Any, rate: float, num_classes: int, *, seed: int = 0, ignore_index: int = -100
) -> NoisyLabels:
    """Change a share of each class's labels to one of the other K - 1 classes, uniformly.

    The true class is never drawn: ``rate`` is the share of wrong labels. The number of labels that
    change is exact in each class; :mod:`anl_kernels.noise.class_dependent` has the rounding.

    Args:
        labels: integers of any shape: a tensor on any device, a NumPy array, a list, or whatever
            NumPy makes an array of. Not changed.
        rate: the share of labels that change, in [0, 1].
        num_classes: K, at least 2.
        seed: the same arguments and seed give the same labels, whatever the device.
        ignore_index: labels with this value stay, and count nowhere. It may be one of the classes,
            as where 0 is void: then no label becomes it, and there are K - 2 others.

    Raises:
        TypeError: labels are not integers, rate is no number, or seed, num_classes or ignore_index
            is not an int.
        ValueError: rate is outside [0, 1], seed has more than 64 bits, or num_classes is below 2 (3
            with ignore_index among the classes) or more than the labels' dtype holds.
        IndexError: a label is outside [0, K) and not ignore_index.

    Source: Ma et al., ICML 2020, and its official code.
    """
    checked = read(labels, num_classes, ignore_index)
    rng = generator(seed)
    flipped = _exact_share(
        checked.flat, checked.counted, check_rate(rate), checked.num_classes, rng
    )
    other = _any_other(checked.flat, checked.num_classes, checked.void, rng)
    return report(checked, torch.where(flipped, other, checked.flat))


def asymmetric(
    labels: Any,
    rate: float,
    dataset: str | None = None,
    *,
    mapping: Mapping[int, int] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    ignore_index: int = -100,
) -> NoisyLabels:
    """Change a share of some classes' labels, each class to one that resembles it.

    ``rate`` is the share of each class that flips, not of all labels: on CIFAR-10 half of the
    classes flip, so that ``rate / 2`` of all labels are wrong.

    Args:
        labels: as for :func:`symmetric`.
        rate: the share of labels that change in each class that flips, in [0, 1]; exact, as for
            :func:`symmetric`.
        dataset: "mnist" (7 to 1, 2 to 7, 5 and 6, 3 to 8), "cifar10" (truck to automobile, bird to
            aeroplane, cat and dog, deer to horse) or "cifar100": blocks of 5 consecutive class ids,
            in each of which i flips to i + 1 and the last to the first. Ids are alphabetical, so
            these are **not** the 20 superclasses; the official code does the same.
            :data:`FLIPS` has all three.
        mapping: instead of a data set, noisy class by clean class; the classes it leaves out do
            not flip.
        num_classes: K; needed with a mapping, and known for a data set.
        seed: as for :func:`symmetric`.
        ignore_index: labels with this value stay, and count nowhere.

    Raises:
        TypeError: as for :func:`symmetric`; mapping is not a mapping, or not of ints.
        IndexError: as for :func:`symmetric`.
        ValueError: as for :func:`symmetric`; not exactly one of dataset and mapping; the data set
            is unknown; the mapping leaves [0, K) or maps a class to itself; a class flips to
            ignore_index.

    Source: Patrini et al., CVPR 2017, as in the official code of Ma et al., ICML 2020.
    """
    flips, classes = _flips(dataset, mapping, num_classes)
    target = torch.arange(classes, device=CPU)
    for source, destination in flips.items():
        target[source] = destination
    return _flip_to(labels, rate, target, seed, ignore_index)


def pair(
    labels: Any, rate: float, num_classes: int, *, seed: int = 0, ignore_index: int = -100
) -> NoisyLabels:
    """Change a share of each class's labels to the next class, the last one's to the first.

    Args:
        labels: as for :func:`symmetric`.
        rate: the share of labels that change in each class, in [0, 1]; exact, as for
            :func:`symmetric`.
        num_classes: K, at least 2.
        seed: as for :func:`symmetric`.
        ignore_index: labels with this value stay, and count nowhere; outside [0, K).

    Raises:
        TypeError, IndexError: as for :func:`symmetric`.
        ValueError: as for :func:`symmetric`; ignore_index is in [0, K), so that the class before
            would flip to it.

    Source: Han et al., NeurIPS 2018.
    """
    target = torch.arange(check_num_classes(num_classes), device=CPU).roll(-1)
    return _flip_to(labels, rate, target, seed, ignore_index)


def _flip_to(labels: Any, rate: float, target: Tensor, seed: int, ignore_index: int) -> NoisyLabels:
    """Change labels of each class c to target[c], (K,); classes that are their own target stay."""
    checked = read(labels, len(target), ignore_index)
    flips = target != torch.arange(len(target), device=CPU)
    to_void = flips & (target == ignore_index)
    if to_void.any():
        raise ValueError(
            f"ignore_index must not be a class that labels flip to, got {ignore_index}, to which "
            f"{to_void.nonzero()[:, 0].tolist()} of [0, {len(target)}) flip: a changed label would "
            f"be ignored; number the classes without it"
        )
    labels_that_flip = checked.counted.clone()
    labels_that_flip[checked.counted] = flips[checked.flat[checked.counted]]
    rng = generator(seed)
    flipped = _exact_share(checked.flat, labels_that_flip, check_rate(rate), len(target), rng)
    noisy = checked.flat.clone()
    noisy[flipped] = target[noisy[flipped]]
    return report(checked, noisy)


def _any_other(flat: Tensor, k: int, void: int | None, rng: torch.Generator) -> Tensor:
    """(M,) for each label another class than its own and than ``void``, uniformly."""
    if void is None:
        return (flat + torch.randint(1, k, flat.shape, generator=rng, device=CPU)) % k
    place = flat - (flat > void).long()  # among the classes without void
    place = (place + torch.randint(1, k - 1, flat.shape, generator=rng, device=CPU)) % (k - 1)
    return place + (place >= void).long()


def _exact_share(
    flat: Tensor, eligible: Tensor, rate: float, num_classes: int, rng: torch.Generator
) -> Tensor:
    """(M,) bool: the share ``rate`` of the eligible labels of each class, drawn at random."""
    rows = eligible.nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=rng, device=CPU)]
    rows = rows[flat[rows].argsort(stable=True)]  # by class, in random order within each
    size = torch.bincount(flat[rows], minlength=num_classes)
    first = size.cumsum(0) - size
    place = torch.arange(len(rows), device=CPU) - first[flat[rows]]
    chosen = torch.zeros_like(eligible)
    chosen[rows] = place < _counts(size, rate, rng)[flat[rows]]
    return chosen


def _counts(size: Tensor, rate: float, rng: torch.Generator) -> Tensor:
    """(K,) whole numbers near ``rate * size`` whose sum is ``round(rate * sum)``."""
    wanted = rate * size.double()
    counts = wanted.floor().long()
    missing = round(rate * int(size.sum())) - int(counts.sum())
    order = torch.randperm(len(size), generator=rng, device=CPU)
    # Rounded, so that 0.1 of 10 and of 30 leave remainders that are equal.
    remainder = (wanted - counts)[order].mul(1e6).round()
    counts[order[remainder.argsort(descending=True, stable=True)[:missing]]] += 1
    return counts


def _flips(
    dataset: str | None, mapping: Mapping[int, int] | None, num_classes: int | None
) -> tuple[Mapping[int, int], int]:
    """The flips and K of a data set or of a mapping."""
    if (dataset is None) == (mapping is None):
        raise ValueError(
            f"pass either dataset ({', '.join(FLIPS)}) or mapping, got dataset={dataset!r} and "
            f"mapping={mapping!r}"
        )
    if mapping is None:
        assert dataset is not None
        if dataset not in FLIPS:
            raise ValueError(f"dataset must be one of {', '.join(FLIPS)}, got {dataset!r}")
        if num_classes not in (None, _NUM_CLASSES[dataset]):
            raise ValueError(
                f"num_classes of {dataset} is {_NUM_CLASSES[dataset]}, got {num_classes!r}: "
                f"leave it out"
            )
        return FLIPS[dataset], _NUM_CLASSES[dataset]
    if num_classes is None:
        raise ValueError("num_classes must be given with a mapping")
    num_classes = check_num_classes(num_classes)
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"mapping must give a noisy class by clean class, as {{0: 3}} does, got {mapping!r}"
        )
    flips = {
        as_int("a class of mapping", source): as_int("a class of mapping", destination)
        for source, destination in mapping.items()
    }
    for source, destination in flips.items():
        inside = 0 <= source < num_classes and 0 <= destination < num_classes
        if not inside or source == destination:
            raise ValueError(
                f"mapping must lead from classes in [0, {num_classes}) to others of them, "
                f"got {source} to {destination}"
            )
    return flips, num_classes
