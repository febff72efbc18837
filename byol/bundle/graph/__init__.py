"""What a bundle's graph may hold, judged before ONNX Runtime sees it."""
