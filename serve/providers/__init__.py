"""What computes a graph besides ONNX Runtime's own CPU provider: CUDA, and providers from other packages."""
