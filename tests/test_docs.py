"""The documents are true: their Python blocks run, their tables agree with the code."""

import ast
import functools
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch

from anl_kernels.options import LossOptions
from anl_kernels.terms import REGISTRY

ROOT = Path(__file__).parents[1]
README, MATH = ROOT / "README.md", ROOT / "docs" / "math.md"
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
DOCUMENTS = [README, *OTHERS, *sorted((ROOT / "docs").glob("*.md"))]
over_documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@pytest.fixture
def _registry():
    """A term that a document defines is gone afterwards."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.mark.usefixtures("_registry")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's, of its own modules
@over_documents
def test_python_blocks_run(path, monkeypatch):
    # Tracing is what a document can get wrong; Inductor would add half a minute and a C++ compiler.
    compile_traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_traced)
    text = path.read_text(encoding="utf-8")
    namespace = {"__name__": path.stem}
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block[1], str(path), "exec", dont_inherit=True)
        exec(code, namespace)


@over_documents
def test_every_fence_is_closed_and_every_file_exists(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"(?<![\w/])(?:anl_kernels|tests|docs)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists(), name


def test_the_readme_lists_every_term_with_its_defaults():
    listed = {}
    for signature in re.findall(r"^\| `([A-Z]\w*\(.*?\))` \|", README.read_text("utf-8"), re.M):
        call = ast.parse(signature, mode="eval").body
        required = {name.id: MISSING for name in call.args}
        defaults = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        listed[call.func.id] = required | defaults
    assert listed == {
        name: {field.name: field.default for field in fields(term)}
        for name, term in REGISTRY.items()
    }


def test_the_readme_lists_every_keyword():
    rows = re.findall(r"^\| `(\w+)=\S+` \|", README.read_text("utf-8"), re.M)
    assert {row for row in rows if row.islower()} == set(LossOptions.__annotations__)


def test_the_table_of_the_algebra_has_every_term():
    rows = re.findall(r"^\| (\w+)(?:, [^|]*)? \|", MATH.read_text("utf-8"), re.M)
    assert set(REGISTRY) <= set(rows)


def test_figures_are_those_of_the_committed_results():
    """``python -m benchmarks.report`` makes the documents anew."""
    from benchmarks.report import stale

    assert stale() == []
