"""Engines of PyTorch's compiler."""
