"""Commands, Python blocks and links of README and of the other pages: they work as printed."""

import ast
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hydra.core.override_parser.overrides_parser import OverridesParser

import lpslim
from tests.composing import ROOT, configured

DOCS = (f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", *DOCS]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
EVERYTHING = "\n".join(TEXTS.values()).replace("\\\n", " ")  # a command may go on in the next line
RUNS = sorted({run.strip() for run in re.findall(r"run\.py ([^`\n#]+)", EVERYTHING)})
TARGETS = sorted(set(re.findall(r"`?(?:\$ )?make ([a-z][a-z0-9-]+)", EVERYTHING)))
MODULES = sorted(set(re.findall(r"python -m ((?:lpslim|reproduce)[a-z_.]*)", EVERYTHING)))
SCRIPTS = sorted(set(re.findall(r"python (benchmarks/\w+\.py)", EVERYTHING)))
FLAGS = ("-m", "--help", "--dry-run", "...")


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL)


def first_job(command: str) -> list[str]:
    """Return the overrides of a command's first job, with a name where the page has a placeholder."""
    words = [w for w in shlex.split(re.sub(r"<[^>]+>", "somewhere", command)) if w not in FLAGS]
    parsed = OverridesParser.create().parse_overrides(words)
    first = [next(o.sweep_string_iterator()) if o.is_sweep_override() else None for o in parsed]
    both = zip(parsed, first, strict=True)
    return [o.input_line if one is None else f"{o.key_or_group}={one}" for o, one in both]


def test_the_pages_show_what_is_tested_here():
    assert len(RUNS) >= 15
    shown = {"reproduce", "test", "tables", "plots", "verify", "compare", "reproduce-table-vgg16"}
    assert shown <= {*TARGETS}
    assert {"lpslim.models.onnx", "reproduce.tables"} & set(MODULES)
    assert len(blocks("README.md")) == 1
    assert len(blocks("docs/method.md")) == 2


@pytest.mark.parametrize("command", [run for run in RUNS if not re.search(r"glob\(|log_sum|interval\(", run)])
def test_a_run_command_composes_and_passes_its_checks(command):
    if "hydra/sweeper=search" in command:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'lpslim[search]'")
    assert configured(*first_job(command)).epoch_scale == 1


def test_the_help_lists_groups_and_knobs():
    shown = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for word in ("model", "regularizer", "resnet20", "p=5", "M=1", "target_flops", "make_no_such"):
        assert (word in shown.stdout) == (word != "make_no_such"), word


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_exists(target):
    done = subprocess.run(["make", "-n", target, "NETWORK=x"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_the_command_line_it_is_shown_with(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__")
    shown = capsys.readouterr().out
    for option in re.findall(rf"python -m {re.escape(module)} [^`\n]*?(--\w+)", EVERYTHING):
        assert option in shown


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_is_there_and_says_how_it_is_run(script):
    assert f"python {script}" in ast.get_docstring(ast.parse((ROOT / script).read_text()))


def test_the_library_in_ten_lines_prunes_saves_loads_and_exports(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    tuned: list = []
    code = blocks("README.md")[0].replace('weights="DEFAULT"', "weights=None")
    code = code.replace("1, 3, 224, 224", "1, 3, 64, 64")
    names: dict = {"fine_tune": tuned.append}
    exec(code, names)
    pruned, again = names["pruned"], names["again"]
    assert tuned == [pruned.model]
    assert pruned.pruned.macs < 0.55 * pruned.dense.macs
    assert pruned.model.features[18][0].out_channels == names["model"].features[18][0].out_channels
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in pruned.model.state_dict().items())
    assert (tmp_path / "smaller.onnx").stat().st_size > 0


def test_the_admm_in_a_loop_of_ones_own_regularises(capsys):
    model = torch.nn.Linear(4, 3)
    loader = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names = {"model": model, "loader": loader, "optimizer": optimizer, "loss_of": F.cross_entropy}
    before = model.weight.detach().clone()
    exec(blocks("docs/method.md")[0], names)
    assert not torch.equal(before, model.weight)
    assert "sparsity=" in capsys.readouterr().out


def test_the_encoder_block_reads_a_saved_network_and_its_tokenizer(tmp_path):
    from lpslim.models import family, storage

    architecture = storage.dense("bert", "tiny", (3, 16), 2)
    storage.write(tmp_path, architecture.build(), architecture)
    family.get("bert").save_tokenizer(tmp_path, "tiny")
    names: dict = {}
    exec(re.sub(r'"outputs/[^"]*"', repr(str(tmp_path)), blocks("docs/bert.md")[0]), names)
    assert names["logits"].shape == (1, 2)


def test_the_loop_with_channels_of_the_method_page_runs():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 2, 6))
    names = {
        "lpslim": lpslim, "model": model, "example": torch.randn(1, 3, 8, 8), "loss_of": F.cross_entropy,
        "loader": [(torch.randn(4, 3, 8, 8), torch.randint(2, (4, 1, 1)))] * 8,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
    }  # fmt: skip
    exec(blocks("docs/method.md")[1], names)
    assert len(names["smaller"][0].weight) == 8


@pytest.mark.parametrize("page", PAGES)
def test_links_anchors_and_names_of_files_lead_somewhere(page):
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|csv|json))", TEXTS[page]):
        if "log_sum" not in path:
            assert any((ROOT / root / path).exists() for root in ("", "src/lpslim", "src")), path
    for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", TEXTS[page]):
        if link.startswith("http"):
            continue
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8").lower(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head).replace(" ", "-") for head in heads}, anchor


def test_every_package_has_its_line():
    rows = set(re.findall(r"^\| `(\w+)` \|", TEXTS["README.md"], re.MULTILINE))
    packages = {path.parent.name for path in (ROOT / "src" / "lpslim").glob("*/__init__.py")}
    assert rows == packages
    assert all(getattr(lpslim, name) for name in ("prune", "save", "load", "to_onnx"))
