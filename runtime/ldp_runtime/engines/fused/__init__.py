"""Infinity's blocks as a GPU likes them: fused pieces that PyTorch compiles where the bundle is loaded."""
