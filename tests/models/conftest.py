"""Pruned networks, with what it takes to build them."""

from dataclasses import replace

import pytest

from lpslim.models import storage


@pytest.fixture
def pruned(network, random_kept):
    """Build a pruned network; return its architecture and itself."""

    def build(family="vgg", name="vgg_small", shape=(1, 8, 8)):
        model, dense = network(family, name, shape), storage.dense(family, name, shape, 10)
        architecture = replace(dense, kept=random_kept(dense.units(model), seed=4))
        return architecture, architecture.cut(model)

    return build
