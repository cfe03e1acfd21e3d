"""What row kernels share: addressing, labels, the sums of a row, its head, its gradient.

Letters: N rows, K classes; z logits, y label, l = log p, p; n row indices (BLOCK.n,), k class
indices (BLOCK.k,). Every index that meets a stride is int64 by then; k itself is int32, to keep
registers. Structs are in structs.py; ``P`` is what ``numerics.scalar`` reads: for term t its weight
at 4 t, then its three scalars. The algebra is in docs/math.md.

"Others" are the classes of a row but its target: kernels load the target's logit by itself and
see -inf in its column, as they do past K and for classes that are not there.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from anl_kernels.backends.triton.numerics import log1p, scalar
from anl_kernels.backends.triton.terms import AFFINE, DENSE, Target

NUM_SAVED = tl.constexpr(4)  # m, log_s, the target's gradient, q; then one slope for each term


class Rows(NamedTuple):
    """The rows of a program, (BLOCK.n,) each."""

    n: tl.tensor
    exist: tl.tensor
    z: tl.tensor
    """Pointers to the logits of class 0."""
    valid: tl.tensor
    """Whose label is not ignored."""
    loaded: tl.tensor
    """Whose logits are read."""
    y: tl.tensor
    """The target's class, -1 where there is none."""


class Softmax(NamedTuple):
    """lse = m + log_s; rest = 1 - p_y; log_ratio = log(p_y / max p)."""

    m: tl.tensor
    log_s: tl.tensor
    l_y: tl.tensor
    p_y: tl.tensor
    rest: tl.tensor
    log_ratio: tl.tensor


class Slopes(NamedTuple):
    """The gradient is gy at the target and, at another class, sum_t G_t phi_t'(l) - q p."""

    gy: tl.tensor
    q: tl.tensor
    G: tuple


@triton.jit
def rows_of_program(SHAPE, BLOCK: tl.constexpr):
    """(rows, which exist)."""
    n = tl.program_id(0).to(tl.int64) * BLOCK.n + tl.arange(0, BLOCK.n)
    return n, n < SHAPE.N


@triton.jit
def unlabelled_rows(Z, SHAPE, n, exist, loaded):
    """Rows in which every class is one of the others."""
    z = row_pointers(Z, SHAPE, n)
    return Rows(n, exist, z, loaded, loaded, tl.full(n.shape, -1, tl.int32))


@triton.jit
def labelled_rows(z, Y, SHAPE, IGNORE, n, exist, ALL_ROWS: tl.constexpr):
    """Rows with their labels; ignored ones are loaded if ALL_ROWS are."""
    valid, y = load_labels(Y, SHAPE, IGNORE, n, exist)
    return Rows(n, exist, z, valid, exist if ALL_ROWS else valid, y)


@triton.jit
def load_labels(Y, SHAPE, IGNORE, n, exist):
    """(rows that are not ignored, the targets' classes).

    An ignored row has no target, and a label outside [0, K) is never an address: y = -1.
    """
    label = tl.load(Y + n, mask=exist, other=IGNORE).to(tl.int64)
    valid = exist & (label != IGNORE)
    return valid, tl.where(valid & (label >= 0) & (label < SHAPE.K), label, -1).to(tl.int32)


