"""Build script: the metadata lives in pyproject.toml.

The C++ extensions of csrc/ are declared here when they exist.
"""

from setuptools import setup

setup()
