"""Documents of committed results: plots, a README for each device, a section of the README."""

from benchmarks.report.documents import stale, write_folder, write_section

__all__ = ["stale", "write_folder", "write_section"]
