"""Differences between model families at run time: codec, placement and guidance."""
