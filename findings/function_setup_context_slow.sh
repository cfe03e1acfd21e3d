#!/usr/bin/env bash
# torch 2.13.0: an autograd Function with setup_context, which torch.func asks for, in plain eager code.
#
# Expected: forward and setup_context apart cost what forward(ctx, ...) does, a microsecond more or less.
# Seen: apply() binds its arguments to the signature of forward through inspect at every call, but only
# where setup_context is defined. With a dozen arguments a call takes several times as long, some tens of
# microseconds more, which is more than many a kernel. The apply() of the base class, which does not bind,
# gives the same result in the old time.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.2.6"
cat > "$work/find.py" <<'PYTHON'
import time

import torch

OPTIONS = tuple(range(11))


class Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *options):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2, *(None,) * len(OPTIONS)


class Apart(torch.autograd.Function):
    @staticmethod
    def forward(x, a, b, c, d, e, f, g, h, i, j, k):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * 2, *(None,) * len(OPTIONS)


torch.set_num_threads(1)
x = torch.randn(10, requires_grad=True)
ways = {
    "forward(ctx, ...)": Together.apply,
    "setup_context": Apart.apply,
    "setup_context, the base's apply": super(torch.autograd.Function, Apart).apply,
}
best = dict.fromkeys(ways, float("inf"))
for _ in range(200):
    for name, apply in ways.items():
        start = time.perf_counter()
        for _ in range(50):
            made = apply(x, *OPTIONS)
        best[name] = min(best[name], (time.perf_counter() - start) / 50 * 1e6)
        assert torch.equal(torch.autograd.grad(made.sum(), x)[0], torch.full((10,), 2.0))
print({name: f"{time:.1f} us a call" for name, time in best.items()})
together, apart, base = best.values()
assert apart > 3 * together and base < 1.5 * together, "the behaviour has changed"
PYTHON
"$work/venv/bin/python" "$work/find.py"
