"""Verification of a bundle: runs of the reference model that a build records, and engines compared with them."""
