#!/usr/bin/env bash
# torch 2.13.0: a Python float that changes from call to call, in a function that torch.compile made.
#
# Expected: Dynamo makes a float that has changed once a symbol, as it does an int, and no further value
# compiles anything: one graph for a schedule of a thousand temperatures.
# Seen: that depends on what is done with it. x * w compiles twice for any number of values. In
# torch.clamp(x, min=w), torch.full((), w), torch.tensor(w), or math.log(w) the float is a constant again,
# with no word: each value is another graph, until the limit of recompilations, where fullgraph=True
# raises. A product with a tensor first, torch.ones(()) * w, and torch.maximum in the place of clamp keep
# the symbol.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.2.6"
cat > "$work/find.py" <<'PYTHON'
import math

import torch
from torch._dynamo.utils import counters

WAYS = {
    "x * w": lambda x, w: x * w,
    "clamp(x, min=w)": lambda x, w: torch.clamp(x, min=w),
    "x + full((), w)": lambda x, w: x + torch.full((), w),
    "x + tensor(w)": lambda x, w: x + torch.tensor(w),
    "x * math.log(w)": lambda x, w: x * math.log(w),
    "x + ones(()) * w": lambda x, w: x + torch.ones(()) * w,
    "maximum(x, ones(()) * w)": lambda x, w: torch.maximum(x, torch.ones(()) * w),
}
VALUES = [1.1 + 0.3 * step for step in range(6)]


def graphs(way):
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(way, fullgraph=True, backend="aot_eager")
    x = torch.randn(4)
    for value in VALUES:
        torch.testing.assert_close(compiled(x, value), way(x, value))
    return counters["stats"]["unique_graphs"]


found = {name: graphs(way) for name, way in WAYS.items()}
print(f"graphs for {len(VALUES)} values: {found}")
few = {name for name, count in found.items() if count == 2}
many = {name for name, count in found.items() if count == len(VALUES)}
assert few == {"x * w", "x + ones(()) * w", "maximum(x, ones(()) * w)"}, "the behaviour has changed"
assert few | many == set(WAYS), "the behaviour has changed"
PYTHON
"$work/venv/bin/python" "$work/find.py"
