"""Nothing is written outside the folders that a run was given, whatever is called or linked how."""

import json
import re
from dataclasses import asdict
from xml.etree import ElementTree

import matplotlib
import pytest

from lpslim import architecture, folders, records, report, store
from lpslim.architecture import Architecture
from lpslim.errors import UserError
from reproduce import figures, tables
from tests.unit import synthetic

WAYS_OUT = ["../../x", "/tmp/x", "a/../../x", "..", "a/../../../x", "~/x", "a\\..\\x", "a\0b", "CON:x", "a b"]


@pytest.mark.parametrize("name", WAYS_OUT)
def test_no_record_is_written_or_read_under_a_name_that_climbs(name, tmp_path):
    made = synthetic.record(name)
    with pytest.raises(UserError, match="must be parts of letters, digits"):
        records.write(tmp_path / "results", made)
    assert not list(tmp_path.rglob("*"))
    (tmp_path / "r.json").write_text(json.dumps(asdict(made)))
    with pytest.raises(UserError, match="must be parts of letters, digits"):
        records.read(tmp_path / "r.json")


@pytest.mark.parametrize("key", ["../x", "/tmp/x", ""])
def test_no_record_is_written_under_a_key_that_climbs(key, tmp_path):
    with pytest.raises(UserError, match="key"):
        records.write(tmp_path / "results", synthetic.record(key=key))
    assert not list(tmp_path.rglob("*"))


