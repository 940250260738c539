"""Fused blocks of Infinity: their pieces, products, weights and text."""
