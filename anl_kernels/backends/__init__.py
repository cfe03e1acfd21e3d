"""What computes rows: the reference, kernels, and the choice between them."""
