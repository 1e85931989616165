"""Every command and snippet that README shows is tried, every file that it names exists."""

import re
import shlex
import subprocess

import pytest
import torch
import torch.nn.functional as F
from hydra.core.override_parser.overrides_parser import OverridesParser

import lpslim
from lpslim.cli import checked
from lpslim.models import onnx, storage
from lpslim.models.storage import Architecture
from tests.composing import ROOT, composed

README = (ROOT / "README.md").read_text()
SWEEPS = (ROOT / "docs" / "sweeps.md").read_text()
COMMANDS = sorted(
    {c for c in re.findall(r"python run\.py [^`\n#]+", README + SWEEPS) if not c.endswith("...")}
)
TARGETS = sorted(set(re.findall(r"make ([a-z0-9-]+)", README)))
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def first_of_each(words: list[str]) -> list[str]:
    """A sweep's first job, whatever launches it."""
    parsed = OverridesParser.create().parse_overrides(
        [w for w in words if w not in ("-m", "--help", "--dry-run") and not w.startswith("hydra")]
    )
    return [
        f"{o.key_or_group}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else o.input_line
        for o in parsed
    ]


def test_readme_shows_commands_targets_and_snippets():
    assert len(COMMANDS) >= 5
    assert {"reproduce", "test", "tables", "plots", "reproduce-table-vgg16", "setup"} <= set(TARGETS)
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_run_command_composes_and_passes_its_checks(command):
    checked(composed(*first_of_each(shlex.split(command)[2:])))


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_exists(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_loading_snippet_loads(tmp_path):
    model = Architecture("vgg", "vgg_small", (3, 32, 32), {"num_classes": 10, "in_channels": 3})
    architecture.save(tmp_path, model.build(), model)
    names: dict = {}
    exec(re.sub(r'"outputs/[^"]*"', repr(str(tmp_path)), SNIPPETS[0]), names)
    assert names["model"](torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_the_pruning_snippet_prunes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tuned: list = []
    offline = SNIPPETS[1].replace('weights="DEFAULT"', "weights=None")
    names: dict = {"fine_tune": tuned.append}
    exec(offline, names)
    pruned, again = names["pruned"], names["again"]
    assert tuned == [pruned.model]
    assert pruned.pruned.macs < 0.55 * pruned.dense.macs
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in pruned.model.state_dict().items()
    )
    assert export.compare(pruned.model, names["image"], tmp_path / "smaller.onnx").holds
    (call,) = re.findall(r"`(benchmarks\.latency\.compare\(.*?)\)`", README)
    capsys.readouterr()
    exec(f"import benchmarks.latency; {call}, batches=[1], rounds=1)", names)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "engine",
        "PyTorch",
        "ONNX",
    ]


def test_the_training_snippet_trains(capsys):
    model = torch.nn.Linear(4, 3)
    names = {
        "model": model,
        "loader": [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)],
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loss_of": F.cross_entropy,
    }
    before = model.weight.detach().clone()
    exec(SNIPPETS[2], names)
    assert not torch.equal(before, model.weight)
    assert "Residuals(primal=" in capsys.readouterr().out


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_named_files_exist(page):
    text = (ROOT / page).read_text()
    home = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (home / link).exists(), link
    if page == "README.md":
        for row in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE):
            folder = ""
            for name in re.findall(r"`([^` ]+)`", row):
                path = name if "/" in name or (ROOT / name).exists() else f"{folder}{name}"
                folder = (
                    path[: path.rfind("/") + 1] if not path.endswith("/") else path.rsplit("/", 2)[0] + "/"
                )
                if re.search(r"\.(py|yaml|md)$|/$", path):
                    assert (ROOT / path).exists() or (ROOT / "src/lpslim" / name).exists(), path


def test_the_package_exports_what_readme_uses():
    assert lpslim.load is architecture.load
    assert all(callable(getattr(lpslim, name)) for name in ("prune", "save", "load"))


def planned(*words):
    done = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", *words], cwd=ROOT, capture_output=True, text=True
    )
    return [line for line in done.stdout.splitlines() if "run.py -m" in line and "--dry-run" not in line]


def test_the_small_tasks_of_glue_get_five_seeds_whatever_becomes_of_the_others():
    first, more = planned("reproduce-table-bert", "PROFILE=paper")
    assert "seed=0,1,2 " in first
    assert first.endswith("|| ended=$?; \\")
    assert "bert_glue=rte,mrpc,cola,stsb' profile=paper seed=3,4 " in more
    assert more.endswith("|| ended=$?; exit $ended")


def test_seeds_and_settings_of_a_table_are_the_users():
    (only,) = planned("reproduce-table-bert", "PROFILE=paper", "SEEDS=7", "ARGS=dataset.root=/data")
    assert "seed=7 " in only
    assert " dataset.root=/data " in only
    (smoke,) = planned("reproduce-table-vgg16", "PROFILE=smoke")
    assert "profile=smoke seed=0 " in smoke
    assert "results_dir=outputs/smoke " in smoke
