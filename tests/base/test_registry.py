"""Plug-ins by name: ours, installed ones, and the arguments of their builders."""

from importlib.metadata import EntryPoint

import pytest

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.base.files import file_hash


def test_installed_plug_ins_come_after_ours(tmp_path, monkeypatch):
    file = tmp_path / "plugin_of_a_test.py"
    file.write_text("name = 'sharp'\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint(name, "plugin_of_a_test", "lpslim.criteria") for name in ("sharp", "magnitude")]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    assert {"sharp", "magnitude", "taylor"} <= set(registry.choices("pruning.criteria"))
    assert "sharp" not in registry.choices("sparsity.penalties")
    assert registry.find("pruning.criteria", "sharp").name == "sharp"
    assert registry.find("pruning.criteria", "magnitude").__name__ == "lpslim.pruning.criteria.magnitude"
    assert registry.source_hash("pruning.criteria", "sharp") == file_hash(file)
    assert registry.source_hash("pruning.criteria", "magnitude") is None


@pytest.mark.parametrize("name", ["luck", "__init__", "../units"])
def test_unknown_names_are_refused_with_the_choices(name):
    with pytest.raises(UserError, match=r"pruning\.criteria: .* is not one of .*chip.*taylor"):
        registry.find("pruning.criteria", name)


def test_builders_get_the_knobs_they_ask_for_and_their_options():
    def build(p, width, *, depth=2): ...

    assert registry.arguments(build, {"p": 5, "M": 1}, {"width": 3}, "options") == {"p": 5, "width": 3}
    refused = [({"width": 3, "height": 4}, "height=4"), ({}, "width"), ({"width": 3, "p": 2}, "p=2")]
    for options, blamed in refused:
        with pytest.raises(UserError, match=rf"^options\.{blamed}"):
            registry.arguments(build, {"p": 5, "M": 1}, options, "options")
