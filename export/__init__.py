"""From a run to a bundle: ONNX and safetensors files, verified against torch. Needs the `train` extra."""
