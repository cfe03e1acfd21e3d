"""What examples share: checks of the command line; versions, machine and commit of a run."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import anl_kernels as ak

ROOT = Path(__file__).resolve().parents[1]


def share(text: str) -> float:
    """A share between 0 and 1, as the type of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share between 0 and 1, got {text}")
    return value


def at_least(smallest: int, multiple_of: int = 1) -> Callable[[str], int]:
    """Whole numbers from ``smallest`` on that a number divides, as the type of an argument."""
    rest = f" and a multiple of {multiple_of}" if multiple_of > 1 else ""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest or value % multiple_of:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {smallest}{rest}, got {text}"
            )
        return value

    return read


positive = at_least(1)


class Distinct(argparse.Action):
    """Values of an argument without those that are there already."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


def check_device(parser: argparse.ArgumentParser, name: str) -> None:
    """End the program if there is no such device."""
    try:
        device = torch.device(name)
    except RuntimeError:
        parser.error(f"argument --device: {name} is the name of no device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(f"argument --device: there are {torch.cuda.device_count()} GPUs, got {name}")


def check_record(parser: argparse.ArgumentParser, path: Path) -> None:
    """End the program if there is nothing to render."""
    if not path.is_file():
        parser.error(f"--render makes pages of records, and {path} does not exist; see --out")


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of this library, of torch, and of the packages named."""
    found = {"python": platform.python_version(), "anl_kernels": ak.__version__}
    for name in ("torch", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine(device: str | torch.device = "cpu") -> dict[str, str | int]:
    """What a run was measured on."""
    device = torch.device(device)
    described: dict[str, str | int] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "device": str(device),
        "library_backend": ak.env_report().auto[device.type],
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def commit() -> str:
    """The commit of the tree, "+changes" if files differ from it, or "unknown"."""
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--dirty=+changes"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return shown.stdout.strip()


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record, with its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
