"""``python -m benchmarks.worker < JOB``: the process of a job; one JSON record a line."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Print what the job's function yields."""
    # Whatever else prints, compilers for one, goes to stderr and not between the records.
    with os.fdopen(os.dup(1), "w") as records:
        os.dup2(2, 1)
        module, _, name = job["function"].partition(":")
        for record in getattr(importlib.import_module(module), name)(**job["arguments"]):
            print(json.dumps(asdict(record)), file=records, flush=True)


if __name__ == "__main__":
    main(json.load(sys.stdin))
