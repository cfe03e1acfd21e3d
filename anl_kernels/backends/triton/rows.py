"""What row kernels share: addressing, labels, the sums of a row, its head, its gradient.

Letters: N rows, K classes; z logits, y label, l = log p; n row indices (BLOCK_N,), k class
indices (BLOCK_K,). Row n of a (B, K, M) view is batch n // M, position n % M. Every index that
meets a stride is int64 by then; k itself is int32, to keep registers. ``P`` is what
``numerics.scalar`` reads: for term t its weight at 4 t, then its three scalars. ``TERMS`` holds
(phi, head, sum_kind, slot, hash of the source) for each term, slot counting the dense ones; the
algebra is in docs/math.md.

"Others" are the classes of a row but its target: kernels load the target's logit by itself and
see -inf in its column, as they do past K and for classes that are not there.
"""

import triton
import triton.language as tl

from anl_kernels.backends.triton.numerics import log1p, scalar
from anl_kernels.backends.triton.terms import AFFINE, DENSE

NUM_SAVED = tl.constexpr(4)  # m, log_s, the target's gradient, q; then one slope for each term


@triton.jit
def row_pointers(T, n, M):
    """Pointers to class 0 of rows n of T = (pointer, batch stride, class stride, stride)."""
    return T[0] + (n // M) * T[1] + (n % M) * T[3]


@triton.jit
def load_others(T, rows, k, y, mask_n, K, ACC: tl.constexpr):
    """Tile (BLOCK_N, BLOCK_K) of logits with -inf at the target and outside the row.

    The target is taken out after the load: in the mask it would break the load into single
    elements.
    """
    mask = mask_n[:, None] & (k < K)[None, :]
    z = tl.load(rows[:, None] + k.to(tl.int64)[None, :] * T[2], mask=mask, other=-float("inf")).to(
        ACC
    )
    return tl.where(k[None, :] == y[:, None], -float("inf"), z)


@triton.jit
def load_labels(Y, n, in_rows, IGNORE):
    """(labels, rows that are not ignored)."""
    label = tl.load(Y + n, mask=in_rows, other=IGNORE).to(tl.int64)
    return label, in_rows & (label != IGNORE)


@triton.jit
def class_of(label, counted, K):
    """The class that a label is, -1 if none: an ignored row has no target."""
    return tl.where(counted & (label >= 0) & (label < K), label, -1).to(tl.int32)


@triton.jit
def load_target(T, Y, rows, n, in_rows, K, IGNORE, SHARD: tl.constexpr, ACC: tl.constexpr):
    """(y, counted, z_y): labels, rows that are not ignored, and the targets' logits.

    A label outside [0, K) is never an address. In a shard it is another's: its logit reads -inf.
    Else its logit reads NaN, which makes the row's loss and gradient NaN. An ignored row has no
    target: its logit reads -inf. All have y = -1.
    """
    elsewhere: tl.constexpr = -float("inf") if SHARD else float("nan")
    label, counted = load_labels(Y, n, in_rows, IGNORE)
    y = class_of(label, counted, K)
    z_y = tl.load(rows + y.to(tl.int64) * T[2], mask=y >= 0, other=elsewhere).to(ACC)
    return y, counted, tl.where(counted, z_y, -float("inf"))


@triton.jit
def anchor(Z, rows, y, z_y, mask_n, start, stop, SAMPLES: tl.constexpr, ACC: tl.constexpr):
    """A logit of the row that linear sums are taken relative to, so that no offset cancels.

    The largest of the target's and ``SAMPLES`` others in [start, stop): one alone may be masked by
    a number far below all the rest. The row's maximum would do better, and cost the sweep its
    registers.
    """
    z_0 = z_y
    for i in tl.static_range(SAMPLES):
        k = start + (stop - start) // (SAMPLES + 1) * (i + 1)
        k = tl.where(y == k, start, k).to(tl.int64)
        other = tl.load(rows + k * Z[2], mask=mask_n, other=-float("inf")).to(ACC)
        z_0 = tl.maximum(other, z_0)
    return or_zero(z_0)


@triton.jit
def or_zero(z):
    """A logit to subtract: 0 for one that is not there, lest -inf - -inf be NaN."""
    return tl.where(z == -float("inf"), 0.0, z)


@triton.jit
def normalise(m_others, mass, z_y):
    """The row's softmax from its others: their maximum, and their sum of exp(z - m_others).

    Returns (m, log_s, l_y, p_y, rest): lse = m + log_s, and rest = 1 - p_y out of the others'
    mass, never out of 1 - exp(l_y). Guards compare with 0 so that a NaN stays one.
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
    return m, log_s, l_y, e_y / total, mass / total


@triton.jit
def phi_of(TERMS: tl.constexpr, t: tl.constexpr, l, p, P, ACC: tl.constexpr):
    """(value, slope) of term t's summand."""
    a, b, c = scalar(P, 4 * t + 1, ACC), scalar(P, 4 * t + 2, ACC), scalar(P, 4 * t + 3, ACC)
    return TERMS[t][0](l, p, a, b, c)


@triton.jit
def add_dense(S, D, z, m, log_s, P, TERMS: tl.constexpr, ACC: tl.constexpr):
    """S and D, one accumulator for each dense term, plus a tile's values and slopes of phi."""
    l = (z - m[:, None]) - log_s[:, None]
    p = tl.exp(l)
    there = z > -float("inf")
    values = ()
    slopes = ()
    for t in tl.static_range(len(TERMS)):
        if TERMS[t][2] == DENSE:
            value, slope = phi_of(TERMS, t, l, p, P, ACC)
            values = values + (S[TERMS[t][3]] + tl.where(there, value, 0.0),)
            slopes = slopes + (D[TERMS[t][3]] + tl.where(there, slope, 0.0),)
    return values, slopes


@triton.jit
def zero_tiles(
    count: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr
):
    """A tuple of ``count`` accumulators."""
    tiles = ()
    for _ in tl.static_range(count):
        tiles = tiles + (tl.zeros((BLOCK_N, BLOCK_K), ACC),)
    return tiles


@triton.jit
def sum_tiles(tiles):
    """The row sums of a tuple of tiles."""
    sums = ()
    for i in tl.static_range(len(tiles)):
        sums = sums + (tl.sum(tiles[i], 1),)
    return sums


@triton.jit
def finish_rows(
    OUT, W, n, in_rows, counted, softmax, linear, S, D, P, TERMS: tl.constexpr, ACC: tl.constexpr
):
    """Run the heads, store a row's results, and return its slopes (gy, q, G).

    ``softmax`` is what :func:`normalise` returned, ``linear`` (sum of z - anchor over the others,
    their number, anchor). The gradient is gy at the target and, at another class,
    sum_t G_t phi_t'(l) - q p. ``OUT`` = (loss, saved, term losses, lse, p_y), each or None.
    """
    m, log_s, l_y, p_y, rest = softmax
    others_sum, count, z_0 = linear
    loss = tl.zeros_like(l_y)
    by_target = tl.zeros_like(l_y)  # slope in l_y, all told
    by_lse = tl.zeros_like(l_y)  # slope that p_y carries at the target, less its own
    G = ()
    for t in tl.static_range(len(TERMS)):
        others = tl.zeros_like(l_y)
        slopes = tl.zeros_like(l_y)
        if TERMS[t][2] == DENSE:
            others, slopes = S[TERMS[t][3]], D[TERMS[t][3]]
        if TERMS[t][2] == AFFINE:
            others, slopes = others_sum - count * ((m - z_0) + log_s), count
        a, b, c = scalar(P, 4 * t + 1, ACC), scalar(P, 4 * t + 2, ACC), scalar(P, 4 * t + 3, ACC)
        term_loss, c_t, g_t, h_t = TERMS[t][1](l_y, p_y, rest, m + log_s, others, count, a, b, c)
        weight = scalar(P, 4 * t, ACC)
        if W is not None:
            weight = tl.load(W + t).to(ACC)
        loss += weight * term_loss
        by_target += weight * c_t
        by_lse += weight * (h_t - g_t * slopes)
        G = G + (weight * g_t,)
        if OUT[2] is not None:
            tl.store(OUT[2] + n * len(TERMS) + t, tl.where(counted, term_loss, 0.0), mask=in_rows)
    gy = by_target * rest + by_lse * p_y
    q = by_target - by_lse
    tl.store(OUT[0] + n, tl.where(counted, loss, 0.0), mask=in_rows)
    if OUT[1] is not None:
        store_saved(OUT[1], n, in_rows, m, log_s, gy, q, G)
    if OUT[3] is not None:
        tl.store(OUT[3] + n, m + log_s, mask=in_rows)
        tl.store(OUT[4] + n, tl.where(counted, p_y, 0.0), mask=in_rows)
    return gy, q, G


@triton.jit
def store_saved(SAVED, n, in_rows, m, log_s, gy, q, G):
    """Keep what the gradient of a row needs beside its logits: (N, NUM_SAVED + T)."""
    row = SAVED + n * (NUM_SAVED + len(G))
    tl.store(row, m, mask=in_rows)
    tl.store(row + 1, log_s, mask=in_rows)
    tl.store(row + 2, gy, mask=in_rows)
    tl.store(row + 3, q, mask=in_rows)
    for t in tl.static_range(len(G)):
        tl.store(row + NUM_SAVED + t, G[t], mask=in_rows)


@triton.jit
def load_saved(SAVED, n, mask, T: tl.constexpr):
    """(m, log_s, (gy, q, G)) as :func:`store_saved` left them."""
    row = SAVED + n * (NUM_SAVED + T)
    m = tl.load(row, mask=mask, other=0.0)
    log_s = tl.load(row + 1, mask=mask, other=0.0)
    gy = tl.load(row + 2, mask=mask, other=0.0)
    q = tl.load(row + 3, mask=mask, other=0.0)
    G = ()
    for t in tl.static_range(T):
        G = G + (tl.load(row + NUM_SAVED + t, mask=mask, other=0.0),)
    return m, log_s, (gy, q, G)


@triton.jit
def gradient_tile(z, k, y, m, log_s, slopes, P, TERMS: tl.constexpr, ACC: tl.constexpr):
    """(gradient of the unscaled row loss, probabilities) on a tile of logits.

    ``z`` is -inf at the target, whose gradient is gy.
    """
    gy, q, G = slopes
    l = (z - m[:, None]) - log_s[:, None]
    p = tl.exp(l)
    slope = tl.zeros(z.shape, ACC)
    for t in tl.static_range(len(TERMS)):
        if TERMS[t][2] == AFFINE:
            slope += G[t][:, None]
        if TERMS[t][2] == DENSE:
            _, term_slope = phi_of(TERMS, t, l, p, P, ACC)
            slope += G[t][:, None] * term_slope
    others = tl.where(z != -float("inf"), slope - q[:, None] * p, 0.0)  # a NaN stays one
    return tl.where(k[None, :] == y[:, None], gy[:, None], others), p


@triton.jit
def store_tile(T, n, M, k, in_rows, K, values):
    """Write a tile of rows n and classes k, rounded to T's dtype."""
    mask = in_rows[:, None] & (k < K)[None, :]
    pointers = row_pointers(T, n, M)[:, None] + k.to(tl.int64)[None, :] * T[2]
    tl.store(pointers, values.to(T[0].dtype.element_ty), mask=mask)


@triton.jit
def store_sweep_tile(
    GRAD,
    PROBS,
    n,
    M,
    z,
    k,
    y,
    in_rows,
    counted,
    K,
    scale,
    softmax,
    slopes,
    P,
    TERMS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write what is asked for of a tile: its scaled gradient, its probabilities."""
    m, log_s, _, p_y, _ = softmax
    grad, p = gradient_tile(z, k, y, m, log_s, slopes, P, TERMS, ACC)
    if GRAD[0] is not None:
        # An ignored row has no scale worth reading: select, lest 0 * NaN come out.
        scaled = tl.where(counted[:, None], grad * scale[:, None], 0.0)
        store_tile(GRAD, n, M, k, in_rows, K, scaled)
    if PROBS[0] is not None:
        store_tile(PROBS, n, M, k, in_rows, K, tl.where(k[None, :] == y[:, None], p_y[:, None], p))
