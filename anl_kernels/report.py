"""What is installed, what runs, and why not."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import torch

from anl_kernels._version import __version__
from anl_kernels.backends.choice import (
    BACKENDS,
    CPU,
    CUDA,
    GPU,
    RULES,
    TRITON,
    Rule,
    best,
    extension,
    instruction_set,
    why_not,
)
from anl_kernels.settings import interpreting


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
    return EnvReport(
        anl_kernels=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        torch=torch.__version__,
        triton=_version("triton"),
        devices=[CPU, *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in gpus)],
        backends={name: why_not(name) or _available(name) for name in BACKENDS},
        auto={device: _auto_on(device) for device in [CPU, *[GPU] * bool(gpus)]},
    )


def _available(name: str) -> str:
    facts = ""
    if name == TRITON and interpreting():
        facts = "interpreter: for tests, slow"
    elif name == CPU:
        module = extension(CPU)
        facts = f"{instruction_set()} kernels, {module.compiler()}, OpenMP {module.openmp}"
    elif name == CUDA:
        module = extension(CUDA)
        facts = (
            f"CUDA {module.cuda_version()} for {module.architectures()}, {module.compiler()}"
            if module.device_type == GPU
            else f"emulated on a CPU: for tests, slow; {module.compiler()}"
        )
    return f"available ({facts})" if facts else "available"


def _auto_on(device_type: str) -> str:
    name = best(device_type)
    if device_type != GPU or name != TRITON or why_not(CUDA):
        return name
    return "; ".join([name, *(f"{CUDA} for {_rows_of(rule)}" for rule in RULES)])


def _rows_of(rule: Rule) -> str:
    since, before = ("{}.{}".format(*capability) for capability in (rule.since, rule.before))
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in rule.dtypes)
    return (
        f"rows of more than {rule.above_classes} classes and up to {rule.most_bytes >> 10} KiB "
        f"({names}; compute capability {since} to below {before})"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