@triton.jit
def row_pointers(T, SHAPE, n):
    """Pointers to class 0 of rows n."""
    return T.data + (n // SHAPE.M) * T.stride_b + (n % SHAPE.M) * T.stride_m


@triton.jit
def tile_pointers(T, SHAPE, n, k):
    """Pointers to rows n and classes k."""
    return row_pointers(T, SHAPE, n)[:, None] + k.to(tl.int64)[None, :] * T.stride_k


@triton.jit
def load_others(Z, rows, k, stop, ACC: tl.constexpr):
    """Tile (BLOCK.n, BLOCK.k) of logits with -inf at the target and from class ``stop`` on.

    The target is taken out after the load: in the mask it would break the load into single
    elements.
    """
    mask = rows.loaded[:, None] & (k < stop)[None, :]
    pointers = rows.z[:, None] + k.to(tl.int64)[None, :] * Z.stride_k
    z = tl.load(pointers, mask=mask, other=-float("inf")).to(ACC)
    return tl.where(k[None, :] == rows.y[:, None], -float("inf"), z)


@triton.jit
def load_target(Z, rows, SHARD: tl.constexpr, ACC: tl.constexpr):
    """The targets' logits.

    That of a label outside [0, K) reads -inf in a shard, where it is another's; else NaN, which
    makes the row's loss and gradient NaN. That of an ignored row reads -inf.
    """
    elsewhere: tl.constexpr = -float("inf") if SHARD else float("nan")
    there = rows.y >= 0
    z_y = tl.load(rows.z + rows.y.to(tl.int64) * Z.stride_k, mask=there, other=elsewhere).to(ACC)
    return tl.where(rows.valid, z_y, -float("inf"))


@triton.jit
def any_of(mask):
    """Whether any row of a program is in a mask."""
    return tl.max(mask.to(tl.int32), 0) > 0


@triton.jit
def anchor(Z, rows, z_y, start, stop, SAMPLES: tl.constexpr, ACC: tl.constexpr):
    """A logit of the row that linear sums are taken relative to, so that no offset cancels.

    The largest of the target's and ``SAMPLES`` others in [start, stop): one alone may be masked by
    a number far below all the rest. The row's maximum would do better, and cost the sweep its
    registers.
    """
    z_0 = z_y
    for i in tl.static_range(SAMPLES):
        k = start + (stop - start) // (SAMPLES + 1) * (i + 1)
        k = tl.where(rows.y == k, start, k).to(tl.int64)
        other = tl.load(rows.z + k * Z.stride_k, mask=rows.loaded, other=-float("inf")).to(ACC)
        z_0 = tl.maximum(other, z_0)
    return or_zero(z_0)


@triton.jit
def or_zero(z):
    """A logit to subtract: 0 for one that is not there, lest -inf - -inf be NaN."""
    return tl.where(z == -float("inf"), 0.0, z)


@triton.jit
def normalise(m_others, mass, z_y):
    """The row's softmax from its others: their maximum, and their sum of exp(z - m_others).

    ``rest`` is out of the others' mass, never out of 1 - exp(l_y). Guards compare with 0 so that
    a NaN stays one.
    """
    m = tl.maximum(m_others, z_y)
    m = tl.where(m == -float("inf"), 0.0, m)  # a row that is not loaded, or empty of classes
    mass = tl.where(mass == 0, mass, mass * tl.exp(m_others - m))
    d_y = z_y - m
    e_y = tl.exp(d_y)
    near = e_y > mass
    larger = tl.where(near, e_y, mass)
    larger = tl.where(larger == 0, 1.0, larger)
    tail = log1p(tl.where(near, mass, e_y) / larger)
    log_s = tl.where(near, d_y, tl.log(larger)) + tail
    l_y = tl.where(near, -tail, d_y - log_s)
    total = e_y + mass
    return Softmax(m, log_s, l_y, e_y / total, mass / total, d_y)


@triton.jit
def scalars(P, t: tl.constexpr, ACC: tl.constexpr):
    """The hyper-parameters of term t."""
    return scalar(P, 4 * t + 1, ACC), scalar(P, 4 * t + 2, ACC), scalar(P, 4 * t + 3, ACC)


@triton.jit
def add_dense(S, D, z, softmax, P, TERMS: tl.constexpr, ACC: tl.constexpr):
    """S and D, one accumulator for each dense term, plus a tile's values and slopes of phi."""
    l = (z - softmax.m[:, None]) - softmax.log_s[:, None]
    p = tl.exp(l)
    there = z > -float("inf")
    values = ()
    slopes = ()
    for t in tl.static_range(len(TERMS.each)):
        if TERMS.each[t].sum_kind == DENSE:
            a, b, c = scalars(P, t, ACC)
            value, slope = TERMS.each[t].phi(l, p, a, b, c)
            values = values + (S[TERMS.each[t].slot] + tl.where(there, value, 0.0),)
            slopes = slopes + (D[TERMS.each[t].slot] + tl.where(there, slope, 0.0),)
    return values, slopes


@triton.jit
def full_tile(value, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of one value. Triton 3.6 takes no number out of a struct into a shape."""
    N: tl.constexpr = BLOCK.n
    K: tl.constexpr = BLOCK.k
    return tl.full((N, K), value, DTYPE)


@triton.jit
def zero_tiles(count: tl.constexpr, BLOCK: tl.constexpr):
    """A tuple of ``count`` accumulators."""
    tiles = ()
    for _ in tl.static_range(count):
        tiles = tiles + (full_tile(0, BLOCK, BLOCK.acc),)
    return tiles


@triton.jit
def sum_tiles(tiles):
    """The row sums of a tuple of tiles."""
    sums = ()
    for i in tl.static_range(len(tiles)):
        sums = sums + (tl.sum(tiles[i], 1),)
    return sums


@triton.jit
def finish_rows(OUT, W, rows, softmax, linear, S, D, P, TERMS: tl.constexpr, ACC: tl.constexpr):
    """Run the heads, store a row's results, and return its slopes.

    ``linear`` is (sum of z - anchor over the others, their number, anchor); S and D are the sums
    of the dense terms' values and slopes.
    """
    m, log_s, l_y, p_y, rest, log_ratio = softmax
    others_sum, count, z_0 = linear
    loss = tl.zeros_like(l_y)
    by_target = tl.zeros_like(l_y)  # slope in l_y, all told
    by_lse = tl.zeros_like(l_y)  # slope that p_y carries at the target, less its own
    G = ()
    for t in tl.static_range(len(TERMS.each)):
        others = tl.zeros_like(l_y)
        slopes = tl.zeros_like(l_y)
        if TERMS.each[t].sum_kind == DENSE:
            others, slopes = S[TERMS.each[t].slot], D[TERMS.each[t].slot]
        if TERMS.each[t].sum_kind == AFFINE:
            others, slopes = others_sum - count * ((m - z_0) + log_s), count
        a, b, c = scalars(P, t, ACC)
        target = Target(l_y, p_y, rest, m + log_s, log_ratio, others, count)
        term_loss, c_t, g_t, h_t, denominator = TERMS.each[t].head(target, a, b, c)
        if TERMS.each[t].balanced:
            # Of a sum that is infinite, as an absent label makes it, slopes are 0, as without.
            w = tl.where(denominator == float("inf"), 0.0, denominator)
            c_t, g_t, h_t = w * c_t, w * g_t, w * h_t
        weight = scalar(P, 4 * t, ACC)
        if W is not None:
            weight = tl.load(W + t).to(ACC)
        loss += weight * term_loss
        by_target += weight * c_t
        by_lse += weight * (h_t - g_t * slopes)
        G = G + (weight * g_t,)
        if OUT.term_losses is not None:
            at = OUT.term_losses + rows.n * len(TERMS.each) + t
            tl.store(at, tl.where(rows.valid, term_loss, 0.0), mask=rows.exist)
        if OUT.denominators is not None:
            at = OUT.denominators + rows.n * len(TERMS.each) + t
            tl.store(at, tl.where(rows.valid, denominator, 0.0), mask=rows.exist)
        if OUT.term_slopes is not None:
            own, lse = weight * c_t, weight * (h_t - g_t * slopes)
            at = OUT.term_slopes + 2 * (rows.n * len(TERMS.each) + t)
            tl.store(at, tl.where(rows.valid, own * rest + lse * p_y, 0.0), mask=rows.exist)
            tl.store(at + 1, tl.where(rows.valid, own - lse, 0.0), mask=rows.exist)
    made = Slopes(by_target * rest + by_lse * p_y, by_target - by_lse, G)
    tl.store(OUT.row_losses + rows.n, tl.where(rows.valid, loss, 0.0), mask=rows.exist)
    if OUT.saved is not None:
        store_saved(OUT.saved, rows, softmax, made)
    if OUT.lse is not None:
        tl.store(OUT.lse + rows.n, m + log_s, mask=rows.exist)
    if OUT.p_y is not None:
        tl.store(OUT.p_y + rows.n, tl.where(rows.valid, p_y, 0.0), mask=rows.exist)
    return made


@triton.jit
def store_saved(SAVED, rows, softmax, slopes):
    """Keep what the gradient of a row needs beside its logits: (N, NUM_SAVED + T)."""
    row = SAVED + rows.n * (NUM_SAVED + len(slopes.G))
    tl.store(row, softmax.m, mask=rows.exist)
    tl.store(row + 1, softmax.log_s, mask=rows.exist)
    tl.store(row + 2, slopes.gy, mask=rows.exist)
    tl.store(row + 3, slopes.q, mask=rows.exist)
    for t in tl.static_range(len(slopes.G)):
        tl.store(row + NUM_SAVED + t, slopes.G[t], mask=rows.exist)


@triton.jit
def load_saved(SAVED, rows, T: tl.constexpr):
    """(m, log_s, slopes) of valid rows as :func:`store_saved` left them."""
    row = SAVED + rows.n * (NUM_SAVED + T)
    m = tl.load(row, mask=rows.valid, other=0.0)
    log_s = tl.load(row + 1, mask=rows.valid, other=0.0)
    gy = tl.load(row + 2, mask=rows.valid, other=0.0)
    q = tl.load(row + 3, mask=rows.valid, other=0.0)
    G = ()
    for t in tl.static_range(T):
        G = G + (tl.load(row + NUM_SAVED + t, mask=rows.valid, other=0.0),)
    return m, log_s, Slopes(gy, q, G)


@triton.jit
def gradient_tile(rows, z, k, m, log_s, slopes, P, TERMS: tl.constexpr, ACC: tl.constexpr):
    """(gradient of the unscaled row loss, probabilities) of logits that are -inf at the target."""
    l = (z - m[:, None]) - log_s[:, None]
    p = tl.exp(l)
    slope = tl.zeros(z.shape, ACC)
    for t in tl.static_range(len(TERMS.each)):
        if TERMS.each[t].sum_kind == AFFINE:
            slope += slopes.G[t][:, None]
        if TERMS.each[t].sum_kind == DENSE:
            a, b, c = scalars(P, t, ACC)
            _, term_slope = TERMS.each[t].phi(l, p, a, b, c)
            slope += slopes.G[t][:, None] * term_slope
    others = tl.where(z != -float("inf"), slope - slopes.q[:, None] * p, 0.0)  # a NaN stays one
    return tl.where(k[None, :] == rows.y[:, None], slopes.gy[:, None], others), p


@triton.jit
def load_scale(SCALE, n, mask, ACC: tl.constexpr):
    """The factors of the rows' gradients; SCALE = (pointer, stride 0 or 1)."""
    return tl.load(SCALE[0] + n * SCALE[1], mask=mask, other=0.0).to(ACC)


@triton.jit
def scaled(grad, rows, scale):
    """An ignored row has no scale worth reading: select, lest 0 * NaN come out."""
    return tl.where(rows.valid[:, None], grad * scale[:, None], 0.0)


@triton.jit
def load_tile(T, SHAPE, pointers, mask_n, k, ACC: tl.constexpr):
    """Tile (BLOCK.n, BLOCK.k) of T with zeros outside, from pointers to class 0."""
    mask = mask_n[:, None] & (k < SHAPE.K)[None, :]
    at = k.to(tl.int64)[None, :] * T.stride_k
    return tl.load(pointers[:, None] + at, mask=mask, other=0.0).to(ACC)


@triton.jit
def store_tile(T, SHAPE, n, mask_n, k, values):
    """Write a tile of T, rounded to its dtype."""
    mask = mask_n[:, None] & (k < SHAPE.K)[None, :]
    tl.store(tile_pointers(T, SHAPE, n, k), values.to(T.data.dtype.element_ty), mask=mask)


@triton.jit
def store_outputs_tile(
    GRAD, PROBS, SHAPE, rows, z, k, softmax, slopes, scale, P,
    TERMS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write what is asked for of a tile: its scaled gradient, its probabilities."""
    grad, p = gradient_tile(rows, z, k, softmax.m, softmax.log_s, slopes, P, TERMS, ACC)
    if GRAD.data is not None:
        store_tile(GRAD, SHAPE, rows.n, rows.exist, k, scaled(grad, rows, scale))
    if PROBS.data is not None:
        p = tl.where(k[None, :] == rows.y[:, None], softmax.p_y[:, None], p)
        store_tile(PROBS, SHAPE, rows.n, rows.exist, k, p)