@pytest.fixture
def elsewhere(tmp_path):
    """Make a folder that nothing may write to, with a file that must stay as it is."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious").write_text("as it was")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["precious"]
    assert (folder / "precious").read_text() == "as it was"


def test_a_record_replaces_no_file_behind_a_link(tmp_path, elsewhere):
    made = synthetic.record()
    path = records.path_of(tmp_path, made.experiment, made.key)
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere / "new")  # leads to nothing yet
    records.write(tmp_path, made)
    assert not path.is_symlink()
    assert records.read(path) == made
    path.unlink()
    path.symlink_to(elsewhere / "precious")
    with pytest.raises(FileExistsError):
        records.write(tmp_path, made)


@pytest.mark.parametrize("linked", ["records", "records/own"])
def test_a_folder_of_records_that_is_a_link_is_not_written_to(linked, tmp_path, elsewhere):
    link = tmp_path / "results" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(UserError, match="a link is not followed"):
        records.write(tmp_path / "results", synthetic.record("own/row"))


@pytest.mark.parametrize("linked", ["runs", "runs/own", "runs/own/row", "runs/own/row/0123"])
def test_a_run_folder_that_is_a_link_is_not_written_to(linked, tmp_path, elsewhere):
    link = tmp_path / "work" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(UserError, match="a link is not followed"):
        store.make_folder(tmp_path / "work/runs/own/row/0123", tmp_path / "work")


@pytest.mark.parametrize("name", ["run.log", "tensorboard", "record.json"])
def test_a_run_folder_that_holds_links_is_refused(name, tmp_path, elsewhere):
    folder = tmp_path / "work/runs/0123"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="nothing is written through it"):
        store.refuse_links(folder)


def test_the_root_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "work").symlink_to(tmp_path / "disk")
    assert store.make_folder(tmp_path / "work/runs", tmp_path / "work").is_dir()


@pytest.mark.parametrize("path", ["../other", "a/../../b"])
def test_a_folder_is_made_below_its_root_only(path, tmp_path):
    with pytest.raises(UserError):
        store.make_folder(tmp_path / "work" / path, tmp_path / "work")
    assert not list(tmp_path.iterdir())


def network(tmp_path):
    folder = tmp_path / "stage"
    folder.mkdir()
    for name in ("architecture.json", "weights.safetensors", "stage.json"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("linked", ["weights.safetensors", "tokenizer.json", "."])
def test_the_pruned_network_is_copied_into_no_link(linked, tmp_path, elsewhere):
    link = tmp_path / "run/pruned" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere if linked == "." else elsewhere / "precious")
    with pytest.raises(UserError, match="link"):
        report.fill_folder(tmp_path / "run", synthetic.record(), network(tmp_path))


def test_a_saved_network_replaces_a_link(tmp_path, elsewhere):
    folder = tmp_path / "network"
    folder.mkdir()
    for name in ("weights.safetensors", "architecture.json"):
        (folder / name).symlink_to(elsewhere / "precious")
    described = Architecture("vgg", "vgg_small", (3, 8, 8), {"num_classes": 2})
    architecture.save(folder, described.build(), described)
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_the_run_folders_own_files_replace_links(tmp_path, elsewhere):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("record.json", "convergence.csv"):
        (run / name).symlink_to(elsewhere / "precious")
    report.fill_folder(run, synthetic.record(), network(tmp_path))
    assert sorted(path.name for path in (run / "pruned").iterdir()) == [
        "architecture.json",
        "weights.safetensors",
    ]
    assert not any(path.is_symlink() for path in run.rglob("*"))


def test_a_stage_that_is_a_link_is_not_written_to(tmp_path, elsewhere):
    link = tmp_path / "stage"
    link.symlink_to(elsewhere)
    with pytest.raises(FileExistsError), store.new_folder(link):
        pass
    link.unlink()
    link.symlink_to(elsewhere / "new")
    with pytest.raises(OSError, match="Not a directory"), store.new_folder(link) as scratch:
        (scratch / "x").write_text("x")


def test_a_lock_that_is_a_link_destroys_no_file(tmp_path, elsewhere):
    (tmp_path / "stage.lock").symlink_to(elsewhere / "precious")
    with pytest.raises(OSError, match="symbolic links"), store.locked(tmp_path / "stage.lock"):
        pass


def test_decoded_images_replace_a_link(tmp_path, elsewhere):
    from PIL import Image

    (tmp_path / "train/a").mkdir(parents=True)
    for name in "xy":
        Image.new("RGB", (8, 8)).save(tmp_path / "train/a" / f"{name}.png")
    listed = {"train": folders.list_images(tmp_path / "train")}
    cache = tmp_path / "cache"
    folders.decode(tmp_path, listed, 8, cache)
    (stored,) = cache.iterdir()
    stored.unlink()
    stored.symlink_to(elsewhere / "new")
    folders.decode(tmp_path, listed, 8, cache)
    assert not stored.is_symlink()


@pytest.fixture
def few_formats(monkeypatch):
    monkeypatch.setattr(figures, "FORMATS", {"svg": figures.FORMATS["svg"]})


def test_tables_and_figures_replace_links(tmp_path, elsewhere, few_formats):
    results = synthetic.write(tmp_path / "results", synthetic.record())
    assert tables.main(["--results", str(results)]) == 0
    assert figures.main(["--results", str(results)]) == 0
    made = [path for folder in ("tables", "figures") for path in (results / folder).iterdir()]
    for path in made:
        path.unlink()
        path.symlink_to(elsewhere / "precious")
    assert tables.main(["--results", str(results)]) == 0
    assert figures.main(["--results", str(results)]) == 0
    assert made
    assert not any(path.is_symlink() for path in made)


# ---- texts of a record in what is rendered

TEXTS = ["$\\frac{$", "$x^{", "\\input{/etc/passwd}", "=cmd|'/C calc'!A0", "@SUM(1)", "_^&%#~{}", "`x`",
         "](javascript:alert(1))", "| a | b |", "\n\n# title", "a\x00b\x1b[31m", "\u202eabc", "<script>x",
         "![x](http://e.org/x.png)", "$" * 7, "\\", "'; --", "\u00a0", "-->", "&lt;b&gt;"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_record_says_is_shown_and_does_nothing(text, tmp_path, few_formats, capsys):
    data = {**synthetic.DIGITS, "name": text, "source": text}
    made = [
        synthetic.record(
            "a/b", data=data, channels={text: [1, 2], "b" + text: [3, 4]}, **{"model.name": text}
        ),
        synthetic.record("a/c", data=data, protected=[text], **{"model.name": text}),
        synthetic.record("vgg16_cifar10/flops60_cos350", differs={text: [1, text]}),
    ]
    results = synthetic.write(tmp_path / "results", *made)
    assert tables.main(["--results", str(results)]) == 0
    assert figures.main(["--results", str(results)]) == 0
    written = {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"}
    assert {path.parent for path in written} == {results / "tables", results / "figures"}
    markdown = (results / "tables/measured.md").read_text()
    assert "<script>" not in markdown
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)
    assert not any(line.startswith("# title") for line in markdown.splitlines())
    for line in (results / "tables/measured.csv").read_text().splitlines():
        assert not any(cell.lstrip('"').startswith(("=", "@")) for cell in line.split(","))
    latex = (results / "tables/measured.tex").read_text().splitlines()
    assert not any("\\input" in line for line in latex if not line.startswith("%"))  # a comment is one line
    for path in (results / "figures").iterdir():
        assert not [each for each in ElementTree.parse(path).iter() if each.tag.endswith("script")]


@pytest.mark.parametrize("name", ["", "_hidden", "$_$"])
def test_a_name_that_a_legend_would_leave_out_is_shown(name):
    made = synthetic.record(**{"regularizer.penalty": name})
    with matplotlib.rc_context(figures.STYLE):
        drawn = figures.figures([made], "last")
    for kind, figure in drawn.items():
        assert figure.legends[0].get_texts(), kind


def test_figures_of_the_same_texts_as_png(tmp_path):
    data = {**synthetic.DIGITS, "name": "$x^{", "source": "$\\frac{$\n"}
    with matplotlib.rc_context(figures.STYLE):
        for figure in figures.figures([synthetic.record(data=data)], "last").values():
            assert figures.rendered(figure, "png").startswith(b"\x89PNG")
