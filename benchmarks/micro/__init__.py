"""Contenders one by one, under pytest-benchmark, to be compared from commit to commit.

    python -m pytest benchmarks/micro --benchmark-autosave
    python -m pytest benchmarks/micro --benchmark-compare

Without ``-n``: side by side they would measure each other. Contenders that are to be compared with
each other are better measured in turns, which is what ``python -m benchmarks`` does.
"""
