"""Architectures in a manifest: one tagged entry per family, with what the runtime needs to know of a model."""
