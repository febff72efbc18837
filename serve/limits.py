"""Numbers and names that the command line needs before ONNX Runtime is loaded."""

VARIANT_NAMES = ("auto", "fp32", "fp16", "int8", "bf16")
PART_IMAGES = 16_384  # of a folder's part: 134 MB of features at D = 2048
