"""The terms as Triton functors: the one place where a loss is named in this backend.

A term is ``Functor(phi, head, sum_kind)`` (see docs/math.md for the algebra):

``phi(l, p, a, b, c) -> (value, slope)``
    The summand and its derivative in l, at l = log p; run on whole tiles.
``head(y, a, b, c) -> (loss, c, g, h, denominator)``
    One row's loss and slopes from what :class:`Target` has: c is the total slope in l_y (through
    the target's own summand too), g the slope in the sum, h the slope in lse where it enters by
    itself; and the size of what the loss is divided by. Heads never subtract two numbers that are
    close when p_y is near 1. Clamps are selections, not ``tl.maximum``: a NaN must come through,
    and on a GPU the maximum drops it.
``sum_kind``
    NO_SUM: phi is not called. AFFINE: phi(l) = l, and the sum comes out of the first sweep.
    HINGE: phi(l) = max(a + l, 0), not called either. The row is swept once more, when its lse is
    known.
    DENSE: any other phi, with such a sweep.
``counts``
    Whether the head reads ``count`` (an AFFINE term always may).

``a, b, c`` are the term's ``scalars()`` (anl_kernels.terms), 0 where there are fewer.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from anl_kernels.backends.triton.numerics import expm1, log1p, power

NO_SUM = tl.constexpr(0)
AFFINE = tl.constexpr(1)
HINGE = tl.constexpr(2)
DENSE = tl.constexpr(3)


class Target(NamedTuple):
    """What a head sees of rows, (BLOCK.n,) each."""

    l: tl.tensor
    p: tl.tensor
    rest: tl.tensor
    """1 - p, from the mass of the other classes."""
    lse: tl.tensor
    log_ratio: tl.tensor
    """log(p / max p), exactly 0 if no other logit is larger."""
    others: tl.tensor
    """The sum of phi over the other classes."""
    count: tl.tensor
    """Their number."""


class Functor(NamedTuple):
    phi: triton.JITFunction
    head: triton.JITFunction
    sum_kind: tl.constexpr
    counts: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether its sum needs the row's lse."""
        return bool(self.sum_kind.value >= HINGE.value)


@triton.jit
def phi_none(l, p, a, b, c):
    return tl.zeros_like(l), tl.zeros_like(l)


@triton.jit
def phi_log(l, p, a, b, c):
    return l, tl.full(l.shape, 1.0, l.dtype)


@triton.jit
def hinge(u):
    """max(u, 0) and its slope; a NaN stays one."""
    value = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return value, tl.where(u < 0, 0.0, 1.0).to(u.dtype)


@triton.jit
def phi_negative_log_bounded(l, p, offset, ceiling, c):
    above = l > ceiling
    u = offset + tl.where(above, ceiling, l)
    below = u < 0
    return tl.where(below, 0.0, u), tl.where(below | above, 0.0, 1.0).to(l.dtype)


@triton.jit
def phi_focal(l, p, gamma, b, c):
    weight = power(1 - p, gamma)
    return -weight * l, -weight


@triton.jit
def phi_focal_true(l, p, gamma, b, c):
    weight, slope = focal_true(l, p, complement_of(l, p), gamma)
    return -weight * l, slope


@triton.jit
def phi_negative_focal(l, p, gamma, clamp, largest):
    weight = power(1 - p, gamma)
    inside = ~(l < -clamp)
    return tl.where(inside, largest + weight * l, 0.0), tl.where(inside, weight, 0.0)


@triton.jit
def phi_negative_focal_true(l, p, gamma, clamp, largest):
    weight, slope = focal_true(l, p, complement_of(l, p), gamma)
    inside = ~(l < -clamp)
    return tl.where(inside, largest + weight * l, 0.0), tl.where(inside, -slope, 0.0)


@triton.jit
def phi_clamped_prob(l, p, factor, min_prob, c):
    below = p < min_prob
    return factor * tl.where(below, min_prob, p), tl.where(below, 0.0, factor * p)


@triton.jit
def phi_generalised(l, p, q, floor, c):
    below = l < floor
    x = q * tl.where(below, floor, l)
    return -expm1(x), tl.where(below, 0.0, -q * tl.exp(x))


