"""Networks by name, their weights, and pruned networks on disk and as ONNX."""
