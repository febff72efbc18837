"""Encoders: torchvision's ResNets and timm's models, without their classifiers."""
