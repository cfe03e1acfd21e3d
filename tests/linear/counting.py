"""What a step costs: its matrix products, as PyTorch's profiler sees them in operators too."""

from torch.autograd.profiler import profile

_FACTORS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::addmm_": (1, 2)}


def multiplications(step):
    """Of the matrix products in a step."""
    with profile(record_shapes=True, use_kineto=False) as profiler:
        step()
    count = 0
    for event in profiler.function_events:
        if event.name in _FACTORS:
            (m, k), (_, n) = (event.input_shapes[place] for place in _FACTORS[event.name])
            count += m * k * n
    return count


def products(step, head, rows=None):
    """The number of products of a step, each of all rows (or of ``rows``) with the weight."""
    rows = head.target.numel() if rows is None else rows
    return multiplications(step) / (rows * head.weight.numel())
