"""What every example says of its run: versions, machine, commit."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import anl_kernels as ak

ROOT = Path(__file__).resolve().parents[1]


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
