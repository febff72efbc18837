"""ResNets as TensorFlow and Haiku build them: strided layers padded at the end ("SAME"), not on both sides.

Weights trained this way give other features in torchvision's own model. Parameters have torchvision's names and shapes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 32  # of the image size: then every strided layer sees an even size, for which the padding below is right


class SameConv2d(nn.Conv2d):
    """A strided convolution over an even size: kernel - stride zeros, the smaller half of them before."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, H / stride, W / stride)."""
        total = max(self.kernel_size[0] - self.stride[0], 0)
        before, after = total // 2, total - total // 2
        padded = F.pad(x, (before, after, before, after))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SameMaxPool2d(nn.Module):
    """3x3 with stride 2 over an even size. Zeros stand for what is outside: it comes after a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), not negative, to (B, C, H / 2, W / 2)."""
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), kernel_size=3, stride=2)


def pad_at_the_end(resnet: nn.Module) -> None:
    """Change a torchvision ResNet's strided convolutions and its max-pool in place."""
    for module in list(resnet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride[0] > 1:
                kernel, stride = child.kernel_size[0], child.stride[0]
                setattr(module, name, SameConv2d(child.in_channels, child.out_channels, kernel, stride, bias=False))
    resnet.maxpool = SameMaxPool2d()
