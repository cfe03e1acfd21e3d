import sys
from dataclasses import replace

import pytest

from benchmarks.plots import draw, planned, source
from benchmarks.plots.bars import CUT, memory_panel, time_panel
from benchmarks.plots.captions import left_out
from benchmarks.plots.curves import _apart, curves, short
from benchmarks.plots.select import in_view, peers, time_unit, typical
from benchmarks.plots.style import COLOURS, Palette
from benchmarks.results import Measurement
from tests.benchmarks.samples_for_plots import TIMES, failing, rows_run, sample, sized, timed

MAX_BYTES = 120_000


def names(run):
    return [plot.name for plot in planned(run)]


def scaling_run():
    return sample(
        *(timed(2**20 // k, k, table="classes") for k in (10, 1000, 10**5)),
        *(timed(n, 1000, table="rows") for n in (1, 64, 4096)),
        suite="scaling",
    )


@pytest.mark.parametrize("make", [rows_run, scaling_run], ids=["rows", "scaling"])
def test_plots_are_small_files_that_name_their_source(make, tmp_path):
    pytest.importorskip("matplotlib")
    run = make()
    paths = draw(run, tmp_path / "new")
    assert [path.name for path in paths] == names(run)
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < MAX_BYTES
        assert source(run).encode() in content


def test_a_run_with_gaps_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    cases = [failing(timed(64, k), "cross_entropy") for k in (1000, 32000)]
    cases[0] = failing(failing(cases[0], "official"), "copy")
    assert [path.name for path in draw(sample(*cases), tmp_path)] == [
        "rows-throughput.png",
        "rows-speedup.png",
    ]


def test_bars_are_drawn_for_any_suite(tmp_path):
    pytest.importorskip("matplotlib")
    layered = timed(512, 32000, problem={"hidden": 64}, roofline=None)
    run = sample(layered, sized(512, 32000), suite="linear")
    assert [path.name for path in draw(run, tmp_path)] == ["linear-main.png", "linear-memory.png"]


def test_plots_without_cases_are_left_out():
    assert names(rows_run()) == ["rows-throughput.png", "rows-speedup.png", "rows-memory.png"]
    assert names(scaling_run()) == ["scaling-classes.png", "scaling-rows.png"]
    assert names(sample()) == names(sample(suite="scaling")) == names(sample(suite="train")) == []
    # A single point is no line; alone, overhead is no throughput.
    assert names(sample(timed(64, 32000))) == ["rows-speedup.png"]
    assert names(sample(timed(128, 10), timed(8, 100))) == ["rows-speedup.png"]


def test_memory_of_one_size_is_bars_and_may_come_from_the_main_table():
    assert names(sample(sized(1024, 32000))) == ["rows-memory.png"]
    assert names(sample(sized(1024, 32000, table="main"))) == ["rows-memory.png"]


def test_many_panels_make_several_files():
    cases = [timed(8, k, problem={"hidden": 8}) for k in range(10, 20)]
    assert names(sample(*cases, suite="linear")) == ["linear-main-1.png", "linear-main-2.png"]


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw(rows_run(), tmp_path)
    assert names(rows_run())


def test_typical_cases():
    run = rows_run()
    assert {case.regime for case in typical(run.of_table("main"))} == {"default"}
    odd = [timed(8, 10, regime="warm", problem={"sigma": sigma}) for sigma in (1.0, 5.0)]
    assert typical(odd) == odd[:1]
    assert typical([]) == []


def test_a_contender_has_one_colour_and_ours_stands_out():
    times = {"softmax": 1.0, "copy": 0.5, "softmax_liger": 2.0, "another": 3.0, "third": 3.0}
    case = timed(8, 10, times, ours="softmax")
    palette = Palette([case, timed(8, 10)])
    assert palette.colour("softmax") == palette.colour("ours") == COLOURS["ours"]
    assert palette.colour("softmax_liger") == COLOURS["liger"]
    assert len({palette.colour(name) for name in [*TIMES, "another", "third"]}) == len(TIMES) + 2


def test_peers_are_neither_the_roofline_nor_the_library():
    assert [m.contender for m in peers(timed(8, 10))] == ["cross_entropy", "compiled", "official"]


def test_a_plot_that_is_full_shows_the_library_and_whoever_is_faster():
    times = {f"peer{i}": 2.0 for i in range(20)} | {"rival": 1.0} | TIMES
    (case,), unseen = in_view([failing(timed(8, 10, times), "official")], 7)
    assert {m.contender for m in case.measurements} == {
        "ours", "rival", "copy", "ours_inplace", "cross_entropy", "compiled", "peer0",
    }  # fmt: skip
    assert unseen == [f"peer{i}" for i in range(1, 20)]
    assert left_out(unseen[:2]) == "In the tables only: peer1; peer2."
    assert in_view([timed(8, 10)], 7) == ([timed(8, 10)], [])


@pytest.mark.parametrize(("ours", "unit"), [(0.4, (1e3, "µs")), (4.0, (1.0, "ms"))])
def test_the_unit_is_that_of_ours(ours, unit):
    assert time_unit([timed(8, 10, {"ours": ours, "official": 40.0})]) == unit


def test_curves_have_figures_in_order_and_leave_failures_out():
    def milliseconds(case, measurement):
        spread = measurement.milliseconds
        return spread and (spread.p10, spread.median, spread.p90)

    few, many = timed(64, 32000), failing(timed(64, 1000), "official")
    lines = {c.contender: c for c in curves([few, many], lambda p: p.classes, milliseconds)}
    assert [x for x, _ in lines["ours"].points] == [1000, 32000]
    assert [x for x, _ in lines["official"].points] == [32000]
    assert lines["ours"].points[0][1] == pytest.approx((1.225, 1.25, 1.275))
    assert lines["copy"].is_roofline
    assert lines["ours"].is_ours


def test_labels_are_moved_apart_and_stay_in_order():
    places = _apart([0.5, 0.1, 0.52, 0.51], 0.1)
    assert sorted(places) == [places[i] for i in (1, 0, 3, 2)]
    gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert min(gaps) >= 0.0999


def test_labels_stay_beside_the_axes():
    places = _apart([0.0, 0.0, 0.02, 0.03, 1.0, 1.0], 0.1)
    assert min(places) >= 0
    assert max(places) <= 1
    gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert min(gaps) >= 0.0999


def test_disturbed_points_are_hollow():
    pytest.importorskip("matplotlib")
    cases = [timed(64, k, taken_by_others=0.2 * (k > 1000)) for k in (1000, 32000)]
    lines = curves(cases, lambda p: p.classes, lambda case, m: (1.0, 2.0, 3.0))
    assert {tuple(line.disturbed) for line in lines} == {(1,)}
    (plot, _) = planned(sample(*cases))
    figure = plot.paint()
    hollow = [o for o in figure.axes[0].lines if o.get_markerfacecolor() == "white"]
    assert [list(points.get_xdata()) for points in hollow] == [[32000]] * len(lines)
    assert "Hollow points" in figure.get_supxlabel()
    plain = planned(sample(*cases[:1], timed(64, 32000)))[0].paint()
    assert "Hollow points" not in plain.get_supxlabel()


@pytest.mark.parametrize(("count", "text"), [(10, "10"), (1000, "1k"), (2.5e6, "2.5M")])
def test_counts_on_axes(count, text):
    assert short(count) == text


def test_bars_have_units_factors_and_a_roofline():
    panel = time_panel(timed(128, 32000), 1e3, "µs")
    roofline, ours, *_, official = panel.bars
    assert (roofline.is_roofline, roofline.value, roofline.text) == (True, 1000.0, "1000 µs")
    assert (ours.value, ours.text) == (1250.0, "1250 µs")
    assert official.text == "100000 µs (80 x)"
    assert panel.limit == 1000 * CUT
    assert panel.has_cut_bars
    assert panel.title == "128 x 32000 float32"


def test_the_roofline_is_the_least_time_or_a_bar_like_others():
    half = time_panel(timed(8, 10, floor=0.5, problem={"phase": "inference"}), 1, "ms")
    assert (half.bars[0].label, half.bars[0].value) == ("0.5 x copy of the logits", 0.5)
    assert half.title == "8 x 10 float32, inference"
    unknown = time_panel(replace(timed(8, 10), floor=None), 1, "ms")
    assert not any(bar.is_roofline for bar in unknown.bars)
    assert "copy" in [bar.contender for bar in unknown.bars]


def test_bars_of_memory():
    case = sized(1024, 1024, {"ours": 1.0, "official": 12.0, "ours_inplace": -0.001})
    case.measurements.append(Measurement("compiled", "compiled", error="no"))
    panel = memory_panel(case)
    assert [bar.value for bar in panel.bars] == [4.0, 48.0, 0.0]
    assert panel.bars[1].text == "48 MiB (12 x)"
