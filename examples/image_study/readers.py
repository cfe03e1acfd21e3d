"""MNIST and CIFAR from a local folder, in the layout that torchvision leaves behind."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np

Split = tuple[np.ndarray, np.ndarray]  # images (N, C, H, W) uint8, labels (N,) int64

CIFAR10_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
IDX_BYTES = 0x08  # the type of an idx file's entries: unsigned bytes


def read_mnist(root: Path) -> tuple[Split, Split]:
    """Training and test part of ``root/MNIST/raw/*-ubyte``, compressed or not."""
    folder = root / "MNIST" / "raw"

    def split(name: str) -> Split:
        images = read_idx(folder / f"{name}-images-idx3-ubyte")
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte")
        return images[:, None], labels.astype(np.int64)

    return split("train"), split("t10k")


def read_cifar10(root: Path) -> tuple[Split, Split]:
    """Training and test part of ``root/cifar-10-batches-py``."""
    folder = root / "cifar-10-batches-py"
    parts = [read_cifar(folder / name, "labels") for name in CIFAR10_BATCHES]
    images, labels = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    return (images, labels), read_cifar(folder / "test_batch", "labels")


def read_cifar100(root: Path) -> tuple[Split, Split]:
    """Training and test part of ``root/cifar-100-python``, with the 100 fine labels."""
    folder = root / "cifar-100-python"
    return read_cifar(folder / "train", "fine_labels"), read_cifar(folder / "test", "fine_labels")


def read_idx(path: Path) -> np.ndarray:
    """An idx file of bytes, or the ``.gz`` beside it: big-endian sizes, then the entries."""
    compressed = path.with_name(f"{path.name}.gz")
    if path.exists():
        content = path.read_bytes()
    else:
        content = gzip.decompress(existing(compressed).read_bytes())
    if content[:3] != bytes((0, 0, IDX_BYTES)):
        raise SystemExit(f"{path} is not an idx file of unsigned bytes")
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    entries = np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes))
    return entries.reshape(sizes.astype(int)).copy()  # PyTorch takes no read-only memory


def read_cifar(path: Path, labels: str) -> Split:
    """One file of CIFAR: rows of 3072 bytes, red, green and blue, and a list of labels."""
    with existing(path).open("rb") as file:
        record = ArraysOnly(file, encoding="latin1").load()  # it was written by Python 2
    return record["data"].reshape(-1, 3, 32, 32), np.array(record[labels], np.int64)


class ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and plain values; a pickle from elsewhere can name nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # Files name numpy.core.multiarray, which NumPy 2 has moved.
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {"_reconstruct": reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] != "numpy" or name not in allowed:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, not only for arrays")
        return allowed[name]


def existing(path: Path) -> Path:
    """The path; SystemExit where there is nothing."""
    if not path.exists():
        raise SystemExit(f"{path} does not exist: --root names the folder that torchvision filled")
    return path
