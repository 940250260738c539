"""PyTorch's compiler, CUDA graphs, and blocks that are fused where they are loaded."""
