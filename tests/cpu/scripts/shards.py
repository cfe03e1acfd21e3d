"""Shards of every form, against the whole."""

import torch

import anl_kernels as ak
from anl_kernels.backends.choice import instruction_set
from tests.cpu.forms import FORMS, SOME
from tests.shards import IGNORE, assert_merged

torch.manual_seed(0)
with ak.use_backend("cpu"):
    for form in FORMS.values():
        torch.set_num_threads(form.threads)
        for dtype in (torch.float32, torch.float16):
            logits, target = form.logits(dtype), form.labels()
            logits.movedim(1, -1)[..., 5:100:7] = -torch.inf
            target = target.clamp(max=4)
            target.view(-1)[0] = IGNORE
            for terms in (SOME["ANL-CE"], SOME["all"]):
                assert_merged("cpu", logits, target, terms, (0, 1, 100, form.num_classes), 2e-6)
print(instruction_set(), torch.__version__)
