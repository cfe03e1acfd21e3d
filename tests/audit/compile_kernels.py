"""Compile the kernels that real launches choose, for a GPU that need not be there.

``python -m tests.audit.compile_kernels TARGET`` prints JSON: for each launch of each case below the
registers, spills, shared memory and widest load and store of what Triton made of it, and of
NVIDIA's long rows what an element costs in each sweep. Launches are recorded from the package's own
launcher on tensors without data, so the audit sees the blocks, warps and specialisations that a
user's call would have.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import anl_kernels as ak
from anl_kernels.backends.triton import launch
from anl_kernels.interface import AUX, RowRequest, accumulator_dtype
from anl_kernels.terms import as_terms
from tests.audit.sass import sweeps

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_103": GPUTarget("cuda", 103, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
    "gfx1201": GPUTarget("hip", "gfx1201", 32),
}
BUDGETED = ("sm_80", "sm_90", "sm_100", "gfx942")  # which test_audit.py compiles for
ANL = 5.0 * ak.NCE() + 5.0 * ak.NNCE()
ANL_FL = 5.0 * ak.NFL() + 5.0 * ak.NNFL()
EVERYTHING = sum(
    [ak.CE(0.1), ak.NCE(), ak.NNCE(1e-9), ak.NFL(), ak.NNFL(min_prob=1e-9, detach_weight=False),
     ak.GCE(), ak.AGCE(1, 2), ak.AUL(2, 1), ak.NGCE(), ak.AMSE(3), ak.ZLoss()]
)  # fmt: skip
ONE_PASS = ("row_losses", "grad")
SAVED = ("row_losses", "saved")
EVERY_OUTPUT = (*ONE_PASS, "probs", *AUX)
bf16, f16, f32, f64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

# name: (shape, dtype, terms, outputs); the gradient of a case with "saved" is audited with it.
CASES: dict[str, tuple[tuple[int, ...], torch.dtype, Any, tuple[str, ...]]] = {
    "rows10_f32_anl": ((65536, 10), f32, ANL, ONE_PASS),
    "rows1000_f32_anl": ((4096, 1000), f32, ANL, ONE_PASS),
    "rows1000_bf16_anlfl": ((4096, 1000), bf16, ANL_FL, ONE_PASS),
    "tile8192_f32_anl": ((4096, 8192), f32, ANL, ONE_PASS),
    "tile8192_bf16_anl": ((4096, 8192), bf16, ANL, ONE_PASS),
    "tile8192_f32_all": ((4096, 8192), f32, EVERYTHING, EVERY_OUTPUT),
    "tile2048_f64_anl": ((4096, 2048), f64, ANL, ONE_PASS),
    "sweep32000_f32_anl": ((1024, 32000), f32, ANL, ONE_PASS),
    "rows1000_bf16_ce": ((4096, 1000), bf16, ak.CE(), ONE_PASS),
    "sweep32768_bf16_ce": ((8192, 32768), bf16, ak.CE(), ONE_PASS),
    "sweep32768_bf16_anl": ((8192, 32768), bf16, ANL, ONE_PASS),
    "sweep128256_bf16_anl": ((8192, 128256), bf16, ANL, ONE_PASS),
    "sweep131072_bf16_ce": ((8192, 131072), bf16, ak.CE(), ONE_PASS),
    "sweep131072_bf16_anl": ((8192, 131072), bf16, ANL, ONE_PASS),
    "sweep131072_f32_ce": ((8192, 131072), f32, ak.CE(), ONE_PASS),
    "sweep131072_f32_anl": ((8192, 131072), f32, ANL, ONE_PASS),
    "sweep131072_bf16_anlfl": ((8192, 131072), bf16, ANL_FL, ONE_PASS),
    "sweep131072_f32_all": ((8192, 131072), f32, EVERYTHING, EVERY_OUTPUT),
    "sweep131072_f16_anl": ((8192, 131072), f16, ANL, SAVED),
    "sweep50257_bf16_anl": ((8192, 50257), bf16, ANL, ONE_PASS),
    "sweep32000_f64_anl": ((1024, 32000), f64, ANL, ONE_PASS),
    "split1m_f32_anl": ((8, 1_000_000), f32, ANL, SAVED),
    "split1m_bf16_all": ((8, 1_000_000), bf16, EVERYTHING, (*SAVED, *AUX)),
    "positions21_f32_anl": ((8, 21, 512, 512), f32, ANL, ONE_PASS),
    "positions21_bf16_anl": ((8, 21, 512, 512), bf16, ANL, ONE_PASS),
    "positions150_bf16_anl": ((8, 150, 512, 512), bf16, ANL, ONE_PASS),
    "positions150_f32_all": ((8, 150, 512, 512), f32, EVERYTHING, SAVED),
}
# Whose sweeps are counted: (itemsize of the logits, what each sweep is for, in order).
CE_SWEEPS = ("statistics", "gradient")
ANL_SWEEPS = ("statistics", "missing classes", "sums", "gradient")
SWEPT = {
    "sweep32768_bf16_ce": (2, CE_SWEEPS),
    "sweep131072_bf16_ce": (2, CE_SWEEPS),
    "sweep131072_f32_ce": (4, CE_SWEEPS),
    "sweep32768_bf16_anl": (2, ANL_SWEEPS),
    "sweep131072_bf16_anl": (2, ANL_SWEEPS),
    "sweep131072_f32_anl": (4, ANL_SWEEPS),
}
SHARD_CASES: dict[str, tuple[tuple[int, ...], torch.dtype, Any, tuple[str, ...]]] = {
    "shard10_f32_anl": ((65536, 10), f32, ANL, SAVED),
    "shard4096_bf16_anl": ((8192, 4096), bf16, ANL, SAVED),
    "shard8192_f32_all": ((4096, 8192), f32, EVERYTHING, (*SAVED, *AUX)),
    "shard16032_bf16_anl": ((8192, 16032), bf16, ANL, SAVED),
    "shard32768_bf16_anlfl": ((8192, 32768), bf16, ANL_FL, SAVED),
    "shard32768_f16_anl": ((8192, 32768), f16, ANL, SAVED),
    "shard32768_f32_all": ((8192, 32768), f32, EVERYTHING, (*SAVED, *AUX)),
    "shard16032_f64_anl": ((1024, 16032), f64, ANL, SAVED),
    "shard1m_bf16_all": ((8, 1_000_000), bf16, EVERYTHING, (*SAVED, *AUX)),
    "shard19_positions_bf16_anl": ((8, 19, 512, 512), bf16, ANL, SAVED),
    "shard150_positions_bf16_anl": ((8, 150, 512, 512), bf16, ANL, SAVED),
    "shard150_positions_f32_all": ((8, 150, 512, 512), f32, EVERYTHING, SAVED),
}
SOFTMAX_CASES = {
    "softmax1000_f32": ((4096, 1000), f32),
    "softmax8192_bf16": ((4096, 8192), bf16),
    "softmax131072_bf16": ((8192, 131072), bf16),
    "softmax150_positions_bf16": ((8, 150, 512 * 512), bf16),
}
COLUMN_CASES = {
    "columns10_f32": ((65536, 10), f32),
    "columns1000_f32": ((4096, 1000), f32),
    "columns8192_bf16": ((4096, 8192), bf16),
    "columns2048_f64": ((4096, 2048), f64),
    "columns32000_f32": ((1024, 32000), f32),
    "columns131072_bf16": ((8192, 131072), bf16),
    "columns32000_f64": ((1024, 32000), f64),
    "columns21_positions_f32": ((8, 21, 512 * 512), f32),
    "columns150_positions_bf16": ((8, 150, 512 * 512), bf16),
}


def main(target_name: str) -> None:
    """Print the report of one target."""
    launches: list[tuple[JITFunction, dict[str, Any]]] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((kernel, kwargs))

    JITFunction.run = record  # type: ignore[method-assign]
    report = {}
    calls = {**_row_calls(), **_shard_calls(), **_softmax_calls(), **_column_calls()}
    for case, call in calls.items():
        launches.clear()
        call()
        for kernel, kwargs in launches:
            compiled = compile_launch(kernel, kwargs, TARGETS[target_name])
            used: dict[str, Any] = resources(compiled.asm)
            if case in SWEPT and kernel.__name__ == "row_sweep_kernel" and "cubin" in compiled.asm:
                itemsize, purposes = SWEPT[case]
                costs = sweeps(_tool("nvdisasm", compiled.asm["cubin"], "-c"), itemsize)
                used["sweeps"] = {
                    purpose: cost._asdict() for purpose, cost in zip(purposes, costs, strict=True)
                }
            report[f"{case}/{kernel.__name__}"] = used
    print(json.dumps(report, indent=1))


def _row_calls() -> dict[str, Any]:
    def call(shape: Any, dtype: torch.dtype, terms: Any, asked: tuple[str, ...]) -> None:
        logits = torch.empty(shape, dtype=dtype, device="meta")
        target = torch.empty(shape[:1] + shape[2:], dtype=torch.int64, device="meta")
        scale = torch.empty((), dtype=accumulator_dtype(dtype), device="meta")
        request = RowRequest.of(as_terms(terms), -100, *asked)
        out = launch.row_loss(logits, target, scale, None, request)
        if request.wants("saved"):
            launch.row_grad_into(
                torch.empty_like(logits), logits, target, scale, out.saved, request
            )
        else:
            launch.scale_(out.grad, scale)

    return {name: lambda case=case: call(*case) for name, case in CASES.items()}


def _shard_calls() -> dict[str, Any]:
    def call(shape: Any, dtype: torch.dtype, terms: Any, asked: tuple[str, ...]) -> None:
        logits = torch.empty(shape, dtype=dtype, device="meta")
        target = torch.empty(shape[:1] + shape[2:], dtype=torch.int64, device="meta")
        request = RowRequest.of(as_terms(terms), -100, *asked)
        partials, _ = launch.shard_partials(logits, target, request)
        sums = launch.shard_sums(logits, target, partials, request)
        launch.shard_finish(partials, sums, target, None, request)

    return {name: lambda case=case: call(*case) for name, case in SHARD_CASES.items()}


def _softmax_calls() -> dict[str, Any]:
    def call(shape: Any, dtype: torch.dtype) -> None:
        probs = launch.softmax(torch.empty(shape, dtype=dtype, device="meta"))
        launch.softmax_backward(torch.empty_like(probs), probs)

    return {name: lambda case=case: call(*case) for name, case in SOFTMAX_CASES.items()}


def _column_calls() -> dict[str, Any]:
    def call(shape: Any, dtype: torch.dtype) -> None:
        logits = torch.empty(shape, dtype=dtype, device="meta")
        counted = torch.empty(shape[:1] + shape[2:], dtype=torch.bool, device="meta")
        bounds = 1e-7, 1 - 1e-7
        sums, partials = launch.column_sums(logits, counted, *bounds)
        scale = sums.new_empty(())
        grad = torch.empty_like(logits)
        launch.column_grad(grad, logits, counted, partials, sums, scale, *bounds, True)

    return {name: lambda case=case: call(*case) for name, case in COLUMN_CASES.items()}


def compile_launch(kernel: JITFunction, kwargs: dict[str, Any], target: GPUTarget) -> Any:
    """What Triton makes of one launch."""
    options = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
    signature: dict[str, Any] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attrs: dict[tuple[int, ...], Any] = {}
    for i, param in enumerate(kernel.params):
        if param.is_constexpr:
            signature[param.name] = "constexpr"
            constexprs[(i,)] = kwargs[param.name]
        else:
            signature[param.name] = _specialise(kwargs[param.name], (i,), constexprs, attrs)
    source = ASTSource(kernel, signature, constexprs, attrs)
    return triton.compile(source, target=target, options=options)


def resources(asm: Any) -> dict[str, int]:
    """What a launch takes of a multiprocessor, and how wide it loads and stores."""
    return _nvidia(asm) if "cubin" in asm else _amd(asm["amdgcn"])


def _specialise(value: Any, path: tuple[int, ...], constexprs: Any, attrs: Any) -> Any:
    """The type that the JIT gives a run-time argument; it compiles in None and 1."""
    if isinstance(value, tuple):
        types = [_specialise(item, (*path, i), constexprs, attrs) for i, item in enumerate(value)]
        return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
    if value is None or (isinstance(value, int) and value == 1):
        constexprs[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        attrs[path] = [["tt.divisibility", 16]]
        return "*" + _TRITON_NAMES[value.dtype]
    if isinstance(value, int):
        if value % 16 == 0:
            attrs[path] = [["tt.divisibility", 16]]
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


_TRITON_NAMES = {
    bf16: "bf16",
    f16: "fp16",
    f32: "fp32",
    f64: "fp64",
    torch.int64: "i64",
    torch.uint8: "u8",
}


def _nvidia(asm: Any) -> dict[str, int]:
    usage = _tool("cuobjdump", asm["cubin"], "-res-usage")
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    ptx = asm["ptx"]
    return {
        "registers": numbers["REG"],
        "spilled": numbers["STACK"],  # bytes of stack frame: where ptxas spills to
        "shared": numbers["SHARED"],
        "load_bits": _widest(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx),
        "store_bits": _widest(r"st\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx),
    }


def _widest(pattern: str, text: str) -> int:
    return max((int(v or 1) * int(bits) for v, bits in re.findall(pattern, text)), default=0)


def _tool(name: str, cubin: bytes, option: str) -> str:
    """What one of the tools that come with Triton prints of a kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _amd(text: str) -> dict[str, int]:
    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text).group(1))  # type: ignore[union-attr]

    def widest(kind: str) -> int:
        found = re.findall(rf"(?:global|buffer)_{kind}_(?:u?short|dwordx?(\d)?)", text)
        return max((32 * int(n or 1) for n in found), default=0)

    return {
        "registers": number("vgpr_count"),
        "spilled": number("vgpr_spill_count"),  # scalar registers spill to vector lanes instead
        "shared": number("group_segment_fixed_size"),
        "load_bits": widest("load"),
        "store_bits": widest("store"),
    }


if __name__ == "__main__":
    main(sys.argv[1])
