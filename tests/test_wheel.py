"""The wheel: in an environment without the source tree it does what README shows. ``make test SLOW=1``."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.composing import ROOT

PARTS = ("src", "pyproject.toml", "README.md", "LICENSE")
END = """
import json, sys
from pathlib import Path
home = Path(lpslim.__file__).parent
kept, dense = pruned.pruned.macs / pruned.dense.macs, model.features[18][0].out_channels
same = all(torch.equal(a, b) for a, b in zip(pruned.model.state_dict().values(), again.state_dict().values()))
print(json.dumps({"home": str(home), "version": lpslim.__version__, "typed": (home / "py.typed").exists(),
                  "kept": kept, "same": same, "protected": pruned.model.features[18][0].out_channels == dense,
                  "heavy": sorted({"hydra", "transformers", "tensorboard"} & {*sys.modules})}))
"""


def succeeds(*command, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_does_what_readme_shows_without_the_source_tree(tmp_path):
    for name in ("build", "onnxruntime"):
        pytest.importorskip(name, reason="pip install 'lpslim[dev]'")
    source, env = tmp_path / "source", tmp_path / "env"
    source.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    succeeds(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, cwd=source)
    (wheel,) = tmp_path.glob("lpslim-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"lpslim", wheel.name.split("-py3")[0] + ".dist-info"}
    assert {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/lpslim").rglob("*.py")} <= {*names}

    succeeds(sys.executable, "-m", "venv", "--without-pip", env, cwd=tmp_path)
    python = env / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    succeeds(sys.executable, *install, cwd=tmp_path)
    (packages,) = env.glob("lib/*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]  # without their editable installs
    (packages / "others.pth").write_text("\n".join(others))

    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block.count("\n") <= 13
    block = block.replace('weights="DEFAULT"', "weights=None").replace("1, 3, 224, 224", "1, 3, 64, 64")
    (tmp_path / "program.py").write_text(f"def fine_tune(model):\n    pass\n\n\n{block}{END}")
    said = json.loads(succeeds(python, "-I", "program.py", cwd=tmp_path).splitlines()[-1])
    assert said.pop("home") == str(packages / "lpslim")
    assert said.pop("kept") < 0.55
    version = wheel.name.split("-")[1]
    assert said == {"version": version, "typed": True, "same": True, "protected": True, "heavy": []}
