"""What the CUDA kernels' launches come to on an H100 or H200, worked out: nobody ran them there.

``python -m tests.audit.traffic`` prints the table of docs/cuda.md, out of the launches that the
kernels' own planner makes (in the emulation) and the registers in cuda_budget.json: of the loss of
the paper, CE or NCE with NNCE, where kernels differ by the loss.
"""

import json
import sys
from pathlib import Path

import torch

from tests.cuda import emulated

BUDGET = json.loads((Path(__file__).parent / "cuda_budget.json").read_text())
CLASSES = (1000, 32768, 50257, 65536, 131072, 262144, 1_000_000)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KERNELS = {
    "warp_rows": "warp_rows",
    "cluster": "cluster_row kept line",
    "stream": "cluster_row streamed",
}
# Of a multiprocessor of compute capability 9.0.
REGISTERS, THREADS, BLOCKS, SHARED, SHARED_OF_SYSTEM = 65536, 2048, 32, 228 << 10, 1 << 10
WARP, REGISTER_UNIT = 32, 256


def blocks_of_processor(launch, registers):
    """How many blocks a multiprocessor holds."""
    warps = launch["threads"] // WARP
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    return min(
        BLOCKS,
        THREADS // launch["threads"],
        REGISTERS // (of_warp * warps),
        SHARED // (launch["shared_bytes"] + SHARED_OF_SYSTEM),
    )


def rows():
    """One for each dtype and number of classes."""
    from anl_kernels.backends.choice import extension

    kernels = extension("cuda")
    for name, dtype in DTYPES.items():
        for num_classes in CLASSES:
            logits = torch.empty(128, num_classes, dtype=dtype)
            launch = kernels.row_loss_launch(logits)
            kernel = KERNELS[launch["kind"]]
            registers = BUDGET["targets"]["sm_90a"][f"{kernel} {name}"]["registers"]
            blocks = blocks_of_processor(launch, registers)
            streamed = launch["kind"] == "stream"
            kept = num_classes * dtype.itemsize * 128 / launch["blocks"] / 1024
            yield (
                name,
                num_classes,
                launch["kind"] + (f" of {launch['cluster']}" if launch["cluster"] > 1 else ""),
                "-" if streamed else f"{kept:.1f}",
                registers,
                blocks,
                blocks * launch["threads"] // WARP,
                "-" if streamed else f"{blocks * kept:.0f}",
                "2 to 3 + 1" if streamed else "1 + 1",
            )


HEADER = (
    "dtype", "classes", "kind", "KiB of a row in a block", "registers", "blocks", "warps",
    "KiB of logits", "reads + writes",
)  # fmt: skip


def table():
    """Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *rows()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    emulated.install()
    sys.exit(emulated.reason or emulated.error or print(table()))
