"""The forms that a kernel takes, forced at small numbers of classes."""

import contextlib

from anl_kernels.backends.triton import launch, launch_parts
from anl_kernels.backends.triton.plan import Plan

LAUNCHERS = (launch, launch_parts)

# For K up to 64.
FORMS = {
    "tile": Plan("tile", 2, 64, 4),
    "sweep": Plan("sweep", 1, 16, 4, lanes=4),
    "sweep-of-rows": Plan("sweep", 4, 8, 4),
    "split": Plan("split", 1, 8, 4, 16, lanes=4),
}

KERNELS = {
    "tile": {"row_tile_kernel"},
    "sweep": {"row_sweep_kernel"},
    "split": {"split_partials_kernel", "split_finish_kernel"},
}


@contextlib.contextmanager
def forced(form, monkeypatch):
    """Run every row kernel in one form; yields the list of the kernels that were launched."""
    plan = FORMS[form]

    def plan_rows(*args, may_split=True, **kwargs):
        return plan if may_split or plan.kind != "split" else plan._replace(kind="sweep")

    with monkeypatch.context() as patch:
        for module in LAUNCHERS:
            patch.setattr(module, "plan_rows", plan_rows)
        patch.setattr(launch, "plan_tiles", lambda *args, **kwargs: Plan("tile", 2, 16, 4))
        yield spied_kernels(patch)


@contextlib.contextmanager
def checked(form, monkeypatch):
    """As ``forced``, and the row kernels that ran were those of the form."""
    with forced(form, monkeypatch) as launched:
        yield
    wanted, others = KERNELS[FORMS[form].kind], set().union(*KERNELS.values())
    assert not (others - wanted) & set(launched)
    assert wanted <= set(launched) or not others & set(launched)


def spied_kernels(patch):
    """The list of the names of the kernels launched from now on."""
    launched = []
    for module in LAUNCHERS:
        for name in kernel_names(module):
            patch.setattr(module, name, _Spy(name, getattr(module, name), launched))
    return launched


def kernel_names(*modules):
    """The kernels that modules launch."""
    return {name for module in modules for name in vars(module) if name.endswith("_kernel")}


class _Spy:
    def __init__(self, name, kernel, launched):
        self.name, self.kernel, self.launched = name, kernel, launched

    def __getitem__(self, grid):
        self.launched.append(self.name)
        return self.kernel[grid]
