"""The zoo: its comparison knows a right result from wrong ones, and its page is what its JSON says."""

import copy

import pytest
import torch
from torch import nn

from benchmarks import silenced, timing, zoo_page


def network(grouped: bool) -> nn.Module:
    torch.manual_seed(0)
    middle = nn.Conv2d(8, 8, 3, padding=1, groups=2 if grouped else 1)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), middle, nn.Flatten(), nn.Linear(128, 5)]
    made = nn.Sequential(*layers)
    silenced.draw_constants(made)
    return made.eval()


@torch.no_grad()
def cut(model: nn.Module, kept: list[int]) -> nn.Module:
    """Return a network whose first layer keeps these channels: by hand, without any pruning code."""
    smaller = copy.deepcopy(model)
    first, norm, _, middle, *_ = smaller
    first.weight, first.bias = nn.Parameter(first.weight[kept]), nn.Parameter(first.bias[kept])
    smaller[1] = nn.BatchNorm2d(len(kept))
    for name, value in norm.state_dict().items():
        getattr(smaller[1], name).copy_(value[kept] if value.ndim else value)
    width = 8 // middle.groups
    inner = sorted({channel % width for channel in kept})
    middle.weight = nn.Parameter(middle.weight[:, inner])
    middle.in_channels = len(kept)
    return smaller.eval()


@pytest.mark.parametrize(("grouped", "kept"), [(False, [0, 2, 3, 7]), (True, [0, 3, 4, 7]), (False, [5])])
def test_a_right_cut_is_equal_to_the_silenced_original(grouped: bool, kept: list[int]) -> None:
    dense = network(grouped)
    found = silenced.compare(dense, cut(dense, kept), (3, 6, 6))
    assert found.difference < 1e-13
    assert found.moved > 0.01
    assert silenced.narrower(dense, cut(dense, kept)) == (1, 3)


def test_wrong_cuts_are_found() -> None:
    dense = network(False)
    shifted = cut(dense, [0, 2, 3, 7])
    shifted[1].bias = nn.Parameter(dense[1].bias[[1, 2, 3, 7]])  # the norm lost another channel
    assert silenced.compare(dense, shifted, (3, 6, 6)).difference > 1e-3
    retrained = cut(dense, [0, 2, 3, 7])
    retrained[3].weight = nn.Parameter(retrained[3].weight + 1e-3)
    with pytest.raises(silenced.IncomparableError, match=r"^3: "):
        silenced.compare(dense, retrained, (3, 6, 6))


def test_the_page_is_what_the_json_says() -> None:
    assert zoo_page.PAGE.read_text(encoding="utf-8") == zoo_page.render(timing.RESULTS)
