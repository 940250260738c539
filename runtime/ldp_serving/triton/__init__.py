"""Bundles behind Triton Inference Server: a model repository, and the model that its Python backend runs."""
