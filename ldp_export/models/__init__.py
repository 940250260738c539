"""PyTorch reference models; they read like the papers and load the original checkpoints."""
