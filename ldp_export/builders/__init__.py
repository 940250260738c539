"""Builders, one module per backend: each turns exported ONNX graphs into the files that a bundle ships.

All of them follow `builders.base.Builder`.
"""