@triton.jit
def phi_square(l, p, a, b, c):
    return p * p, 2 * p * p


@triton.jit
def phi_entropy(l, p, a, b, c):
    """Without a slope, as the next: their sums are constants to the gradient."""
    return -p * l, tl.zeros_like(l)


@triton.jit
def phi_concentration(l, p, a, b, c):
    return p * p, tl.zeros_like(l)


@triton.jit
def complement_of(l, p):
    """1 - p; where p is close to 1 that has lost the digits that l still has.

    They come back as those of expm1 do in numerics.py, with the exponential that is there already.
    """
    inner = (p > 0.5) & (p < 1)
    lost = l / tl.log(tl.where(inner, p, 0.5))
    return tl.where(inner, (1 - p) * lost, tl.where(p < 1, 1 - p, -l))


@triton.jit
def focal_true(l, p, complement, gamma):
    """(1-p)^gamma and the derivative of -(1-p)^gamma l in l, which tends to 0 as p tends to 1."""
    x = tl.where(complement < 1e-35, 1e-35, complement)
    weight = power(x, gamma)
    return weight, weight * (gamma * p * (l / x) - 1)


@triton.jit
def quotient(v, slope, others):
    """(loss, c, g, size of the total) of v / (v + others); v is the target's summand.

    1 and flat where both are 0.
    """
    total = v + others
    empty = total == 0
    inverse = 1 / tl.where(empty, 1.0, total)
    # Equal to the total: also where both are infinite, whose quotient would be NaN.
    share = tl.where(v == total, 1.0, v * inverse)
    rest = tl.where((others == total) & ~empty, 1.0, others * inverse)
    size = tl.where(total < 0, -total, total)
    return share, slope * rest * inverse, -tl.where(empty, 0.0, share) * inverse, size


@triton.jit
def complement_quotient(v, slope, others):
    """The same of 1 - v / (v + others), without the subtraction."""
    _, c, g, size = quotient(v, slope, others)
    total = v + others
    return others / tl.where(total == 0, 1.0, total), -c, -g, size


@triton.jit
def lone(loss, c):
    """What a head returns that has no sum."""
    return loss, c, tl.zeros_like(loss), tl.zeros_like(loss), 1.0


@triton.jit
def head_ce(y, a, b, c):
    return lone(-y.l, tl.full(y.l.shape, -1.0, y.l.dtype))


@triton.jit
def head_ce_smoothed(y, smoothing, b, c):
    g = -smoothing / (y.count + 1)
    kept = 1 - smoothing
    return g * (y.l + y.others) - kept * y.l, g - kept, g, tl.zeros_like(y.l), 1.0


@triton.jit
def head_nce(y, a, b, c):
    loss, slope, g, total = quotient(y.l, tl.full(y.l.shape, 1.0, y.l.dtype), y.others)
    return loss, slope, g, tl.zeros_like(y.l), total


@triton.jit
def head_nnce(y, offset, b, c):
    u, slope = hinge(offset + y.l)
    loss, slope, g, total = complement_quotient(u, slope, y.others)
    return loss, slope, g, tl.zeros_like(y.l), total


@triton.jit
def head_nnce_bounded(y, offset, ceiling, c):
    u, slope = phi_negative_log_bounded(y.l, y.p, offset, ceiling, c)
    loss, slope, g, total = complement_quotient(u, slope, y.others)
    return loss, slope, g, tl.zeros_like(y.l), total


@triton.jit
def head_fl(y, gamma, b, c):
    weight = power(y.rest, gamma)
    return lone(-weight * y.l, -weight)


@triton.jit
def head_fl_true(y, gamma, b, c):
    weight, slope = focal_true(y.l, y.p, y.rest, gamma)
    return lone(-weight * y.l, slope)


@triton.jit
def head_nfl(y, gamma, b, c):
    weight = power(y.rest, gamma)
    loss, slope, g, total = quotient(-weight * y.l, -weight, y.others)
    return loss, slope, g, tl.zeros_like(y.l), total


