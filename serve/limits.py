"""Numbers and names that the command line needs before ONNX Runtime is loaded."""

VARIANT_NAMES = ("auto", "fp32", "fp16", "int8", "bf16")
PART_IMAGES = 16_384  # of a folder's part: 134 MB of features at D = 2048

THRESHOLD = 0.99  # the least cosine of near-duplicates; docs/duplicates.md has the measurements behind it
LARGEST_THRESHOLD = 0.9999  # beyond it, equal images whose features were computed in other batches would be missed
MOST_PAIRS = 20  # of an image that are listed: a pile of N equal images has N^2 / 2 pairs
