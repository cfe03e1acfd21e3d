"""The algebra of losses: a term, and a weighted sum of terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from anl_kernels.terms.row import Row

Weight = float | Tensor
_T = TypeVar("_T")

REGISTRY: dict[str, type[Term]] = {}
"""Every term class by name; filled by defining the class."""


@dataclass(frozen=True)
class Term:
    """One loss over the classes of a row: an immutable value, compared by its parameters.

    Terms add and scale: ``5.0 * NCE() + 5.0 * NNCE()`` is a :class:`Terms`, which one kernel call
    computes. A subclass states its parameters as dataclass fields (floats or booleans), checks
    them in ``__post_init__`` with :func:`require`, and gives its formula in :meth:`rows`.
    """

    normalised: ClassVar[bool] = False
    """Whether the term is divided by its sum over all labels; ``class_scale`` multiplies those."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = REGISTRY.get(cls.__name__)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"a term named {cls.__name__} exists: {known}; choose another name")
        if not cls.__name__.startswith("_"):
            REGISTRY[cls.__name__] = cls
            decode_terms.cache_clear()  # a notebook's cell defines a term again

    def rows(self, row: Row) -> Tensor:
        """The loss of every row, as plain differentiable PyTorch: the definition of the term."""
        raise NotImplementedError

    @property
    def functor(self) -> str:
        """Name of the functor that compiled backends run for these parameters."""
        return type(self).__name__.lower()

    @property
    def may_have_kernel(self) -> bool:
        """Whether ``functor`` speaks for this class, as it does for the package's and where given.

        A user's class may bear the name of a functor, or inherit a term and change its formula.
        """
        cls = type(self)
        return cls.__module__.startswith("anl_kernels.") or "functor" in vars(cls)

    def scalars(self) -> tuple[float, ...]:
        """At most three run-time numbers for the functor; by default the fields, in order."""
        return tuple(float(value) for value in astuple(self))

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ValueError if the term has no meaning at this number of classes."""

    def __add__(self, other: Term | Terms) -> Terms:
        """The sum of this term and another term or sum."""
        return as_terms(self) + other

    def __radd__(self, other: Any) -> Terms:
        """Support ``sum([...])``, which starts from 0."""
        return as_terms(self).__radd__(other)

    def __mul__(self, weight: Weight) -> Terms:
        """The term times a float or a 0-d tensor."""
        return as_terms(self) * weight

    __rmul__ = __mul__


@dataclass(frozen=True, repr=False)
class Terms:
    """A weighted sum of terms: an immutable value.

    A term's weight is a float times, perhaps, a 0-d tensor; a tensor that requires grad receives
    its gradient. Iterating gives ``(weight, term)`` pairs.
    """

    terms: tuple[Term, ...]
    factors: tuple[float, ...]
    tensors: tuple[Tensor | None, ...]

    @property
    def names(self) -> str:
        """The classes of the terms, comma-separated; with ``params``, what an operator is given."""
        return ",".join(type(term).__name__ for term in self.terms)

    @property
    def params(self) -> tuple[float, ...]:
        """For each term its factor, then its parameters."""
        return tuple(
            number
            for factor, term in zip(self.factors, self.terms, strict=True)
            for number in (factor, *(float(getattr(term, field.name)) for field in fields(term)))
        )

    def __post_init__(self) -> None:
        for term in self.terms:
            for field in fields(term):
                value = getattr(term, field.name)
                if isinstance(value, Tensor):
                    raise TypeError(
                        f"{type(term).__name__}: {field.name} must be a number, got a tensor; only "
                        f"the weight of a term can be learned"
                    )

    def __iter__(self) -> Iterator[tuple[Weight, Term]]:
        """Iterate over the ``(weight, term)`` pairs."""
        for factor, tensor, term in zip(self.factors, self.tensors, self.terms, strict=True):
            yield (factor if tensor is None else _times(factor, tensor)), term

    def __len__(self) -> int:
        """The number of terms."""
        return len(self.terms)

    def __add__(self, other: Term | Terms) -> Terms:
        """The sum of this and another term or sum."""
        if not isinstance(other, Term | Terms):
            return NotImplemented
        more = as_terms(other)
        return Terms(
            self.terms + more.terms, self.factors + more.factors, self.tensors + more.tensors
        )

    def __radd__(self, other: Any) -> Terms:
        """Support ``sum([...])``, which starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, weight: Weight) -> Terms:
        """Every term times a float or a 0-d tensor."""
        if isinstance(weight, Tensor):
            check_tensor_weight(weight)
            # A lone tensor stays the object it is, so that a module can register a parameter.
            tensors = tuple(weight if old is None else old * weight for old in self.tensors)
            return Terms(self.terms, self.factors, tensors)
        if not isinstance(weight, int | float):
            return NotImplemented
        if weight - weight != 0:  # infinite or NaN, in words that Dynamo can trace
            raise ValueError(f"the weight of a term must be finite, got {weight}")
        factors = tuple(factor * float(weight) for factor in self.factors)
        return Terms(self.terms, factors, self.tensors)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        """As it would be written: ``5.0 * NCE() + 5.0 * NNCE(min_prob=1e-07, prob_max=1.0)``."""
        return " + ".join(f"{_show(weight)} * {term!r}" for weight, term in self)

    def derived(self, compute: Callable[[Terms], _T]) -> _T:
        """What ``compute`` makes of this sum, kept with it.

        To look a sum up by its hash would cost more than a small kernel. Not for code that Dynamo
        traces.
        """
        kept = self.__dict__.setdefault("_derived", {})
        if compute not in kept:
            kept[compute] = compute(self)
        return kept[compute]

    def __getstate__(self) -> dict[str, object]:
        # What was derived may hold what belongs to this process.
        return {name: value for name, value in self.__dict__.items() if name != "_derived"}

    def scaled(self, class_scale: float) -> Terms:
        """The same sum with its normalised terms multiplied by ``class_scale``."""
        if class_scale == 1.0:
            return self
        factors = tuple(
            factor * class_scale if term.normalised else factor
            for factor, term in zip(self.factors, self.terms, strict=True)
        )
        return Terms(self.terms, factors, self.tensors)

    def tensor_weights(self, like: Tensor) -> Tensor | None:
        """The (T,) weights, factors included, if any is a tensor, else None.

        They take the device and dtype of ``like`` without a host synchronisation.
        """
        if all(tensor is None for tensor in self.tensors):
            return None
        return torch.stack(
            [
                like.new_full((), factor)
                if tensor is None
                else factor * tensor.to(device=like.device, dtype=like.dtype, non_blocking=True)
                for factor, tensor in zip(self.factors, self.tensors, strict=True)
            ]
        )


