"""Next-token windows from Python files, for any number of classes up to their distinct tokens.

The demonstration's tokens and windows (``next_token_demo.data``), with files of installed packages
besides: the standard library alone has fewer than 50,000 distinct tokens.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from next_token_demo.data import SKIPPED_DIRECTORIES, UNKNOWN, source_files, tokenise
from torch import Tensor

import anl_kernels as ak

SOURCES = {"stdlib": (), "wide": ("torch", "numpy", "matplotlib")}
"""Packages whose files are read beside the standard library: those that every example needs."""
HELD_OUT = 0.1
"""Share of the files that choices are made on, and of those that results are measured on."""


@dataclass(frozen=True, eq=False)  # so that split can be cached by it
class Tokens:
    """All tokens of a source, as numbers."""

    ids: np.ndarray  # (tokens,) int32, file after file
    file: np.ndarray  # (tokens,) int32, the file of each
    num_files: int
    num_distinct: int


@dataclass(frozen=True)
class Windows:
    """Contexts, (N, context), and their next tokens, (N,); ``given`` is what training sees."""

    context: Tensor
    clean: Tensor
    given: Tensor

    def __len__(self) -> int:
        return len(self.clean)


@dataclass(frozen=True)
class Split:
    """Windows of three sets of files."""

    train: Windows
    choice: Windows
    test: Windows


def package_files(package: str) -> Iterator[Path]:
    """Python files of an installed package, tests left out, in a stable order."""
    root = Path(sysconfig.get_paths()["purelib"]) / package
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_DIRECTORIES.intersection(path.relative_to(root).parts):
            yield path


def files_of(source: str) -> Iterator[Path]:
    """The files of a source."""
    yield from source_files()
    for package in SOURCES[source]:
        yield from package_files(package)


@cache
def read(source: str, max_files: int | None = None) -> Tokens:
    """Tokenise a source; about eight seconds for "wide"."""
    numbers: dict[str, int] = {}
    texts = [
        np.array([numbers.setdefault(t, len(numbers)) for t in tokenise(path)], np.int32)
        for path in islice(files_of(source), max_files)
    ]
    file = np.repeat(np.arange(len(texts), dtype=np.int32), [len(text) for text in texts])
    return Tokens(np.concatenate(texts), file, len(texts), len(numbers))


@lru_cache(maxsize=4)
def split(
    tokens: Tokens,
    num_classes: int,
    noise: float,
    seed: int,
    num_train: int,
    num_held_out: int,
    context: int = 4,
    noise_kind: str = "symmetric",
) -> Split:
    """Split by file, number the training files' tokens by frequency, draw windows, add noise.

    Class 0 is every token that is not among the ``num_classes - 1`` most frequent; no window has
    it as its label. Noise is in training alone. Symmetric: exactly a share ``noise`` of the labels
    becomes another class, any of the others alike. "pair": that share of each class becomes the
    class after it, which is the next token in the order of frequency.

    Raises:
        SystemExit: the training files have fewer distinct tokens than classes.
    """
    rng = np.random.default_rng(seed)
    held_out = max(1, round(HELD_OUT * tokens.num_files))
    part = np.full(tokens.num_files, 2)
    order = rng.permutation(tokens.num_files)
    part[order[:held_out]], part[order[held_out : 2 * held_out]] = 0, 1
    part_of_token = part[tokens.file]

    counts = np.bincount(tokens.ids[part_of_token == 2], minlength=tokens.num_distinct)
    if np.count_nonzero(counts) < num_classes - 1:
        raise SystemExit(
            f"{np.count_nonzero(counts)} distinct tokens in the training files, fewer than "
            f"{num_classes} classes; choose a wider source"
        )
    frequent = np.argsort(-counts, kind="stable")[: num_classes - 1]
    classes = np.full(tokens.num_distinct, UNKNOWN, np.int64)
    classes[frequent] = np.arange(1, num_classes)
    labels = classes[tokens.ids]

    whole = tokens.file[context:] == tokens.file[:-context]  # the window lies within one file
    ends = context + np.flatnonzero(whole & (labels[context:] != UNKNOWN))

    def windows(which: int, wanted: int, share: float = 0.0) -> Windows:
        mine = ends[part_of_token[ends] == which]
        chosen = rng.choice(mine, min(wanted, len(mine)), replace=False)
        clean = labels[chosen]
        context_ids = labels[chosen[:, None] + np.arange(-context, 0)]
        if noise_kind == "pair":
            given = np.asarray(ak.noise.pair(clean, share, num_classes, seed=seed).labels)
        else:
            given = flip(clean, num_classes, share, rng)
        return Windows(*map(torch.from_numpy, (context_ids, clean, given)))

    choice, test = windows(0, num_held_out), windows(1, num_held_out)
    return Split(windows(2, num_train, noise), choice, test)


def flip(clean: np.ndarray, num_classes: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """A copy in which a share of the labels is another class."""
    given = clean.copy()
    wrong = rng.permutation(len(clean))[: round(share * len(clean))]
    given[wrong] = (clean[wrong] + rng.integers(1, num_classes, len(wrong))) % num_classes
    return given
