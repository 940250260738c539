"""From an exported ONNX graph to what a bundle holds. One module a backend, behind `builders.base.Builder`."""