def as_terms(terms: Term | Terms) -> Terms:
    """A term or a sum of terms, as a sum."""
    if isinstance(terms, Terms):
        return terms
    if isinstance(terms, Term):
        return Terms((terms,), (1.0,), (None,))
    known = ", ".join(sorted(REGISTRY))
    raise TypeError(
        f"terms must be a term or a sum of terms such as 5.0 * ak.NCE() + 5.0 * ak.NNCE(), "
        f"got {terms!r} ({type(terms).__name__}); the terms are {known}"
    )


@lru_cache(maxsize=256)
def decode_terms(names: str, params: tuple[float, ...]) -> Terms:
    """The sum that ``names`` and ``params`` of a :class:`Terms` stand for (float weights)."""
    terms: list[Term] = []
    factors: list[float] = []
    rest = iter(params)
    for name in names.split(","):
        if name not in REGISTRY:
            raise ValueError(f"unknown term {name!r}; the terms are {', '.join(sorted(REGISTRY))}")
        term = REGISTRY[name]
        factors.append(next(rest))
        terms.append(term(*(next(rest) for _ in fields(term))))
    return Terms(tuple(terms), tuple(factors), (None,) * len(terms))


def check_tensor_weight(weight: Tensor) -> None:
    """Raise ValueError unless a tensor can be the weight of a term."""
    if weight.dim() != 0 or not weight.is_floating_point():
        raise ValueError(
            f"the weight of a term must be a float or a 0-d floating tensor, "
            f"got a {weight.dtype} tensor of shape {tuple(weight.shape)}; "
            f"index or sum it down to one number"
        )


def require(holds: bool, term: Term, name: str, remedy: str) -> None:
    """Raise ValueError about the term's parameter ``name`` unless it holds."""
    if not holds:
        value = getattr(term, name)
        raise ValueError(f"{type(term).__name__}: {name} must be {remedy}, got {value}")


def _times(factor: float, tensor: Tensor) -> Tensor:
    return tensor if factor == 1.0 else factor * tensor


def _show(weight: Weight) -> str:
    if not isinstance(weight, Tensor):
        return str(weight)
    return "tensor(learned)" if weight.requires_grad else "tensor"
