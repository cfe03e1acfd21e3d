"""Sequences of tokens of the Python standard library, with wrong labels in the training part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from next_token_demo.data import UNKNOWN, source_files, tokenise
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Sequences:
    """Inputs are clean everywhere; a share of the labels that training sees is not."""

    train_ids: Tensor  # (num_train, length)
    train_labels: Tensor  # as the ids, some replaced; IGNORED where the token is unknown
    test_ids: Tensor  # of other files
    test_labels: Tensor  # clean
    vocabulary: int
    wrong: float  # of the training labels, the share that is not what the files say

    def examples(self) -> list[dict[str, Tensor]]:
        """The training part as ``Trainer`` takes it."""
        pairs = zip(self.train_ids, self.train_labels, strict=True)
        return [{"input_ids": ids, "labels": labels} for ids, labels in pairs]


def build(
    vocabulary: int, length: int, num_train: int, num_test: int, noise: float, seed: int
) -> Sequences:
    """Read files in a random order until there are sequences enough, first those to hold out."""
    rng = np.random.default_rng(seed)
    files = list(source_files())
    order = iter(rng.permutation(len(files)))

    def read(num_sequences: int) -> list[list[str]]:
        texts, found = [], 0
        while found < num_sequences:
            position = next(order, None)
            if position is None:
                raise SystemExit("too few files for so many sequences: ask for less")
            texts.append(tokenise(files[position]))
            found += len(texts[-1]) // length
        return texts

    test_texts, train_texts = read(num_test), read(num_train)
    counts = Counter(token for text in train_texts for token in text)
    frequent = counts.most_common(vocabulary - 1)
    places = {token: i for i, (token, _) in enumerate(frequent, start=UNKNOWN + 1)}

    def cut(texts: list[list[str]], wanted: int) -> np.ndarray:
        rows = []
        for text in texts:
            ids = np.array([places.get(token, UNKNOWN) for token in text], np.int64)
            rows.append(ids[: len(ids) // length * length].reshape(-1, length))
        return rng.permutation(np.concatenate(rows))[:wanted]

    train, test = cut(train_texts, num_train), cut(test_texts, num_test)
    replaced = rng.random(train.shape) < noise
    noisy = np.where(replaced, rng.integers(vocabulary, size=train.shape), train)
    counted = train != UNKNOWN
    return Sequences(
        train_ids=torch.from_numpy(train),
        train_labels=torch.from_numpy(np.where(counted, noisy, IGNORED)),
        test_ids=torch.from_numpy(test),
        test_labels=torch.from_numpy(np.where(test != UNKNOWN, test, IGNORED)),
        vocabulary=vocabulary,
        wrong=float((noisy != train)[counted].mean()),
    )
