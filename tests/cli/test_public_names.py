"""Public names of the package: there when they are used, and nothing is imported for them before."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import lpslim


@pytest.mark.parametrize("name", lpslim.MODULES)
def test_a_public_name_is_what_its_module_defines(name):
    assert getattr(lpslim, name) is getattr(sys.modules[f"lpslim.{lpslim.MODULES[name]}"], name)
    assert name in lpslim.__all__


def test_the_version_is_that_of_the_installed_package():
    assert lpslim.__version__ == version("lpslim")
    with pytest.raises(AttributeError, match="'lpslim' has no attribute 'nothing'"):
        lpslim.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("used", "absent"),
    [
        ("lpslim", "torch importlib.metadata"),
        ("[getattr(lpslim, name) for name in lpslim.MODULES]",
         "hydra omegaconf accelerate transformers tensorboard onnx"),
        ("import lpslim.experiment.records, lpslim.experiment.statistics", "torch pandas transformers"),
        # Torch-Pruning imports timm, and with it torchvision, where it is installed
        ("sys.modules['timm'] = None; import lpslim.data.datasets.digits; from lpslim.models import storage; "
         "storage.dense('vgg', 'vgg_small', (1, 8, 8), 10).build(); "
         "from lpslim.models.encoders import WORDS; assert len(WORDS) == 54",
         "torchvision transformers"),
    ],
)  # fmt: skip
def test_the_library_imports_no_more_than_it_needs(used, absent):
    program = f"import sys, lpslim; {used}; print({set(absent.split())} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
