"""bfloat16 and half, in and out, against PyTorch's own conversions."""

import torch

import anl_kernels as ak
from anl_kernels.backends.choice import instruction_set


def all_of(dtype):
    """Every number of a 16-bit type, once."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def check_reading(dtype, num_classes):
    """The lse of a row with one class that is there is that class."""
    values = all_of(dtype)
    values = values[values.isfinite()]
    logits = torch.full((len(values), num_classes), -torch.inf, dtype=dtype)
    logits[:, -1] = values
    target = torch.full((len(values),), num_classes - 1)
    _, aux = ak.robust_loss(logits, target, ak.CE(), return_aux="lse")
    assert torch.equal(aux.lse, values.float())


def check_writing(dtype, num_classes, transposed):
    """The target's gradient of CE at two equal logits is -w / 2, exactly: any number."""
    few = all_of(dtype)
    few = few[few.isfinite() & (few.float() >= 0)].float().sort().values
    halfway = few[:-1] / 2 + few[1:] / 2
    step = few[-1] - few[-2]
    beyond = [few[-1] + step * part for part in (0.49, 0.5, 0.51, 1)]
    near = [halfway, halfway.nextafter(few[1:]), halfway.nextafter(few[:-1])]
    wanted = torch.cat([few, *near, torch.stack(beyond)])
    wanted = wanted[2 * wanted < torch.inf]
    shape = (len(wanted), num_classes)
    logits = (
        torch.empty(shape[::-1], dtype=dtype).t() if transposed else torch.empty(shape, dtype=dtype)
    )
    logits.fill_(-torch.inf)[:, :2] = 0
    logits.requires_grad_()
    target = torch.zeros(len(wanted), dtype=torch.int64)
    loss = ak.robust_loss(logits, target, ak.CE(), reduction="none")
    (grad,) = torch.autograd.grad(loss, logits, 2 * wanted)
    assert torch.equal(grad[:, 0], (-wanted).to(dtype))
    assert not grad[:, 2:].any()


with ak.use_backend("cpu"):
    for dtype in (torch.bfloat16, torch.float16):
        check_reading(dtype, 3)
        check_reading(dtype, 200)
        for transposed in (False, True):
            check_writing(dtype, 3, transposed)
print(instruction_set(), torch.__version__)
