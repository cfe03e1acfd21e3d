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

from anl_kernels.backends.triton.numerics import exp, exp_difference, log1p, scalar
from anl_kernels.backends.triton.terms import AFFINE, DENSE, HINGE, Target, hinge

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
def unlabelled_rows(Z, SHAPE, n, exist, loaded, BLOCK: tl.constexpr):
    """Rows in which every class is one of the others."""
    z = row_pointers(Z, SHAPE, n, BLOCK)
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
def aligned(size, BLOCK: tl.constexpr):
    """A stride or number of classes, so that the compiler sees it is a multiple of BLOCK.align.

    By itself it sees multiples of 16 only, and would load a row of 1000 classes one by one. Of one
    batch, or one position, the stride is anything, and multiplied by 0.
    """
    if BLOCK.align == 1:
        return size
    return size // BLOCK.align * BLOCK.align


@triton.jit
def row_pointers(T, SHAPE, n, BLOCK: tl.constexpr):
    """Pointers to class 0 of rows n."""
    batches = T.data + (n // SHAPE.M) * aligned(T.stride_b, BLOCK)
    return batches + (n % SHAPE.M) * aligned(T.stride_m, BLOCK)


@triton.jit
def tile_pointers(T, rows, first, BLOCK: tl.constexpr):
    """Pointers to the BLOCK.k classes from ``first`` on, from those to class 0 of rows.

    In a sweep of one row what differs between blocks is added to the row, which leaves a constant
    for each class; of many rows that would take two registers for each.
    """
    if BLOCK.n > 1:
        k = (first + tl.arange(0, BLOCK.k)).to(tl.int64)
        return rows[:, None] + k[None, :] * T.stride_k
    start = rows + (tl.zeros((), tl.int64) + first) * T.stride_k
    return start[:, None] + (tl.arange(0, BLOCK.k).to(tl.int64) * T.stride_k)[None, :]


@triton.jit
def tile_mask(rows, first, stop, BLOCK: tl.constexpr):
    """Of such a tile, which is in rows and below ``stop``."""
    return rows[:, None] & (first + tl.arange(0, BLOCK.k) < aligned(stop, BLOCK))[None, :]


@triton.jit
def load_classes(Z, rows, first, stop, BLOCK: tl.constexpr):
    """Tile (BLOCK.n, BLOCK.k) of logits from class ``first`` on, with -inf from ``stop`` on."""
    mask = tile_mask(rows.loaded, first, stop, BLOCK)
    pointers = tile_pointers(Z, rows.z, first, BLOCK)
    return widened(tl.load(pointers, mask=mask, other=-float("inf")), BLOCK)


@triton.jit
def widened(z, BLOCK: tl.constexpr):
    """Logits in the type of all arithmetic.

    A bfloat16 is half of a float32: said in integers, the upper of two takes one instruction.
    """
    if z.dtype == tl.bfloat16:
        bits = z.to(tl.int16, bitcast=True).to(tl.int32) << 16
        return bits.to(tl.float32, bitcast=True)
    return z.to(BLOCK.acc)


@triton.jit
def load_others(Z, rows, first, stop, BLOCK: tl.constexpr):
    """The same with -inf at the target too.

    It is taken out after the load: in the mask it would break the load into single elements.
    """
    z = load_classes(Z, rows, first, stop, BLOCK)
    return tl.where(is_target(rows, first, BLOCK), -float("inf"), z)


@triton.jit
def is_target(rows, first, BLOCK: tl.constexpr):
    """Where a tile has its rows' targets."""
    return (first + tl.arange(0, BLOCK.k))[None, :] == rows.y[:, None]


@triton.jit
def load_block(Z, rows, first, stop, BLOCK: tl.constexpr):
    """The others of a block of a sweep."""
    if all_others(rows, first, stop, BLOCK):
        z = widened(tl.load(tile_pointers(Z, rows.z, first, BLOCK)), BLOCK)
    else:
        z = load_others(Z, rows, first, stop, BLOCK)
    return z


@triton.jit
def all_others(rows, first, stop, BLOCK: tl.constexpr):
    """Whether a block of a sweep is nothing but others of one row, before ``stop``.

    A branch for the block costs less than masks for its classes.
    """
    if BLOCK.n > 1:
        return False
    y = tl.max(rows.y, 0)
    return (first + BLOCK.k <= stop) & ((y < first) | (y >= first + BLOCK.k))


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
    mass = tl.where(mass == 0, mass, mass * exp(m_others - m))
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
def dense_tiles(z, softmax, P, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of every dense term's phi, and one of its slope, as two tuples; 0 where z is -inf."""
    d = z - softmax.m[:, None]
    log_s = softmax.log_s[:, None]
    l, p = d - log_s, probabilities(d, log_s, BLOCK)
    there = z > -float("inf")
    values = ()
    slopes = ()
    for t in tl.static_range(len(TERMS.each)):
        a, b, c = scalars(P, t, BLOCK.acc)
        if TERMS.each[t].sum_kind == HINGE:
            value, slope = hinge(d + (a - log_s))
            values, slopes = values + (value,), slopes + (slope,)
        if TERMS.each[t].sum_kind == DENSE:
            value, slope = TERMS.each[t].phi(l, p, a, b, c)
            values = values + (tl.where(there, value, 0.0),)
            slopes = slopes + (tl.where(there, slope, 0.0),)
    return values, slopes


@triton.jit
def probabilities(d, log_s, BLOCK: tl.constexpr):
    """exp(d - log_s), in a form that all kernels for a tensor share: a clamp of p is one for all.

    One instruction can be saved for a number more of each row, which positions have many of.
    """
    return exp(d - log_s) if BLOCK.class_first else exp_difference(d, log_s)


@triton.jit
def full_tile(value, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of one value. Triton 3.6 takes no number out of a struct into a shape."""
    N: tl.constexpr = BLOCK.n
    K: tl.constexpr = BLOCK.k
    return tl.full((N, K), value, DTYPE)


@triton.jit
def sum_rows(tiles):
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
        if TERMS.each[t].sum_kind >= HINGE:
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
def gradient_tile(z, m, log_s, slopes, P, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """(gradient at the others, their probabilities)."""
    d = z - m[:, None]
    log_s = log_s[:, None]
    l, p = d - log_s, probabilities(d, log_s, BLOCK)
    flat = tl.zeros_like(m)
    for t in tl.static_range(len(TERMS.each)):
        if TERMS.each[t].sum_kind == AFFINE:
            flat += slopes.G[t]
    slope = tl.zeros(z.shape, BLOCK.acc) + flat[:, None]
    for t in tl.static_range(len(TERMS.each)):
        a, b, c = scalars(P, t, BLOCK.acc)
        if TERMS.each[t].sum_kind == HINGE:
            _, term_slope = hinge(d + (a - log_s))
            slope += slopes.G[t][:, None] * term_slope
        if TERMS.each[t].sum_kind == DENSE:
            _, term_slope = TERMS.each[t].phi(l, p, a, b, c)
            slope += slopes.G[t][:, None] * term_slope
    return tl.where(z != -float("inf"), slope - slopes.q[:, None] * p, 0.0), p  # a NaN stays one


@triton.jit
def load_scale(SCALE, n, mask, ACC: tl.constexpr):
    """The factors of the rows' gradients; SCALE = (pointer, stride 0 or 1)."""
    return tl.load(SCALE[0] + n * SCALE[1], mask=mask, other=0.0).to(ACC)


@triton.jit
def scaled(slopes, rows, scale):
    """The slopes of the scaled loss of rows; 0 of an ignored one, which has none worth reading."""
    G = ()
    for t in tl.static_range(len(slopes.G)):
        G = G + (tl.where(rows.valid, slopes.G[t] * scale, 0.0),)
    gy = tl.where(rows.valid, slopes.gy * scale, 0.0)
    return Slopes(gy, tl.where(rows.valid, slopes.q * scale, 0.0), G)


@triton.jit
def load_tile(T, SHAPE, pointers, mask_n, first, BLOCK: tl.constexpr):
    """Tile (BLOCK.n, BLOCK.k) of T with zeros outside, from pointers to class 0."""
    mask = tile_mask(mask_n, first, SHAPE.K, BLOCK)
    return tl.load(tile_pointers(T, pointers, first, BLOCK), mask=mask, other=0.0).to(BLOCK.acc)


@triton.jit
def store_tile(T, SHAPE, n, mask_n, first, values, BLOCK: tl.constexpr):
    """Write a tile of T, rounded to its dtype."""
    mask = tile_mask(mask_n, first, SHAPE.K, BLOCK)
    pointers = tile_pointers(T, row_pointers(T, SHAPE, n, BLOCK), first, BLOCK)
    tl.store(pointers, values.to(T.data.dtype.element_ty), mask=mask)


@triton.jit
def store_block(T, SHAPE, n, first, values, BLOCK: tl.constexpr):
    """The same of a block of a sweep that is in the tensor all over."""
    pointers = tile_pointers(T, row_pointers(T, SHAPE, n, BLOCK), first, BLOCK)
    tl.store(pointers, values.to(T.data.dtype.element_ty))
