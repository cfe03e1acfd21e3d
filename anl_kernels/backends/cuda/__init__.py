"""The CUDA backend: C++ kernels for NVIDIA GPUs."""
