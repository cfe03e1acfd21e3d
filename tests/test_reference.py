"""The reference has every public name, and the site builds without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import anl_kernels as ak

DOCS = Path(__file__).parents[1] / "docs"


def test_every_public_name_is_in_the_reference():
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", page, re.MULTILINE)
    modules = re.findall(r"^\.\. automodule:: anl_kernels\.(\w+)$", page, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert {*listed, *modules} >= set(ak.__all__) - {"__version__"}
    assert set(listed) <= set(ak.__all__)


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    tree = index.partition("{toctree}")[2].split()
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages <= set(tree)
    assert pages == set(re.findall(r"\]\((\w+)\.md\)", index))


def test_the_site_builds(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    result = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    reference = (tmp_path / "html" / "reference.html").read_text(encoding="utf-8")
    missing = [name for name in ak.__all__ if f"anl_kernels.{name}" not in reference]
    assert missing in ([], ["__version__"])