@triton.jit
def head_nfl_true(y, gamma, b, c):
    weight, slope = focal_true(y.l, y.p, y.rest, gamma)
    loss, slope, g, total = quotient(-weight * y.l, slope, y.others)
    return loss, slope, g, tl.zeros_like(y.l), total


@triton.jit
def head_nnfl(y, gamma, clamp, largest):
    weight = power(y.rest, gamma)
    inside = ~(y.l < -clamp)
    u = tl.where(inside, largest + weight * y.l, 0.0)
    loss, slope, g, total = complement_quotient(u, tl.where(inside, weight, 0.0), y.others)
    return loss, slope, g, tl.zeros_like(y.l), total


@triton.jit
def head_nnfl_true(y, gamma, clamp, largest):
    weight, slope = focal_true(y.l, y.p, y.rest, gamma)
    inside = ~(y.l < -clamp)
    u = tl.where(inside, largest + weight * y.l, 0.0)
    loss, slope, g, total = complement_quotient(u, tl.where(inside, -slope, 0.0), y.others)
    return loss, slope, g, tl.zeros_like(y.l), total


@triton.jit
def head_mae(y, a, b, c):
    return lone(y.rest, -y.p)


@triton.jit
def head_gce(y, q, floor, c):
    v, slope = phi_generalised(y.l, y.p, q, floor, c)
    return lone(v / q, slope / q)


@triton.jit
def head_rce(y, factor, min_prob, c):
    return lone(factor * y.rest, -factor * y.p)


@triton.jit
def head_rce_clamped(y, factor, min_prob, c):
    return y.others, tl.zeros_like(y.l), tl.full(y.l.shape, 1.0, y.l.dtype), tl.zeros_like(y.l), 1.0


@triton.jit
def head_agce(y, a, q, c):
    loss = -power(a + 1, q) * expm1(q * log1p(-y.rest / (a + 1))) / q
    return lone(loss, -power(a + y.p, q - 1) * y.p)


@triton.jit
def head_aul(y, a, q, c):
    loss = power(a - 1, q) * expm1(q * log1p(y.rest / (a - 1))) / q
    return lone(loss, -power(a - 1 + y.rest, q - 1) * y.p)


@triton.jit
def head_ael(y, a, b, c):
    loss = tl.exp(-y.p / a)
    return lone(loss, -(y.p / a) * loss)


@triton.jit
def head_dft(y, a, b, c):
    return lone(-y.p * y.l, -y.p)


@triton.jit
def head_ngce(y, q, floor, c):
    v, slope = phi_generalised(y.l, y.p, q, floor, c)
    loss, slope, g, total = quotient(v, slope, y.others)
    return loss, slope, g, tl.zeros_like(y.l), total


@triton.jit
def head_amse(y, a, b, c):
    g = 1 / (y.count + 1)
    miss = (1 - a) - y.rest  # p_y - a
    return (y.others + miss * miss) * g, 2 * y.p * miss * g, g, tl.zeros_like(y.l), 1.0


@triton.jit
def head_relative_gce(y, q, b, c):
    weight = tl.exp(q * y.log_ratio)
    return lone(-weight * y.l, -weight)


@triton.jit
def epsilon_softmax(y, m, floor):
    """log p' at the target, p' = (p + m [k is an argmax]) / (1 + m), and its slope in log p."""
    total = 1 + m
    prob = (y.p + m) / total
    is_top = y.log_ratio == 0
    # Of the two the one that keeps its digits.
    of_top = tl.where(prob < 0.5, tl.log(prob), log1p(-y.rest / total))
    l = tl.where(is_top, of_top, y.l - log1p(m))
    below = l < floor
    slope = tl.where(is_top, y.p / (y.p + m), 1.0)
    return tl.where(below, floor, l), tl.where(below, 0.0, slope)


@triton.jit
def head_epsilon_ce(y, m, floor, c):
    l, slope = epsilon_softmax(y, m, floor)
    return lone(-l, -slope)


@triton.jit
def head_epsilon_fl(y, m, gamma, floor):
    l, slope = epsilon_softmax(y, m, floor)
    weight = power(-expm1(l), gamma)
    return lone(-weight * l, -weight * slope)


