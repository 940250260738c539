"""Checkpoints: original file layouts in and out, strictly."""
