"""Measures the library against its peers: ``python -m benchmarks rows --help``."""
