"""Losses of rows with several labels: soft targets, two labels, weights of smoothed classes."""
