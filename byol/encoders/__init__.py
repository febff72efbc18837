"""Encoders: torchvision's ResNets and timm's models, without their classifiers. Here their names, without torch."""

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "wide_resnet101_2")
TIMM = "timm:"  # before a name of timm's: any of its models, built by `timm_models.py`
STEMS = ("imagenet", "cifar", "cifar-no-relu", "cifar-padded", "imagenet-same")  # the last three: trained elsewhere
