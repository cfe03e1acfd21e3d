"""The CPU backend: C++ kernels, compiled for several instruction sets."""
