"""Documents of committed results: plots, a README for each device, a section of the README."""

from benchmarks.report.documents import (
    has_results,
    make_ready,
    read,
    stale,
    write_folder,
    write_section,
)

__all__ = ["has_results", "make_ready", "read", "stale", "write_folder", "write_section"]
