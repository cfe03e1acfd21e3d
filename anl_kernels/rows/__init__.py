"""Losses of rows of logits: arguments, the autograd Functions, and their operators."""
