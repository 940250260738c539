"""Graphs that are exported, each a thin wrapper of the reference model, and their export to ONNX."""
