"""Penalties beside the loss of rows: of parameters, and of the batch."""
