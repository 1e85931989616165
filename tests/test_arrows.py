"""The house's import directions: mathematics knows torch alone, nothing points back up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lpslim"

# Each module or package -> the modules of lpslim that it may import
ALLOWED = {
    "errors": set(),
    "versions": set(),
    "keys": set(),
    "recipe": set(),
    "store": {"errors", "keys"},
    "ranks": {"errors", "splits"},
    "snapshots": {"ranks", "store"},
    "progress": {"errors"},
    "statistics": set(),
    "lookup": {"errors"},
    "penalties": {"penalties"},
    "blocks": {"penalties"},
    "admm": {"blocks", "penalties"},
    "modes": set(),
    "units": {"errors"},
    "feature_maps": {"errors", "modes", "units"},
    "criteria": {"feature_maps", "units", "criteria"},
    "cost": {"errors", "modes", "units"},
    "selection": {"units", "errors"},
    "surgery": {"modes", "units", "errors"},
    "models": {"units", "errors", "surgery", "pretrained"},
    "tasks": set(),
    "splits": {"tasks"},
    "images": {"splits"},
    "text": {"splits"},
    "grammar": set(),
    "pretrained": {"errors", "grammar"},
    "folders": {"errors", "store"},
    "pixels": {"errors", "folders", "store"},
    "data": {"data", "images", "splits", "folders", "errors", "grammar", "pixels", "pretrained", "tasks",
             "text"},
    "evaluation": {"modes", "ranks", "splits", "tasks"},
    "checkpoints": {"errors"},
    "padding": set(),
    "export": {"architecture", "errors", "modes", "padding", "splits"},
    "api": {"architecture", "cost", "errors", "lookup", "selection", "surgery", "units"},
    "strict": {"errors"},
    "schema": {"config"},
    "records": {"config", "errors", "schema", "store", "strict"},
    "index": {"config", "recipe", "records", "schema", "store", "strict"},
    "verify": {"config", "errors", "keys", "lookup", "records", "store"},
    "architecture": {"checkpoints", "errors", "lookup", "splits", "store", "strict", "surgery", "units"},
    "allocator": set(),
    "engine": {"allocator", "errors", "progress", "ranks", "recipe", "snapshots", "splits"},
    "training": {"engine", "errors", "evaluation", "keys", "progress", "ranks", "recipe", "snapshots",
                 "splits"},
    "sparsify": {"admm", "engine", "penalties", "units"},
    "slimming": {"engine"},
    "masking": {"cost", "engine", "units"},
    "config": {"errors", "lookup", "recipe"},
    "plan": {"architecture", "checkpoints", "config", "splits", "keys", "lookup", "penalties", "recipe",
             "store", "versions"},
    "speed": {"config", "engine", "keys", "plan", "ranks", "recipe", "splits"},
    "outlook": {"config", "plan", "ranks", "speed", "splits"},
    "settle": {"config", "engine", "errors", "failures", "keys", "ranks", "recipe", "speed", "splits",
               "store", "strict", "survey"},
    "survey": {"config", "cost", "errors", "lookup", "plan", "selection", "slimming", "splits", "units"},
    "stages": {"architecture", "checkpoints", "config", "cost", "engine", "errors", "evaluation", "keys",
               "lookup", "masking", "plan", "ranks", "recipe", "selection", "slimming", "snapshots",
               "sparsify", "splits", "store", "survey", "training", "units"},
    "report": {"architecture", "config", "errors", "splits", "ranks", "records", "store", "versions"},
    "failures": {"errors", "plan", "ranks", "snapshots"},
    "runs": {"config", "engine", "errors", "failures", "splits", "lookup", "outlook", "plan", "ranks",
             "records", "report", "settle", "stages", "store", "survey"},
    "jobs": {"store"},
    "objective": {"errors", "records"},
    "sweep": {"errors", "jobs", "objective", "outlook", "store"},
    "cli": {"config", "errors", "outlook", "records", "runs", "sweep"},
    "__init__": {"api", "architecture"},
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def is_command(node: ast.stmt) -> bool:
    """Whether this is ``if __name__ == "__main__"``, which runs only where nothing imports the file."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imported(path: Path, package: str) -> set[str]:
    """Return the first-level modules of ``package`` that a file imports when it is imported itself."""
    found = set()
    whole = ast.parse(path.read_text())
    whole.body = [node for node in whole.body if not is_command(node)]
    for node in ast.walk(whole):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(f"{package}.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imported(path, "lpslim") <= ALLOWED[room]


def test_the_allowed_directions_have_no_cycle():
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {room for room, below in ALLOWED.items() if below - {room} <= done} - done
        assert ready, f"a cycle among {sorted(set(ALLOWED) - done)}"
        done |= ready


@pytest.mark.parametrize("path", sorted((ROOT / "reproduce").glob("*.py")), ids=lambda p: p.name)
def test_rendering_reads_records_and_statistics_only(path):
    below = {"config", "errors", "index", "keys", "records", "statistics", "store", "versions"}
    assert imported(path, "lpslim") <= below


@pytest.mark.parametrize("name", ["penalties/lp.py", "admm.py", "blocks.py"])
def test_the_mathematics_imports_torch_alone(name):
    roots = set()
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
    assert roots <= {"__future__", "collections", "dataclasses", "math", "torch", "lpslim"}
