"""The algebra of losses: a term, and a weighted sum of terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from anl_kernels.numbers import as_flag, as_number, shown
from anl_kernels.terms.symbols import known

if TYPE_CHECKING:
    from anl_kernels.terms.row import Row

Weight = float | Tensor
_T = TypeVar("_T")

_MOST_DERIVED = 64  # of a sum that meets ever other numbers of classes
_NUMBERS = ("float", "int", float, int)  # as annotations of fields say them
_FLAGS = ("bool", bool)

REGISTRY: dict[str, type[Term]] = {}
"""Every term class by name, but for those that hold another; filled by defining the class."""


class _Arithmetic:
    """What a term and a sum of terms have in common: a term stands for the sum of itself."""

    __array_ufunc__ = None  # or NumPy's numbers would take a sum of terms for an array

    def __add__(self, other: Term | Terms) -> Terms:
        """The sum of this and another term or sum."""
        left, right = as_terms(self), _addend(other)  # type: ignore[arg-type]
        return Terms(
            left.terms + right.terms, left.factors + right.factors, left.tensors + right.tensors
        )

    def __radd__(self, other: Any) -> Terms:
        """Support ``sum([...])``, which starts from 0."""
        return _addend(other) + self

    def __sub__(self, other: Term | Terms) -> Terms:
        """This less another term or sum, whose weights change their signs."""
        return self + -_addend(other)

    def __rsub__(self, other: Any) -> Terms:
        """0 less this."""
        return _addend(other) - self

    def __mul__(self, weight: Weight) -> Terms:
        """Every term times a number or a 0-d tensor."""
        terms = as_terms(self)  # type: ignore[arg-type]
        if isinstance(weight, Tensor):
            check_tensor_weight(weight)
            # A lone tensor stays the object it is, so that a module can register a parameter.
            tensors = tuple(weight if old is None else old * weight for old in terms.tensors)
            return Terms(terms.terms, terms.factors, tensors)
        number = _finite(weight)
        return Terms(terms.terms, tuple(f * number for f in terms.factors), terms.tensors)

    __rmul__ = __mul__

    def __neg__(self) -> Terms:
        """Every weight with its sign changed."""
        return self * -1.0

    def __truediv__(self, divisor: Weight) -> Terms:
        """Every term divided by a number or a 0-d tensor."""
        if isinstance(divisor, Tensor):
            check_tensor_weight(divisor)
            return self * divisor.reciprocal()
        number, terms = _finite(divisor), as_terms(self)  # type: ignore[arg-type]
        if number == 0:
            raise ValueError("a term cannot be divided by 0; 0.0 * term is the sum without it")
        return Terms(terms.terms, tuple(f / number for f in terms.factors), terms.tensors)

    def __rtruediv__(self, other: Any) -> Terms:
        """Refuse: a loss is linear in its terms."""
        raise TypeError(
            f"a term cannot be a divisor, got {shown(other)} / {self!r}; multiply terms by numbers "
            f"and add them up"
        )


@dataclass(frozen=True)
class Term(_Arithmetic):
    """One loss over the classes of a row: an immutable value, compared by its parameters.

    Terms add and scale: ``5.0 * NCE() + 5.0 * NNCE()`` is a :class:`Terms`, which one kernel call
    computes. A subclass states its parameters as dataclass fields (floats or booleans), checks
    them in ``__post_init__`` (after ``super()``'s) with :func:`require`, and gives its formula in
    :meth:`rows`.
    """

    normalised: ClassVar[bool] = False
    """Whether the term is divided by its sum over all labels; ``class_scale`` multiplies those."""
    has_gradient: ClassVar[bool] = True
    """False of what is only asked for beside a loss."""

    def __init_subclass__(cls, registered: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = REGISTRY.get(cls.__name__)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"a term named {cls.__name__} exists: {known}; choose another name")
        if registered and not cls.__name__.startswith("_"):
            REGISTRY[cls.__name__] = cls

    def __post_init__(self) -> None:
        check_parameters(self)

    def rows(self, row: Row) -> Tensor:
        """The loss of every row, as plain differentiable PyTorch: the definition of the term."""
        raise NotImplementedError(
            f"{type(self).__name__} must define rows(row), which gives the loss of every row"
        )

    def summands(self, row: Row) -> tuple[Tensor, Tensor]:
        """Of a normalised term: the label's summand, and the sum of the other classes'."""
        raise NotImplementedError(
            f"{type(self).__name__} must define summands(row), which gives the label's summand and "
            f"the sum of the others', for its gradient to be multiplied by their sum"
        )

    def denominator(self, row: Row) -> Tensor:
        """The size of what the loss of every row is divided by, without gradient; 1 if nothing."""
        if not self.normalised:
            return torch.ones_like(row.l_y.detach())
        with torch.no_grad():
            own, others = self.summands(row)
            return (own + others).abs().detach()  # which takes tangents away too

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
        return tuple([float(getattr(self, field.name)) for field in fields(self)])

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ValueError if the term has no meaning at this number of classes."""


@dataclass(frozen=True, repr=False, init=False)
class Terms(_Arithmetic):
    """A weighted sum of terms: an immutable value.

    A term's weight is a float times, perhaps, a 0-d tensor; a tensor that requires grad receives
    its gradient. Iterating gives ``(weight, term)`` pairs.

    Args:
        terms: the terms.
        factors: the float of each.
        tensors: the tensor of each, or None.
    """

    plain: ClassVar[bool]
    """Whether no weight is a tensor."""
    # Not three tuples: one of floats alone, anywhere below a module, Dynamo takes for a constant.
    parts: tuple[tuple[float, Tensor | None, Term], ...]

    def __init__(
        self,
        terms: tuple[Term, ...],
        factors: tuple[float, ...],
        tensors: tuple[Tensor | None, ...],
    ) -> None:
        for term in terms:
            check_parameters(term)  # a user's own may not have
        object.__setattr__(self, "parts", tuple(zip(factors, tensors, terms, strict=True)))
        object.__setattr__(self, "plain", all(tensor is None for tensor in tensors))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms."""
        return tuple([part[2] for part in self.parts])

    @property
    def factors(self) -> tuple[float, ...]:
        """The float in the weight of each term."""
        return tuple([part[0] for part in self.parts])

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensor in the weight of each term, if it has one."""
        return tuple([part[1] for part in self.parts])

    def __iter__(self) -> Iterator[tuple[Weight, Term]]:
        """Iterate over the ``(weight, term)`` pairs."""
        for factor, tensor, term in self.parts:
            yield (factor if tensor is None else _times(factor, tensor)), term

    def __len__(self) -> int:
        """The number of terms."""
        return len(self.parts)

    def __repr__(self) -> str:
        """As it would be written: ``5.0 * NCE() - 0.5 * NNCE(min_prob=1e-07, prob_max=1.0)``."""
        text = " + ".join(f"{_show(weight)} * {term!r}" for weight, term in self)
        return text.replace(" + -", " - ")

    def derived(self, compute: Callable[..., _T], *args: Any) -> _T:
        """What ``compute(self, *args)`` is, kept with this sum.

        To look a sum up by its hash would cost more than a small kernel. Not for code that Dynamo
        traces.
        """
        kept = self.__dict__.setdefault("_derived", {})
        key = (compute, args)
        made = kept.get(key)
        if made is None:
            if len(kept) >= _MOST_DERIVED:
                kept.clear()
            kept[key] = made = compute(self, *args)
        return made

    def __getstate__(self) -> dict[str, object]:
        # What was derived may hold what belongs to this process.
        return {"parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        factors, tensors, terms = zip(*state["parts"], strict=True) if state["parts"] else ((),) * 3
        self.__init__(terms, factors, tensors)  # type: ignore[misc]

    def scaled(self, class_scale: float) -> Terms:
        """The same sum with its normalised terms multiplied by ``class_scale``."""
        if known(class_scale) and class_scale == 1.0:
            return self
        factors = tuple(
            factor * class_scale if term.normalised else factor for factor, _, term in self.parts
        )
        return Terms(self.terms, factors, self.tensors)

    def check_weights_are_leaves(self) -> None:
        """Raise ValueError if a weight was computed of tensors that require grad.

        A module would keep its graph, which a first backward frees, and no optimiser would be
        given what it was computed from.
        """
        for tensor, term in zip(self.tensors, self.terms, strict=True):
            if tensor is not None and tensor.requires_grad and not tensor.is_leaf:
                raise ValueError(
                    f"terms: a learned weight must be an nn.Parameter itself in a module, got one "
                    f"that was computed ({tensor.grad_fn}) as the weight of {term!r}; multiply the "
                    f"term by the parameter first and by numbers after that, as in "
                    f"0.5 * (q * ak.CE()), or call ak.robust_loss with terms made in every step"
                )

    def tensor_weights(self, like: Tensor) -> Tensor | None:
        """The (T,) weights, factors included, if any is a tensor, else None.

        They take the device and dtype of ``like`` without a host synchronisation.
        """
        if self.plain:
            return None
        one = like.new_ones(())  # times a factor, since a fill would make a constant of a symbol
        return torch.stack(
            [
                factor
                * (
                    one
                    if tensor is None
                    else tensor.to(device=like.device, dtype=like.dtype, non_blocking=True)
                )
                for factor, tensor, _ in self.parts
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


def check_parameters(term: Term) -> None:
    """Make Python's numbers of a term's parameters; raise TypeError if they are none.

    Fields of other types than float, int and bool, which a user's own term may have, are let be.
    """
    for field in fields(term):
        value = getattr(term, field.name)
        if isinstance(value, Tensor):
            raise TypeError(
                f"{type(term).__name__}: {field.name} must be a number, got "
                f"{shown(value)}; only the weight of a term can be learned"
            )
        if field.type in _NUMBERS:
            plain, kind = as_number(value), "a number"
        elif field.type in _FLAGS:
            plain, kind = as_flag(value), "True or False"
        else:
            continue
        if plain is None:
            raise TypeError(
                f"{type(term).__name__}: {field.name} must be {kind}, got {shown(value)}; convert "
                f"it, or leave it out if it has a default"
            )
        if plain is not value:
            object.__setattr__(term, field.name, plain)


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


def _addend(other: Any) -> Terms:
    """A term, a sum of terms, or 0, as a sum."""
    if isinstance(other, Term | Terms):
        return as_terms(other)
    if as_number(other) == 0:
        return Terms((), (), ())
    raise TypeError(
        f"a term adds to a term or to a sum of terms, got {shown(other)}; a number is the weight "
        f"of a term, as in 2.0 * ak.CE()"
    )


def _finite(weight: Any) -> float:
    number = as_number(weight)
    if number is None:
        raise TypeError(
            f"the weight of a term must be a number or a 0-d tensor, got {shown(weight)}; convert "
            f"it with float(), and add terms with +"
        )
    if number - number != 0:  # infinite or NaN, in words that Dynamo can trace
        raise ValueError(f"the weight of a term must be finite, got {number}; pass another")
    return float(number)


def _times(factor: float, tensor: Tensor) -> Tensor:
    return tensor if factor == 1.0 else factor * tensor


def _show(weight: Weight) -> str:
    if not isinstance(weight, Tensor):
        return str(weight)
    return "tensor(learned)" if weight.requires_grad else "tensor"
