"""Measuring large architectures with random weights on a GPU: speed alone."""