@triton.jit
def between(p, lowest, highest, value):
    """A value where p is between two, 0 outside."""
    return tl.where((p < lowest) | (p > highest), 0.0, value)


@triton.jit
def head_prob_between(y, lowest, highest, c):
    return lone(between(y.p, lowest, highest, y.rest), between(y.p, lowest, highest, -y.p))


@triton.jit
def head_log_between(y, lowest, highest, c):
    slope = tl.full(y.l.shape, -1.0, y.l.dtype)
    return lone(between(y.p, lowest, highest, -y.l), between(y.p, lowest, highest, slope))


@triton.jit
def head_eaft(y, alpha, unit, c):
    entropy = y.others + tl.where(y.p == 0, 0.0, -y.p * y.l)
    weight = power(entropy / unit, alpha)
    return lone(-weight * y.l, -weight)


@triton.jit
def head_deft(y, a, b, c):
    q = y.others + y.p * y.p
    return lone(-expm1(q * y.l) / q, -tl.exp(q * y.l))


@triton.jit
def head_zloss(y, a, b, c):
    return y.lse * y.lse, tl.zeros_like(y.l), tl.zeros_like(y.l), 2 * y.lse, 1.0


# Terms of weight 0, whose losses are what is asked for beside a loss (terms/probes.py). They are
# finite where the row's loss is: 0 times infinity would be NaN.
@triton.jit
def head_entropy(y, a, b, c):
    entropy = y.others + tl.where(y.p == 0, 0.0, -y.p * y.l)
    return lone(entropy, tl.zeros_like(y.l))


@triton.jit
def head_log_prob(y, a, b, c):
    return lone(tl.where(y.l < -1e38, -1e38, y.l), tl.zeros_like(y.l))


FUNCTORS = {
    "ce": Functor(phi_none, head_ce, NO_SUM),
    "ce_smoothed": Functor(phi_log, head_ce_smoothed, AFFINE),
    "nce": Functor(phi_log, head_nce, AFFINE),
    "nnce": Functor(phi_none, head_nnce, HINGE),
    "nnce_bounded": Functor(phi_negative_log_bounded, head_nnce_bounded, DENSE),
    "fl": Functor(phi_none, head_fl, NO_SUM),
    "fl_true": Functor(phi_none, head_fl_true, NO_SUM),
    "nfl": Functor(phi_focal, head_nfl, DENSE),
    "nfl_true": Functor(phi_focal_true, head_nfl_true, DENSE),
    "nnfl": Functor(phi_negative_focal, head_nnfl, DENSE),
    "nnfl_true": Functor(phi_negative_focal_true, head_nnfl_true, DENSE),
    "mae": Functor(phi_none, head_mae, NO_SUM),
    "gce": Functor(phi_none, head_gce, NO_SUM),
    "rce": Functor(phi_none, head_rce, NO_SUM),
    "rce_clamped": Functor(phi_clamped_prob, head_rce_clamped, DENSE),
    "agce": Functor(phi_none, head_agce, NO_SUM),
    "aul": Functor(phi_none, head_aul, NO_SUM),
    "ael": Functor(phi_none, head_ael, NO_SUM),
    "dft": Functor(phi_none, head_dft, NO_SUM),
    "ngce": Functor(phi_generalised, head_ngce, DENSE),
    "amse": Functor(phi_square, head_amse, DENSE, counts=True),
    "relativegce": Functor(phi_none, head_relative_gce, NO_SUM),
    "epsilonce": Functor(phi_none, head_epsilon_ce, NO_SUM),
    "epsilonfl": Functor(phi_none, head_epsilon_fl, NO_SUM),
    "prob_between": Functor(phi_none, head_prob_between, NO_SUM),
    "log_between": Functor(phi_none, head_log_between, NO_SUM),
    "eaft": Functor(phi_entropy, head_eaft, DENSE),
    "deft": Functor(phi_concentration, head_deft, DENSE),
    "zloss": Functor(phi_none, head_zloss, NO_SUM),
    "entropy": Functor(phi_entropy, head_entropy, DENSE),
    "log_prob": Functor(phi_none, head_log_prob, NO_SUM),
}
