"""What is exported, one module a graph, each a thin view on the reference model; and the way to ONNX."""
