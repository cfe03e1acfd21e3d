import re
import sys

import pytest

from benchmarks import tables
from benchmarks.files import write
from benchmarks.plots import planned, source
from benchmarks.report import __main__ as command
from benchmarks.report import documents, make_ready, stale, write_folder, write_section
from benchmarks.results import Results
from tests.benchmarks.samples_for_plots import TIMES, rows_run, sample, sized, timed

README = "# Title\n\n<!-- performance: begin -->\n<!-- performance: end -->\n\nAfter.\n"


@pytest.fixture(autouse=True)
def _tables(monkeypatch):
    """Stand in for the tables of the suites, which have tests of their own."""
    monkeypatch.setattr(tables, "render", lambda run: f"# {run.suite}: title\n\n## A table\n")


def stand_in_draw(run, folder):
    """Files that say what they were drawn from; drawing takes time and has tests of its own."""
    paths = [folder / plot.name for plot in planned(run)]
    for path in paths:
        path.write_bytes(picture(source(run)))
    return paths


def picture(origin):
    """The start of a PNG as plots have it."""
    return b"\x89PNG tEXtSource\0" + origin.encode()


@pytest.fixture
def _undrawn(monkeypatch):
    monkeypatch.setattr(documents, "draw", stand_in_draw)


@pytest.fixture
def tree(tmp_path):
    """A README and the results of one device."""
    folder = tmp_path / "results" / "a-cpu"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text(README)
    (folder / "rows.json").write_text(rows_run().to_json())
    small = timed(1, 10, {"ours": 0.2, "cross_entropy": 0.1}, roofline=None)
    (folder / "overhead.json").write_text(sample(small, suite="overhead").to_json())
    return tmp_path


def arguments(tree, *more):
    return [*more, "--readme", str(tree / "README.md"), "--results", str(tree / "results")]


def section_of(tree):
    write_section(tree / "README.md", tree / "results")
    return (tree / "README.md").read_text()


def cells_of(text, start):
    (row,) = (line for line in text.splitlines() if re.sub(" +", " ", line).startswith(start))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_round_trip(tree, capsys):
    pytest.importorskip("matplotlib")
    assert command.main(arguments(tree, "--check")) == 1
    assert command.main(arguments(tree)) == 0
    assert stale(tree / "README.md", tree / "results") == []
    capsys.readouterr()
    assert command.main(arguments(tree, "--check")) == 0
    assert capsys.readouterr().out == ""
    written = (tree / "README.md").read_text()
    assert written.startswith("# Title\n\n<!-- performance: begin -->\n### a CPU, 2 threads")
    assert written.endswith("<!-- performance: end -->\n\nAfter.\n")
    for link in re.findall(r"\]\(([^)]+)\)", written):
        assert (tree / link).exists(), link
    folder = tree / "results" / "a-cpu"
    document = (folder / "README.md").read_text()
    assert "\n## rows: title\n" in document
    assert "\n### A table\n" in document
    for link in re.findall(r"\]\(([^)]+)\)", document):
        assert (folder / link).exists(), link

    for path in folder.glob("*.png"):
        assert documents.SOURCE.search(path.read_bytes()[: documents.BEFORE_PIXELS])

    # A digit that somebody typed
    (tree / "README.md").write_text(written.replace("1.25", "1.24", 1))
    assert stale(tree / "README.md", tree / "results") == [f"{tree / 'README.md'}: performance"]
    assert command.main(arguments(tree, "--check")) == 1
    assert "README.md: performance" in capsys.readouterr().out


@pytest.mark.usefixtures("_undrawn")
def test_what_is_out_of_date_in_a_folder(tree):
    command.main(arguments(tree))
    folder = tree / "results" / "a-cpu"
    (folder / "rows-memory.png").unlink()
    (folder / "rows-old.png").write_bytes(picture("0" * 64))
    (folder / "photo.png").write_bytes(b"\x89PNG tEXtSource\0A camera")
    (folder / "README.md").write_text(f"older, {documents.ORIGIN}")
    run = sample(*rows_run().cases, commit="fedcba9876543210", threads=2)
    (folder / "rows.json").write_text(run.to_json())
    found = "\n".join(stale(tree / "README.md", tree / "results"))
    assert f"{tree / 'README.md'}: performance" in found
    assert f"{folder / 'README.md'}" in found
    assert "rows-memory.png: missing" in found
    assert "rows-speedup.png: drawn from other results" in found
    assert "rows-old.png: not a plot of these results" in found
    write_folder(folder)
    write_section(tree / "README.md", tree / "results")
    assert stale(tree / "README.md", tree / "results") == []
    assert not (folder / "rows-old.png").exists()
    assert (folder / "photo.png").exists()


def test_the_section_has_the_figures_of_the_file(tree):
    text = section_of(tree)
    row = cells_of(text, "| 1024 x 32000 | float32 ")
    assert row == [
        "1024 x 32000", "float32", "1.25", "80%", "5 (4 x / 4 x)", "6 (4.8 x / 4.8 x)",
        "100 (80 x / 80 x)",
    ]  # fmt: skip
    assert "F.cross_entropy (does less)" in text
    assert cells_of(text, "| official ANL, eager ")[1:] == [
        "188 MiB (12.00 x)",
        "1500 MiB (12.00 x)",
    ]
    assert "commit 0123456" in text
    assert "2026-01-02" in text
    assert "`make bench` makes them anew" in text


