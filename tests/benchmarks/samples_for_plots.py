"""Runs with figures that can be predicted."""

from dataclasses import replace

from benchmarks.problems import Problem
from benchmarks.results import Case, Measurement, Quantiles, Results

LABELS = {
    "ours": "anl_kernels",
    "ours_inplace": "anl_kernels, inplace=True",
    "copy": "copy of the logits",
    "cross_entropy": "F.cross_entropy (does less)",
    "compiled": "torch.compile of ANL",
    "official": "official ANL, eager",
}
TIMES = {
    "copy": 1.0,
    "ours": 1.25,
    "ours_inplace": 1.0,
    "cross_entropy": 5.0,
    "compiled": 6.0,
    "official": 100.0,
}
SIZES = {"ours": 1.0, "ours_inplace": 0.0, "cross_entropy": 2.0, "official": 12.0}
SHAPES = [(4096, 1000), (1024, 32000), (128, 10)]


def spread(median, width=0.02, samples=50):
    """Quantiles whose 10th and 90th percentiles are ``width`` of the median off it."""
    low, high = median * (1 - width), median * (1 + width)
    return Quantiles(0.9 * low, low, low, median, high, high, 1.1 * high, samples)


def timed(
    rows, classes, times=TIMES, table="main", width=0.02, samples=50, roofline="copy", **facts
):
    """A case of these times, with their ratios to ours and to the roofline."""
    about = {"regime": "default", "taken_by_others": 0.0, "floor": 1.0 if roofline else None}
    problem = Problem(rows, classes, **facts.pop("problem", {}))
    measured = [
        Measurement(
            name,
            LABELS.get(name, name),
            spread(ms, width, samples),
            {base: ms / times[base] for base in ("ours", roofline) if base in times},
        )
        for name, ms in times.items()
    ]
    return Case(
        table=table, problem=problem, measurements=measured, roofline=roofline, **about | facts
    )


def sized(rows, classes, sizes=SIZES, table="memory"):
    """A case of extra memory, over the logits."""
    measured = [Measurement(n, LABELS.get(n, n), ratios={"logits": s}) for n, s in sizes.items()]
    return Case(table, "default", Problem(rows, classes), measured, roofline=None)


def failing(case, name, error="RuntimeError: no"):
    """The case with a contender that could not run."""
    measured = [
        Measurement(m.contender, m.label, error=error) if m.contender == name else m
        for m in case.measurements
    ]
    return replace(case, measurements=measured)


def sample(*cases, suite="rows", commit="0123456789abcdef", **machine):
    """A run of these cases."""
    return Results(
        suite=suite,
        created="2026-01-02T03:04:05+00:00",
        environment={
            "machine": {"cpu": "a CPU", "threads": 2, "isa": "AVX2", "load_average_before": 0.5}
            | machine,
            "versions": {"python": "3.12", "torch": "2.13", "anl_kernels": "0.1"},
            "git": {"commit": commit, "dirty": False},
        },
        arguments={"device": "cpu"},
        backend="cpu",
        checks=[],
        cases=list(cases),
        failures=[],
    )


def rows_run():
    """What the suite of rows leaves behind: two dtypes, two regimes, memory."""
    tiny = TIMES | {"cross_entropy": 0.5}
    return sample(
        *(
            timed(
                *shape,
                tiny if shape == (128, 10) else TIMES,
                regime=regime,
                problem={"dtype": dtype},
            )
            for shape in SHAPES
            for dtype in ("float32", "bfloat16")
            for regime in ("default", "warm")
        ),
        sized(4096, 1000),
        sized(1024, 32000),
    )
