"""How an operator of ``torch.ops.anl_kernels`` is made: what the compiler and opcheck see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

library = torch.library.Library("anl_kernels", "DEF")


def operator(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the decorated function an operator's implementation on every device."""
    name = signature.partition("(")[0]

    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        library.define(signature, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, implementation, "CompositeExplicitAutograd")
        return implementation

    return register


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the decorated function what an operator answers where there is no data."""

    def register(answer: Callable[..., Any]) -> Callable[..., Any]:
        register_fake(f"anl_kernels::{name}", answer, library)
        return answer

    return register


def register_fake(name: str, answer: Callable[..., Any], library: torch.library.Library) -> None:
    """As ``torch.library.register_fake``, always from this file.

    It looks for the source of its caller among all modules: half a millisecond for each new file.
    """
    torch.library.register_fake(name, answer, lib=library)
