"""Where a run took place: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import anl_kernels as ak
from benchmarks.devices import last_level_cache

ROOT = Path(__file__).parents[1]
COMMIT_VARIABLE = "ANL_KERNELS_COMMIT"
PEERS = ("liger_kernel", "cut-cross-entropy", "quack-kernels", "flash-attn")
"""Packages that a run compares with, where they are installed."""


def describe(threads: int | None, device: str = "cpu") -> dict[str, Any]:
    """Everything about the environment that figures depend on."""
    found = _describe_host(threads)
    if device == "cuda":
        found["machine"]["gpu"] = describe_gpu()
        found["versions"] |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
    return found


def describe_gpu() -> dict[str, Any]:
    """The GPU that tensors on "cuda" are on."""
    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "driver": _nvidia_smi("driver_version"),
        "clocks": _nvidia_smi("clocks.max.sm", "clocks.max.mem", "power.limit"),
        "visible": torch.cuda.device_count(),
    }


def device_name(environment: dict[str, Any]) -> str:
    """What was measured, fit for the name of a file: "nvidia-h200", "amd-epyc-avx512"."""
    machine = environment["machine"]
    name = machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']} {machine['isa']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _describe_host(threads: int | None) -> dict[str, Any]:
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": threads or torch.get_num_threads(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "last_level_cache_bytes": last_level_cache(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": f"{platform.system()} {platform.release()}",
            "load_average_before": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "anl_kernels": ak.__version__,
            **{package: _version(package) for package in PEERS},
        },
        "git": _describe_checkout(),
    }


def _describe_checkout() -> dict[str, Any]:
    """The commit; on a machine with the files alone, the one that ``COMMIT_VARIABLE`` names."""
    commit = _run("git", "rev-parse", "HEAD")
    # A run leaves results, and documents made of them; neither changes what the next one measures.
    changes = _run("git", "status", "--porcelain", "--", ".", ":!benchmarks/results", ":!README.md")
    return {
        "commit": commit or os.environ.get(COMMIT_VARIABLE),
        "dirty": None if changes is None else bool(changes),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_smi(*facts: str) -> str | None:
    answer = _run("nvidia-smi", f"--query-gpu={','.join(facts)}", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
