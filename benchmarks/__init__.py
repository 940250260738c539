"""Measurements: scripts, raw results, and the pages that are made of them."""