def test_the_section_shows_where_others_are_faster(tree):
    text = section_of(tree)
    assert cells_of(text, "| 128 x 10 | float32 ")[4] == "0.5 (0.4 x / 0.4 x)"
    faster = [line for line in text.splitlines() if line.startswith("Faster than anl_kernels")]
    assert "F.cross_entropy (does less) at 128 x 10 float32 (0.4 x)" in faster[0]
    assert "at 1 x 10 float32 (0.5 x)" in faster[1]
    assert "median µs" in text


def test_a_case_that_is_lost_with_the_other_allocator_is_shown(tree):
    times = TIMES | {"compiled": 1.0}
    cases = [timed(16, 77, TIMES), timed(16, 77, times, regime="warm"), timed(1024, 32000)]
    (tree / "results" / "a-cpu" / "rows.json").write_text(sample(*cases).to_json())
    assert cells_of(section_of(tree), "| 16 x 77 ")[5] == "6 (4.8 x / 0.8 x)"


def test_a_disturbed_case_is_marked(tree):
    case = timed(1024, 32000, taken_by_others=0.5)
    (tree / "results" / "a-cpu" / "rows.json").write_text(sample(case).to_json())
    assert "| 1024 x 32000 (disturbed) |" in section_of(tree)


def test_columns_are_the_contenders_that_are_there(tree):
    gpu = sample(
        timed(8192, 32768, {"copy": 1.0, "ours": 1.1, "liger": 2.0, "quack": 1.5}),
        sized(8192, 32768, {"ours": 1.0}),
    )
    gpu.arguments["device"] = "cuda"
    gpu.environment["machine"]["gpu"] = {"name": "A GPU"}
    folder = tree / "results" / "b-gpu"
    folder.mkdir()
    (folder / "rows.json").write_text(gpu.to_json())
    text = section_of(tree)
    assert "### A GPU" in text
    (headings,) = (line for line in text.splitlines() if re.search("dtype.*liger", line))
    assert [cell.strip() for cell in headings.strip("|").split("|")][4:] == ["liger", "quack"]
    assert text.index("### a CPU") < text.index("### A GPU")


def test_many_losses_are_counted(tree):
    slow = {"ours": 1.0, "cross_entropy": 0.5}
    cases = [timed(1, k, slow | {"cross_entropy": 1 / k}, roofline=None) for k in range(2, 12)]
    run = sample(*cases, suite="overhead")
    (tree / "results" / "a-cpu" / "overhead.json").write_text(run.to_json())
    assert "F.cross_entropy (does less) in 10 of 10 cases (0.0909 x to 0.5 x)" in section_of(tree)


def test_a_readme_without_a_place_is_an_error(tree, capsys):
    (tree / "README.md").write_text("# Title\n")
    with pytest.raises(ValueError, match="must have the lines <!-- performance: begin -->"):
        write_section(tree / "README.md", tree / "results")
    assert command.main(arguments(tree, "--check")) == 2
    assert "must have the lines" in capsys.readouterr().err


def test_no_results(tmp_path):
    (tmp_path / "README.md").write_text(README)
    assert "There are no results yet." in section_of(tmp_path)  # not even the folder
    assert command.main(arguments(tmp_path, "--check")) == 0
    (tmp_path / "results" / "a-cpu").mkdir(parents=True)
    assert command.main(arguments(tmp_path, "--check")) == 0


def test_a_readme_of_somebody_else_is_kept(tree):
    folder = tree / "results" / "a-cpu"
    (folder / "README.md").write_text("# Mine\n")
    for refuse in (write_folder, make_ready):
        with pytest.raises(ValueError, match=r"README\.md is not a report"):
            refuse(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"


@pytest.mark.usefixtures("_undrawn")
def test_other_files_are_nobodys_business(tree):
    folder = tree / "results" / "a-cpu"
    (folder / "notes.json").write_text("{")
    write_folder(folder)
    (folder / "rows.json").write_text(sample(suite="rolls").to_json())
    with pytest.raises(ValueError, match=r"rows\.json: not a file of results: .* 'rolls'"):
        write_folder(folder)


def test_a_file_is_written_at_once(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    write(file, "one")
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(file, "two")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one"]


def test_without_matplotlib_the_tables_are_written(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = tree / "results" / "a-cpu"
    with pytest.raises(ImportError, match="pip install matplotlib"):
        write_folder(folder)
    assert (folder / "README.md").exists()
    assert command.main(arguments(tree)) == 2


@pytest.mark.usefixtures("_undrawn")
def test_only_the_folders_that_are_named_are_written(tree):
    other = tree / "elsewhere"
    other.mkdir()
    (other / "rows.json").write_text(Results.to_json(rows_run()))
    assert command.main([str(other), *arguments(tree)]) == 0
    assert (other / "rows-speedup.png").exists()
    assert not (tree / "results" / "a-cpu" / "README.md").exists()
