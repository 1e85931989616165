"""Families: published sizes, and what is prunable."""

import pytest
import torch

from lpslim.models import family as families
from lpslim.models.storage import dense
from lpslim.pruning import graph

PARAMETERS = {  # (family, name, input shape, classes); more of the literature's are in pruning/test_cost.py
    ("vgg", "vgg19", (3, 32, 32), 10): 20_040_522,
    ("resnet_cifar", "resnet110", (3, 32, 32), 100): 1_733_812,
}


@pytest.mark.parametrize("network", PARAMETERS, ids=lambda network: network[1])
def test_networks_have_their_published_size(network):
    with torch.device("meta"):
        model = dense(*network).build()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[network]


SENSITIVE = {"layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4.1"}


@pytest.mark.parametrize(
    ("family", "name", "first", "last", "count", "sensitive"),
    [("vgg", "vgg16", "features.0", "features.40", 13, set()),
     ("resnet_cifar", "resnet20", "layer1.0.conv1", "layer3.2.conv1", 9, set()),
     ("torchvision", "resnet18", "layer1.0.conv1", "layer4.1.conv1", 8, set()),
     ("torchvision", "resnet50", "layer1.0.conv1", "layer4.1.conv2", 2 * 15, SENSITIVE)],
)  # fmt: skip
def test_listed_layers(family, name, first, last, count, sensitive):
    with torch.device("meta"):
        layers = families.get(family).prunable(dense(family, name, (3, 32, 32), 10).build())
    assert (layers[0].layer, layers[-1].layer, len(layers)) == (first, last, count)
    assert {layer.layer.rpartition(".")[0] for layer in layers if layer.sensitive} == sensitive


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnext50_32x4d"])
def test_layers_of_other_networks_are_found_by_tracing(name):
    architecture = dense("torchvision", name, (3, 64, 64), 10)
    model = architecture.build()
    assert architecture.units(model) == graph.Graph(model, torch.zeros(1, 3, 64, 64)).discover()[0] != []
