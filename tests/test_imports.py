"""Import directions between the packages: one row per package, lowest first."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lpslim"
ORDER = ("base", "sparsity", "pruning", "models", "data", "training", "experiment", "cli")
ALLOWED = {
    **{package: set(ORDER[: ORDER.index(package) + 1]) for package in ORDER},
    "sparsity": {"sparsity"},
    # the public names, and the renderers, which read records and never train
    "__init__": {"base", "pruning", "models", "training"},
    "reproduce": {"base", "experiment", "reproduce"},
}


def sources(package: str) -> list[Path]:
    if package == "reproduce":
        return sorted((ROOT / "reproduce").rglob("*.py"))
    file = PACKAGE / f"{package}.py"
    return [file] if file.exists() else sorted((PACKAGE / package).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Return the packages of ours that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom | ast.Import):
            parent = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for first, package, *_ in (f"{parent}{each.name}.__init__".split(".") for each in node.names):
                found |= {"lpslim": {package}, "reproduce": {first}}.get(first, set())
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_down_only(package):
    assert sources(package)
    wrong = {str(file.relative_to(ROOT)): imported(file) - ALLOWED[package] for file in sources(package)}
    assert not any(wrong.values()), wrong


def test_every_package_has_a_row():
    found = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {path.stem for path in found} == ALLOWED.keys() - {"reproduce"}


def test_no_package_has_more_than_twelve_modules():
    for package, most in {"": 10, **dict.fromkeys(ORDER[:-1], 12)}.items():
        names = {path.name for path in (PACKAGE / package).iterdir()}
        assert len(names - {"__init__.py", "__pycache__", "py.typed"}) <= most, package
