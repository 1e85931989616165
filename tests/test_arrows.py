"""Import directions between the packages: one row per package, lowest first."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lpslim"
FLOORS = ("base", "sparsity", "pruning", "models", "data", "training", "experiment", "cli")
ALLOWED = {
    **{room: set(FLOORS[: FLOORS.index(room) + 1]) for room in FLOORS},
    "sparsity": {"sparsity"},
    # the library's own door, and the renderers, which read records and never train
    "__init__": {"base", "pruning", "models", "training"},
    "reproduce": {"base", "experiment", "reproduce"},
}


def sources(room: str) -> list[Path]:
    if room == "reproduce":
        return sorted((ROOT / "reproduce").rglob("*.py"))
    file = PACKAGE / f"{room}.py"
    return [file] if file.exists() else sorted((PACKAGE / room).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Return the packages of ours that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom | ast.Import):
            parent = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for first, room, *_ in (f"{parent}{each.name}.__init__".split(".") for each in node.names):
                found |= {"lpslim": {room}, "reproduce": {first}}.get(first, set())
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_down_only(room):
    assert sources(room)
    wrong = {str(file.relative_to(ROOT)): imported(file) - ALLOWED[room] for file in sources(room)}
    assert not any(wrong.values()), wrong


def test_every_package_has_a_row():
    found = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {path.stem for path in found} == ALLOWED.keys() - {"reproduce"}


def test_the_house_keeps_its_size():
    for room, most in {"": 10, **dict.fromkeys(FLOORS[:-1], 12)}.items():
        names = {path.name for path in (PACKAGE / room).iterdir()}
        assert len(names - {"__init__.py", "__pycache__", "py.typed"}) <= most, room
