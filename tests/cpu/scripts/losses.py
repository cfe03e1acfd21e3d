"""Every form, against the reference."""

import torch

import anl_kernels as ak
from anl_kernels.backends.choice import instruction_set
from tests.cpu.forms import FORMS, SOME, assert_close, reference, results

torch.manual_seed(0)
with ak.use_backend("cpu"):
    for form in FORMS.values():
        torch.set_num_threads(form.threads)
        for dtype in (torch.float32, torch.float16):
            logits, target = form.logits(dtype), form.labels()
            logits.movedim(1, -1)[..., 5:100:7] = -torch.inf
            target = target.clamp(max=4)
            for terms in (SOME["ANL-CE"], SOME["all"]):
                ours = results(logits, target, terms)
                assert_close(ours, reference(logits, target, terms), dtype)
print(instruction_set(), torch.__version__)
