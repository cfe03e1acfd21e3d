"""A sum of terms as text and numbers, which operators take, kernels read, and Python reads back."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from anl_kernels.operators import fake, operator
from anl_kernels.terms.balanced import Balanced
from anl_kernels.terms.base import REGISTRY, Term, Terms
from anl_kernels.terms.probes import PROBE_CLASSES
from anl_kernels.terms.symbols import as_tensor, known

NUM_SCALARS = 3
"""Most numbers that a functor takes."""

BY_ROW = "@row"
"""After the functor of a balanced term."""

Encoded = tuple[str, list[float], Tensor | None]


def encode(terms: Terms) -> Encoded:
    """The first fields of :class:`anl_kernels.interface.RowRequest`: functors, numbers, moving.

    In compiled code a number that changes from call to call, such as an exponent on a schedule, is
    a symbol. Measured on torch 2.13, for aot_eager and inductor: a symbol among an operator's
    numbers is made a constant, which compiles every value anew and fails at the ninth; so is one in
    ``torch.tensor``, ``scalar_tensor`` or ``full``. Its product with a tensor (:func:`as_tensor`)
    stays one graph, and inductor passes the graph's own input for it. Numbers that do not change
    stay numbers: eager calls make no tensor of them, and a CUDA graph can hold the operator, whose
    numbers on the host would have it run outside.
    """
    if torch.compiler.is_compiling():
        return _encode(terms)
    return terms.derived(_encode)


def functors_of(terms: Terms) -> str:
    """Of each term its class and its functor: the first field of a request.

    ``NCE:nce,NNCE:nnce@row,Mine:``, of which the second is balanced and the third has no functor.
    """
    return _functors(terms) if torch.compiler.is_dynamo_compiling() else terms.derived(_functors)


def _functors(terms: Terms) -> str:
    return ",".join(map(_text_of, terms.terms))


def _text_of(term: Term) -> str:
    plain, suffix = (term.term, BY_ROW) if isinstance(term, Balanced) else (term, "")
    return f"{type(plain).__name__}:{_functor_of(term)}{suffix}"


def _functor_of(term: Term) -> str:
    """Its functor; empty for a term that has none, or names what no functor can be named."""
    functor = term.functor if term.may_have_kernel else ""
    return functor if functor.isidentifier() else ""


def _encode(terms: Terms) -> Encoded:
    numbers, parameters = [], []
    for factor, _, term in terms.parts:
        plain = term.term if isinstance(term, Balanced) else term
        scalars = term.scalars() if term.may_have_kernel else ()
        if len(scalars) > NUM_SCALARS:
            raise ValueError(f"{term!r} has {len(scalars)} scalars; a functor takes {NUM_SCALARS}")
        numbers += [factor, *scalars, *[0.0] * (NUM_SCALARS - len(scalars))]
        parameters += [float(getattr(plain, field.name)) for field in fields(plain)]
    numbers += parameters
    are_known = [not isinstance(number, Tensor) and known(number) for number in numbers]
    if all(are_known):
        return _functors(terms), numbers, None
    # An operator, and no torch.stack, for which inductor would compile a kernel in C++.
    moving = torch.ops.anl_kernels.pack_numbers(
        [
            number if isinstance(number, Tensor) else as_tensor(number)
            for number, is_known in zip(numbers, are_known, strict=True)
            if not is_known
        ],
        [n if is_known else math.nan for n, is_known in zip(numbers, are_known, strict=True)],
    )
    return _functors(terms), [], moving


def decode(functors: str, numbers: tuple[float, ...]) -> Terms:
    """The sum that :func:`encode` was given (float weights)."""
    texts = functors.split(",")
    names = [text.partition(":")[0] for text in texts]
    classes = [REGISTRY.get(name) or PROBE_CLASSES.get(name) for name in names]
    unknown = [name for name, found in zip(names, classes, strict=True) if found is None]
    if unknown:
        known_names = ", ".join(sorted(REGISTRY))
        raise ValueError(f"unknown term {unknown[0]!r}; the terms are {known_names}")
    balanced = tuple(text.endswith(BY_ROW) for text in texts)
    return _decode(tuple(classes), balanced, numbers)


@lru_cache(maxsize=256)
def _decode(
    classes: tuple[type[Term], ...], balanced: tuple[bool, ...], numbers: tuple[float, ...]
) -> Terms:
    per_term = 1 + NUM_SCALARS
    factors = numbers[: per_term * len(classes) : per_term]
    rest = iter(numbers[per_term * len(classes) :])
    made = [term(*(next(rest) for _ in fields(term))) for term in classes]
    pairs = zip(made, balanced, strict=True)
    terms = tuple(Balanced(term) if by_row else term for term, by_row in pairs)
    return Terms(terms, factors, (None,) * len(terms))


@operator("pack_numbers(Tensor[] unknown, float[] numbers) -> Tensor")
def pack_numbers(unknown: list[Tensor], numbers: list[float]) -> Tensor:
    """(P,) float64 on the CPU: the numbers, and 0-d tensors in the places of those that are NaN."""
    rest = iter(unknown)
    made = [float(next(rest)) if math.isnan(number) else number for number in numbers]
    return torch.tensor(made, dtype=torch.float64, device="cpu")


@fake("pack_numbers")
def _(unknown: list[Tensor], numbers: list[float]) -> Any:
    return torch.empty(len(numbers), dtype=torch.float64, device="cpu")
