"""Comparison of the policies of a run: paired statistics by prompt, in words, tables, a chart and a sheet."""
