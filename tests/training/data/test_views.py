"""A view as one function: drawn at once as one by one, and compiled whole."""

import pytest
import torch

from byol.training.data.augment import draw, params_of, random_numbers, render
from byol.training.data.view_config import ViewConfig
from byol.training.data.views import Framing, make_view

EVERYTHING = ViewConfig(solarize=0.2, vertical_flip=0.3, cutout=(0.2, 0.4))
LAYOUT = torch.channels_last
FRAMING = Framing(torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.2), LAYOUT)


def batch(count=6, side=20):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.linspace(0.5, 2.0, count)


@pytest.mark.parametrize("config", [ViewConfig(), EVERYTHING], ids=["usual", "everything"])
@pytest.mark.parametrize("world", [1, 3])
def test_numbers_drawn_at_once_are_those_drawn_one_by_one(config, world):
    """Runs of earlier versions, which drew each by itself, go on to the same bits on a CPU."""
    count, generator = 7, torch.Generator().manual_seed(3)
    numbers = random_numbers(config, count, torch.Generator().manual_seed(3), world)
    box = [(11, 2), (2,)]
    shapes = [(), (4,), (), *box, (), (4,), (), (), ()]
    shapes += [(), *box] if config is EVERYTHING else []
    one_by_one = [torch.rand((world * count, *shape), generator=generator) for shape in shapes]
    assert torch.equal(numbers, torch.cat([part.flatten() for part in one_by_one]))
    rank = world - 1
    params = params_of(config, batch(count)[1], numbers, rank, world)
    flips = one_by_one[5][rank * count :]
    assert torch.equal(params.flip, flips < config.flip)
    assert torch.equal(params.order, one_by_one[6][rank * count :].argsort(dim=1))


def test_a_view_is_drawn_rendered_normalised_and_covered():
    pixels, aspect = batch()
    numbers = random_numbers(EVERYTHING, len(aspect), torch.Generator().manual_seed(1))
    view = make_view(EVERYTHING, pixels, aspect, numbers, 16, FRAMING)
    params = draw(EVERYTHING, aspect, torch.Generator().manual_seed(1))
    plain = (render(EVERYTHING, pixels.permute(0, 3, 1, 2), params, 16) - 0.5) / 0.2
    hidden = view == 0
    assert torch.equal(view[~hidden], plain[~hidden])
    assert 0.1 < hidden.float().mean() < 0.5
    assert make_view(ViewConfig(), pixels, aspect, numbers[: 38 * 6], 16, FRAMING).is_contiguous(memory_format=LAYOUT)


@pytest.mark.parametrize("config", [ViewConfig(), EVERYTHING], ids=["usual", "everything"])
def test_a_view_is_one_graph_without_a_generator(config):
    """Compiled, the hundreds of operations of a view are some kernels; a graph break would keep them apart."""
    torch._dynamo.reset()
    compiled = torch.compile(make_view, dynamic=False, fullgraph=True, backend="eager")
    pixels, aspect = batch()
    for size in (16, 12):
        numbers = random_numbers(config, len(aspect), torch.Generator().manual_seed(size))
        arguments = (config, pixels, aspect, numbers, size, FRAMING)
        torch.testing.assert_close(compiled(*arguments), make_view(*arguments))
