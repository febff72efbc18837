"""The views of BYOL as batched tensor code: random parameters for every image, branches for none.

`draw` makes all random numbers of a batch; `render` turns uint8 images and those numbers into a view. `render` is a
pure function of tensors, so it compiles, and tests can give it chosen parameters.

Crop, flip and resize are two small matrix products per image, blur two more: dense products are the fastest thing
any device does, and an antialiased bicubic resize by products is exact.

Order (paper appendix B): crop, flip, jitter, grey, blur, solarize, clip.
Legend: B batch, C channels, M canvas pixels, S view pixels, J colour operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from byol.training.data.view_config import ViewConfig

CROP_TRIES = 10
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision and the paper's released code
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class ViewParams:
    """The random numbers of one view of a batch; every tensor has the batch as its first axis.

    `box` (B, 4) left, top, width, height of the crop as shares of the image; `flip`, `grey`, `solarize`,
    `vertical_flip` (B,) bool; `cutout` (B, 4) as `box`, the rectangle that is covered, as shares of the view;
    `amount` (B, J) amounts of brightness, contrast, saturation, hue; `order` (B, J) the operation in each place;
    `sigma` (B,) deviation of the blur in pixels, 0 for none. Without jitter the amounts change nothing.
    """

    box: Tensor
    flip: Tensor
    amount: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor
    solarize: Tensor
    vertical_flip: Tensor
    cutout: Tensor


def random_numbers(config: ViewConfig, count: int, generator: torch.Generator, world: int = 1) -> Tensor:
    """All that a view of `count` images in each of `world` processes draws: flat, uniform in 0 to 1.

    In one call, outside of what is compiled: Inductor takes no generator.
    """
    each = sum(math.prod(shape) for shape in _drawn(config))
    return torch.rand(each * world * count, generator=generator, device=generator.device)


def _drawn(config: ViewConfig) -> list[tuple[int, ...]]:
    """The shapes of what is drawn for an image, in the order of `params_of`."""
    box = [(CROP_TRIES + 1, 2), (2,)]
    # What is drawn only where it is used comes last: runs without it keep the random numbers they always had.
    rare = [*([()] if config.vertical_flip else []), *(box if config.cutout[1] else [])]
    return [(), (4,), (), *box, (), (4,), (), (), (), *rare]


def draw(config: ViewConfig, aspect: Tensor, generator: torch.Generator, rank: int = 0, world: int = 1) -> ViewParams:
    """Random parameters for B images of the given aspect (B,), width / height, on the generator's device.

    With `world` processes, the numbers of all their images are drawn and those of process `rank` kept, so together they
    are what one process would draw.
    """
    numbers = random_numbers(config, len(aspect), generator, world)
    return params_of(config, aspect.to(numbers.device), numbers, rank, world)


def params_of(config: ViewConfig, aspect: Tensor, numbers: Tensor, rank: int = 0, world: int = 1) -> ViewParams:
    """The parameters that `random_numbers` stand for; arguments as of `draw`, on one device."""
    count, shapes = len(aspect), _drawn(config)
    sizes = [math.prod(shape) * world * count for shape in shapes]
    parts: Iterator[tuple[Tensor, tuple[int, ...]]] = iter(zip(torch.split(numbers, sizes), shapes, strict=True))

    def uniform(low: float, high: float) -> Tensor:
        part, shape = next(parts)
        return part.view(world * count, *shape)[rank * count : (rank + 1) * count] * (high - low) + low

    jitter = uniform(0, 1) < config.jitter  # (B,)
    change = uniform(-1, 1) * jitter[:, None]  # (B, J)
    reach = (config.brightness, config.contrast, config.saturation, config.hue)
    neutral = (0.0 if config.additive_brightness else 1.0, 1.0, 1.0, 0.0)
    amount = [n + r * c for n, r, c in zip(neutral, reach, change.unbind(1), strict=True)]
    blurred = uniform(0, 1) < config.blur

    def box(area: tuple[float, float], within: Tensor) -> Tensor:
        return _draw_box(area, config.crop_aspect, within, uniform(0, 1), uniform(0, 1))

    return ViewParams(
        box=box(config.crop_area, aspect),
        flip=uniform(0, 1) < config.flip,
        amount=torch.stack(amount, dim=1),
        order=uniform(0, 1).argsort(dim=1),
        grey=uniform(0, 1) < config.grey,
        sigma=torch.where(blurred, uniform(*config.blur_sigma), 0.0),
        solarize=uniform(0, 1) < config.solarize,
        vertical_flip=uniform(0, 1) < config.vertical_flip if config.vertical_flip else torch.zeros_like(blurred),
        cutout=box(config.cutout, torch.ones_like(aspect)) if config.cutout[1] else aspect.new_zeros((count, 4)),
    )


def _draw_box(
    areas: tuple[float, float], aspects: tuple[float, float], aspect: Tensor, tries: Tensor, place: Tensor
) -> Tensor:
    """Boxes of random area and aspect (B, 4) in images of `aspect` (B,).

    The rule of torchvision's RandomResizedCrop, in shares of the image's width and height: the first of ten tries that
    fits, else the largest central crop.
    """
    low, high = areas
    area = low + (high - low) * tries[..., 0]  # (B, tries)
    low, high = (math.log(value) for value in aspects)
    ratio = torch.exp(low + (high - low) * tries[..., 1]) / aspect[:, None]  # width share / height share
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1)  # (B, tries, 2)
    fits = (size <= 1).all(dim=-1)
    fits[:, -1] = True  # the last try stands for the central crop
    nearest = aspect.clamp(*aspects) / aspect
    size[:, -1] = torch.stack([nearest.clamp(max=1), (1 / nearest).clamp(max=1)], dim=-1)
    first = fits.int().argmax(dim=1)  # (B,)
    size = size[torch.arange(len(size), device=size.device), first]  # (B, 2)
    place = torch.where((first == fits.shape[1] - 1)[:, None], 0.5, place)
    return torch.cat([place * (1 - size), size], dim=1)


def render(config: ViewConfig, images: Tensor, params: ViewParams, size: int) -> Tensor:
    """Turn uint8 images (B, 3, M, M) into one view, float32 (B, 3, size, size) in 0..1.

    What `config` never applies is left out of the computation; all else comes from `params`.
    """
    canvas = images.shape[-1]
    rows = resize_matrix(params.box[:, 1], params.box[:, 3], canvas, size)  # (B, S, M)
    columns = resize_matrix(params.box[:, 0], params.box[:, 2], canvas, size)
    columns = torch.where(params.flip[:, None, None], columns.flip(1), columns)
    if config.vertical_flip:
        rows = torch.where(params.vertical_flip[:, None, None], rows.flip(1), rows)
    view = images.float() / 255
    view = rows[:, None] @ view @ columns[:, None].mT  # (B, 3, S, S)
    view = view.clamp(0, 1)
    if config.jitter:
        view = colour_jitter(view, params.amount, params.order, config.additive_brightness)
    if config.grey:
        view = torch.where(_each(params.grey), luma(view), view)
    if config.blur:
        view = gaussian_blur(view, params.sigma, kernel_size(size))
    if config.solarize:
        view = torch.where(_each(params.solarize) & (view >= 0.5), 1 - view, view)
    return view.clamp(0, 1)


def cut_out(view: Tensor, box: Tensor) -> Tensor:
    """Set a rectangle of each normalised view (B, 3, S, S) to 0, the mean colour; `box` (B, 4) as in `ViewParams`.

    A pixel is covered when its centre is.
    """
    centres = (torch.arange(view.shape[-1], device=view.device) + 0.5) / view.shape[-1]
    left, top, width, height = (column[:, None] for column in box.unbind(1))
    across = (centres >= left) & (centres < left + width)  # (B, S)
    down = (centres >= top) & (centres < top + height)
    return view.masked_fill((down[:, None, :, None] & across[:, None, None, :]), 0.0)


# ------------------------------------------------------------------------------------------------------- geometry


def resize_matrix(start: Tensor, extent: Tensor, source: int, target: int) -> Tensor:
    """Weights (B, target, source) that resample [start, start + extent) of a line to `target` pixels.

    Bicubic (a = -0.5) with antialiasing, the rule of Pillow's `Image.resize` with `box`; start and extent (B,) are
    shares of the line.
    """
    scale = extent * source / target  # (B,) source pixels per target pixel
    support = scale.clamp(min=1)[:, None, None]
    index = torch.arange(target, device=start.device) + 0.5
    centre = (start * source)[:, None] + scale[:, None] * index  # (B, target)
    pixel = torch.arange(source, device=start.device) + 0.5
    distance = (pixel - centre[..., None]) / support  # (B, target, source)
    weights = _cubic(distance)
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, zero from 2 on."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))


def kernel_size(size: int) -> int:
    """A tenth of the view's side, made odd (paper appendix B: 23 for 224), at least 3."""
    return max(3, size // 10 // 2 * 2 + 1)


def gaussian_blur(view: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each image (B, 3, S, S) with its own sigma (B,) in pixels; 0 leaves it. Edges are reflected."""
    matrix = _blur_matrix(sigma, view.shape[-1], kernel)[:, None]  # (B, 1, S, S)
    return matrix @ view @ matrix.mT


def _blur_matrix(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """The blur of a line of `size` pixels as a matrix (B, size, size), with reflection at both ends."""
    offset = torch.arange(kernel, device=sigma.device) - kernel // 2
    weights = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (B, kernel)
    weights = weights / weights.sum(dim=1, keepdim=True)
    source = torch.arange(size, device=sigma.device)[:, None] + offset  # (S, kernel) before reflection
    source = (size - 1) - ((size - 1) - source.abs()).abs()
    target = torch.arange(size, device=sigma.device)
    hits = (source.clamp(0, size - 1)[..., None] == target).to(weights.dtype)  # (S, kernel, S)
    return torch.einsum("bk,skt->bst", weights, hits)


# --------------------------------------------------------------------------------------------------------- colour


def colour_jitter(view: Tensor, amount: Tensor, order: Tensor, additive_brightness: bool) -> Tensor:
    """Brightness, contrast, saturation and hue, each image in its own order, clipped to 0..1 after each.

    Brightness, contrast and saturation are blends, cheap enough to be made in six places with neutral amounts where
    they are not due: three before the hue change and three after it. So the costly hue change is made once.
    """
    hue_place = (order == HUE).int().argmax(dim=1, keepdim=True)  # (B, 1)
    places = torch.arange(4, device=order.device)
    # The three blends in their order, without the hue's place.  (B, 3)
    blends = order.gather(1, places[:3] + (places[:3] >= hue_place).long())
    for place in range(3):
        view = _blend(view, amount, blends[:, place], place < hue_place[:, 0], additive_brightness)
    view = shift_hue(view, amount[:, HUE])
    for place in range(3):
        view = _blend(view, amount, blends[:, place], place >= hue_place[:, 0], additive_brightness)
    return view


def _blend(view: Tensor, amount: Tensor, kind: Tensor, due: Tensor, additive: bool) -> Tensor:
    """Each image's operation (`kind` (B,)): factor * image + (1 - factor) * its grey or mean grey + offset."""
    value = amount.gather(1, kind[:, None])[:, 0]  # (B,)
    brighten = kind == BRIGHTNESS
    factor = torch.where(brighten & additive, 1.0, value)
    offset = torch.where(brighten & additive, value, 0.0)
    grey = luma(view)  # (B, 1, S, S)
    other = torch.where(_each(kind == CONTRAST), grey.mean(dim=(1, 2, 3), keepdim=True), grey)
    other = torch.where(_each(brighten), 0.0, other)
    factor, offset = torch.where(due, factor, 1.0), torch.where(due, offset, 0.0)
    return torch.lerp(other, view, _each(factor)).add(_each(offset)).clamp(0, 1)


def shift_hue(view: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image (B, 3, S, S) by a share (B,) of the colour circle, in HSV."""
    red, green, blue = view.unbind(dim=1)
    high, low = view.amax(dim=1), view.amin(dim=1)
    chroma = high - low  # (B, S, S)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = sector + 6 * shift[:, None, None]
    channels = []
    for position in (5, 3, 1):  # red, green, blue: value - chroma * how far the hue is from the channel
        turn = torch.remainder(sector + position, 6)
        channels.append(high - chroma * torch.minimum(turn, 4 - turn).clamp(0, 1))
    return torch.stack(channels, dim=1)


def luma(view: Tensor) -> Tensor:
    """The grey value of each pixel, (B, 1, S, S)."""
    red, green, blue = LUMA
    return red * view[:, :1] + green * view[:, 1:2] + blue * view[:, 2:3]


def _each(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]
