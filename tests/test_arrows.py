"""Import directions between the packages: one row per package, lowest first."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lpslim"
FLOORS = ("base", "sparsity", "pruning", "models", "data", "training", "experiment", "cli")
# the library's own door, and the renderers, which read records and never train
DOORS = {
    "__init__": {"base", "pruning", "models", "training"},
    "reproduce": {"base", "experiment", "reproduce"},
}
ALLOWED = {
    "base": {"base"},
    "sparsity": {"sparsity"},
    **{room: set(FLOORS[: FLOORS.index(room) + 1]) for room in FLOORS[2:]},
    **DOORS,
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
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{each.name}" for each in node.names]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "lpslim":
                found.add(rest.partition(".")[0] or "__init__")
            elif first == "reproduce":
                found.add("reproduce")
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_down_only(room):
    assert sources(room)
    wrong = {
        str(file.relative_to(ROOT)): odd for file in sources(room) if (odd := imported(file) - ALLOWED[room])
    }
    assert not wrong


def test_every_package_has_a_row():
    rooms = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms == ALLOWED.keys() - {"reproduce"}


def test_the_house_keeps_its_size():
    assert (
        len([p for p in PACKAGE.iterdir() if p.name not in ("__init__.py", "__pycache__", "py.typed")]) <= 10
    )
    for room in FLOORS[:-1]:
        entries = [p for p in (PACKAGE / room).iterdir() if p.name not in ("__init__.py", "__pycache__")]
        assert len(entries) <= 12, room
