"""Files that are whole, or not there."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile


def write(path: Path, text: str) -> None:
    """Write a file at once: what ends this process meanwhile leaves the earlier one as it was."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def make_writable(folder: Path) -> None:
    """Make a folder, if need be.

    Raises:
        OSError: no file can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass
