"""Calibration of pruning to a quality budget, and the measures of quality it uses."""
