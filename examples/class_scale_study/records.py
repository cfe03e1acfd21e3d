"""The JSON file of a study, written after every run; what is in it is not run again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import commit, machine, versions, write_json

from .corpus import read
from .train import Run


class Study:
    """What a study has found so far.

    Args:
        path: its file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {"environments": [], "sources": {}, "runs": []}
        self.read()

    def read(self) -> None:
        """Take what its file has by now."""
        if self.path.exists():
            self.record = json.loads(self.path.read_text("utf-8"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing, and go on from what they have written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # until it is closed
            self.read()
            yield
        finally:
            os.close(directory)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Its runs, each with its arguments under "run"."""
        return self.record["runs"]

    def has(self, run: Run) -> bool:
        """Whether it has been run."""
        return any(Run(**record["run"]) == run for record in self.runs)

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Note a run and where it took place, and write the file."""
        with self.alone():
            self.note(run, result)
            self.write()

    def note(self, run: Run, result: dict[str, Any]) -> None:
        """Note a run and where it took place."""
        environment = {
            "commit": commit(),
            "versions": versions("numpy", "matplotlib"),
            "machine": machine(),
        }
        if environment not in self.record["environments"]:
            self.record["environments"].append(environment)
        place = self.record["environments"].index(environment)
        tokens = read(run.source, run.max_files)
        self.record["sources"][run.source] = {
            "files": tokens.num_files,
            "tokens": len(tokens.ids),
            "distinct": tokens.num_distinct,
        }
        self.runs.append({"run": asdict(run), "environment": place, **result})

    def write(self) -> None:
        """Write the file; a reader never meets half of it."""
        beside = self.path.with_suffix(".part")
        write_json(beside, self.record)
        beside.replace(self.path)
