"""Families: published sizes, what is prunable, and lookups that import no more than they need."""

import subprocess
import sys

import pytest
import torch

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.models import family as families
from lpslim.models.storage import dense
from lpslim.pruning import graph

PARAMETERS = {  # of the literature's networks: (family, name, input shape, classes)
    ("vgg", "vgg16", (3, 32, 32), 10): 14_728_266,
    ("vgg", "vgg19", (3, 32, 32), 10): 20_040_522,
    ("resnet_cifar", "resnet20", (3, 32, 32), 10): 269_722,
    ("resnet_cifar", "resnet56", (3, 32, 32), 10): 853_018,
    ("resnet_cifar", "resnet110", (3, 32, 32), 100): 1_733_812,
    ("torchvision", "resnet50", (3, 224, 224), 1000): 25_557_032,
}


@pytest.mark.parametrize("network", PARAMETERS, ids=lambda network: network[1])
def test_networks_have_their_published_size(network):
    with torch.device("meta"):
        model = dense(*network).build()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[network]


def test_families_by_name():
    assert all(families.get(name) for name in registry.choices("models.families"))
    with pytest.raises(UserError, match=r"'lstm' is not one of bert, resnet_cifar, torchvision, vgg"):
        families.get("lstm")


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


def test_torchvisions_networks_take_three_channels():
    with pytest.raises(UserError, match=r"model\.name=resnet18: takes images of 3 channels, not 1"):
        dense("torchvision", "resnet18", (1, 28, 28), 10).build()


def test_transformers_and_torchvision_are_imported_only_by_networks_that_need_them():
    code = """
import sys

sys.modules["timm"] = None  # Torch-Pruning imports it, and with it torchvision, where it is installed
import lpslim.data.datasets.digits
from lpslim.models import encoders, storage
storage.dense("vgg", "vgg_small", (1, 8, 8), 10).build()
assert len(encoders.WORDS) == 54
print([name for name in ("torchvision", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
