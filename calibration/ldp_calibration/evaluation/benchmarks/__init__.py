"""Benchmarks: sets of prompts, those of this package, those that others publish, and files of the user."""
