"""exp, log and their kin as csrc/cpu/math.h has them, to the errors stated there."""

import numpy as np
import pytest

from tests.cpu.elementary import BOUNDS, FUNCTIONS, WIDER, arguments, call

DTYPES = list(WIDER)
wide_enough = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="no type wider than float64 for the truth"
)


@pytest.fixture(scope="module")
def numbers():
    return {dtype: arguments(dtype, 997) for dtype in DTYPES}


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param(
            bound, id=repr(bound), marks=[wide_enough] if bound.dtype == np.float64 else []
        )
        for bound in BOUNDS
    ],
)
def test_errors_are_as_stated(bound, numbers):
    worst, where = bound.worst(numbers[bound.dtype])
    assert worst <= bound.most, f"{worst:.3g} ulp at {where!r}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_at_the_ends(dtype):
    kind = np.finfo(dtype)
    over, under = np.nextafter(np.log(kind.max), dtype(np.inf)), np.log(kind.smallest_subnormal)
    x = np.array([over, 1e4, kind.max, np.inf, under * 1.01, -1e4, -kind.max, -np.inf], dtype)
    assert call("exp", x).tolist() == [np.inf] * 4 + [0] * 4
    assert call("exp", np.array([0.0, -0.0], dtype)).tolist() == [1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_nonpositive_has_no_denormal_tail(dtype):
    """Below 2^-1/2 times the smallest normal number it is 0, and it never rises."""
    end = np.log(np.finfo(dtype).tiny) - np.log(2) / 2
    x = np.linspace(1.001 * end, 0.999 * end, 4001).astype(dtype)
    y = call("exp_nonpositive", x)
    assert not y[x < 1.00001 * end].any()
    assert y[x > 0.99999 * end].all()
    assert (np.diff(y[x > 0.99999 * end]) >= 0).all()
    x = np.array([-1e4, -np.finfo(dtype).max, -np.inf, 0.0, -0.0], dtype)
    assert call("exp_nonpositive", x).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_expm1_at_the_ends(dtype):
    kind = np.finfo(dtype)
    small = np.array([kind.tiny, kind.smallest_subnormal, -kind.tiny, 0, kind.eps / 4], dtype)
    assert np.array_equal(call("expm1", small), small)
    assert call("expm1", np.array([-kind.max, -np.inf, kind.max, np.inf], dtype)).tolist() == [
        *(-1, -1),
        *(np.inf, np.inf),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_logarithms_at_the_ends(dtype):
    kind = np.finfo(dtype)
    assert call("log", np.array([0.0, -0.0, 1, np.inf], dtype)).tolist() == [
        *(-np.inf, -np.inf),
        *(0, np.inf),
    ]
    small = np.array([kind.tiny, kind.smallest_subnormal, -kind.tiny, 0, kind.eps / 4], dtype)
    assert np.array_equal(call("log1p", small), small)
    assert call("log1p", np.array([np.inf], dtype)) == np.inf


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_nan(dtype, name):
    assert np.isnan(call(name, np.array([np.nan, -np.nan], dtype))).all()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_does_not_depend_on_its_neighbours(dtype, name):
    x = np.linspace(-1, 0, 37, dtype=dtype) if name != "log" else np.linspace(0, 3, 37, dtype=dtype)
    x[0] = -0.5 if name == "log1p" else x[0]
    one_by_one = np.concatenate([call(name, x[i : i + 1]) for i in range(len(x))])
    assert np.array_equal(call(name, x), one_by_one)
