"""Load, soak and simulation of the image server."""
