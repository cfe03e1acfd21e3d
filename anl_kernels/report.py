"""What is installed, what runs, and why not."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import torch

from anl_kernels._version import __version__
from anl_kernels.backends import gpu_choice
from anl_kernels.backends.cpu import library as cpu_library
from anl_kernels.backends.cuda import library as cuda_library
from anl_kernels.backends.selection import (
    BACKENDS,
    CUDA,
    GPU,
    TRITON,
    auto_backend,
    interpreting,
    why_not,
)


@dataclass(frozen=True)
class EnvReport:
    """Versions, devices and backends; its ``str`` is for people."""

    anl_kernels: str
    python: str
    platform: str
    torch: str
    triton: str | None
    devices: list[str]
    backends: dict[str, str] = field(default_factory=dict)
    """Of each backend "available" and with what, or the reason why not."""
    auto: dict[str, str] = field(default_factory=dict)
    """The backend that "auto" takes for each type of device, and for which rows another."""

    def __str__(self) -> str:
        """One line for each fact."""
        lines = [
            f"anl_kernels {self.anl_kernels}, Python {self.python}, {self.platform}",
            f"torch {self.torch}, triton {self.triton or 'not installed'}",
            f"devices: {', '.join(self.devices)}",
            *(f"backend {name}: {state}" for name, state in self.backends.items()),
            *(f"auto on {device}: {name}" for device, name in self.auto.items()),
        ]
        return "\n".join(lines)


def env_report() -> EnvReport:
    """What is built, what runs, and why not: also ``python -m anl_kernels``."""
    gpus = range(torch.cuda.device_count())
    states = {name: why_not(name) or "available" for name in BACKENDS}
    if interpreting() and states["triton"] == "available":
        states["triton"] = "available (interpreter: for tests, slow)"
    if states["cpu"] == "available":
        states["cpu"] = f"available ({cpu_library.facts()})"
    if states["cuda"] == "available":
        states["cuda"] = f"available ({cuda_library.facts()})"
    types = ["cpu", *([GPU] if len(gpus) else [])]
    return EnvReport(
        anl_kernels=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        torch=torch.__version__,
        triton=_version("triton"),
        devices=["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in gpus)],
        backends=states,
        auto={device: _auto_on(device) for device in types},
    )


def _auto_on(device_type: str) -> str:
    name = auto_backend(device_type)
    if device_type != GPU or name != TRITON or why_not(CUDA):
        return name
    return "; ".join([name, *(f"{CUDA} for {rule}" for rule in gpu_choice.RULES)])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
