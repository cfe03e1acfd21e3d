"""Row kernels in Triton, for NVIDIA and AMD GPUs (and the interpreter)."""
