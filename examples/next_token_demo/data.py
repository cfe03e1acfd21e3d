"""Next-token windows cut from the Python standard library, with label noise on the training part.

The corpus is on every machine that can run the demo, so nothing is downloaded.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# A regular expression instead of ``tokenize``: three times as fast, and the words of comments and
# docstrings become tokens as well, which is what fills a vocabulary of many thousand classes.
TOKEN = re.compile(r"[^\W\d]\w*|\d+|\n+ *|[^\w\s]")

# Installed packages are not the standard library, tests would be most of it, and ``encodings`` and
# ``pydoc_data`` are generated tables rather than anything written by hand.
SKIPPED_DIRECTORIES = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
HELD_OUT_SHARE = 0.2
UNKNOWN = 0


@dataclass(frozen=True)
class Corpus:
    """Training windows with noisy labels, held-out windows with clean ones."""

    train_context: Tensor  # (num_train, context) token ids
    train_clean: Tensor  # (num_train,) what the files say
    train_noisy: Tensor  # (num_train,) what training sees
    test_context: Tensor
    test_target: Tensor
    num_classes: int
    num_files: int
    num_tokens: int

    def to(self, device: torch.device) -> Corpus:
        """The same corpus with its tensors on ``device``."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Corpus(**moved)

    @property
    def replaced(self) -> Tensor:
        """Mask of the training windows whose label is wrong."""
        return self.train_noisy != self.train_clean


def source_files() -> Iterator[Path]:
    """Python files of the standard library, in a stable order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_DIRECTORIES.intersection(path.relative_to(root).parts):
            yield path


def tokenise(path: Path) -> list[str]:
    """Words, numbers, single punctuation marks, and line breaks with the indentation after them."""
    return TOKEN.findall(path.read_text(encoding="utf-8", errors="replace"))


def windows(files: list[np.ndarray], context: int) -> tuple[np.ndarray, np.ndarray]:
    """Every (context, next token) pair that lies within one file and whose target is known."""
    cut = [
        np.lib.stride_tricks.sliding_window_view(ids, context + 1)
        for ids in files
        if len(ids) > context
    ]
    pairs = np.concatenate(cut)
    pairs = pairs[pairs[:, -1] != UNKNOWN]
    return pairs[:, :-1], pairs[:, -1]


def build_corpus(
    num_classes: int, context: int, num_train: int, num_test: int, noise: float, seed: int
) -> Corpus:
    """Read, split by file, sample windows, and replace a share of the training labels.

    Files, not positions, are split, so no held-out window overlaps a training window. The
    vocabulary comes from the training files alone.
    """
    rng = np.random.default_rng(seed)
    texts = [tokenise(path) for path in source_files()]
    order = rng.permutation(len(texts))
    num_held_out = max(1, round(HELD_OUT_SHARE * len(texts)))
    test_texts = [texts[i] for i in order[:num_held_out]]
    train_texts = [texts[i] for i in order[num_held_out:]]

    counts = Counter(token for text in train_texts for token in text)
    if len(counts) < num_classes - 1:
        raise SystemExit(f"only {len(counts)} distinct tokens; choose a smaller --num-classes")
    frequent = counts.most_common(num_classes - 1)
    vocabulary = {token: i for i, (token, _) in enumerate(frequent, start=UNKNOWN + 1)}

    def encode(texts: list[list[str]]) -> list[np.ndarray]:
        return [np.array([vocabulary.get(t, UNKNOWN) for t in text], np.int64) for text in texts]

    def sample(texts: list[list[str]], wanted: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, target = windows(encode(texts), context)
        chosen = rng.choice(len(target), min(wanted, len(target)), replace=False)
        return inputs[chosen], target[chosen]

    train_context, train_clean = sample(train_texts, num_train)
    test_context, test_target = sample(test_texts, num_test)
    replace = rng.random(len(train_clean)) < noise
    noisy = np.where(replace, rng.integers(num_classes, size=len(replace)), train_clean)
    return Corpus(
        *map(torch.from_numpy, (train_context, train_clean, noisy, test_context, test_target)),
        num_classes=num_classes,
        num_files=len(texts),
        num_tokens=sum(map(len, texts)),
    )
