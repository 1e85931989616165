"""Files and folders that appear whole or not at all, locks, and manifests."""

import threading

import pytest

from lpslim.base import files
from lpslim.base.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_inside(context):
    with context as scratch:
        (scratch / "half" if scratch.is_dir() else scratch).write_text("half")
        raise KeyError


def test_a_folder_appears_when_it_is_finished_and_is_never_overwritten(tmp_path):
    target = tmp_path / "stages" / "key"
    with pytest.raises(KeyError):
        fail_inside(files.new_folder(target))
    assert names(tmp_path / "stages") == []
    with files.new_folder(target) as scratch:
        (scratch / "whole").write_text("x")
        assert not target.exists()
    with pytest.raises(FileExistsError):
        fail_inside(files.new_folder(target))
    assert (names(tmp_path / "stages"), names(target)) == (["key"], ["whole"])
    (tmp_path / "stages" / ".key-of-a-dead-process").mkdir()
    files.clear_scratch(target)
    assert names(tmp_path / "stages") == ["key"]


def test_a_file_is_replaced_when_it_is_finished_and_links_are_not_followed(tmp_path):
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_text("untouched")
    target.symlink_to(elsewhere)
    with pytest.raises(KeyError):
        fail_inside(files.atomic_file(target))
    files.write_json(target, {"é": [1, 2.5, None]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(target, float("nan"))
    assert files.read_json(target) == {"é": [1, 2.5, None]}
    assert elsewhere.read_text() == "untouched"
    assert names(tmp_path) == ["elsewhere", "file"]


def test_one_holder_of_a_lock_at_a_time(tmp_path):
    def wait():
        with files.locked(tmp_path / "key.lock"):
            (tmp_path / "second").touch()

    thread = threading.Thread(target=wait)
    with files.locked(tmp_path / "key.lock"):
        thread.start()
        thread.join(0.2)
        assert names(tmp_path) == ["key.lock"]
    thread.join()
    assert names(tmp_path) == ["key.lock", "second"]


@pytest.mark.parametrize(("blamed", "content"), [("sub/a", "other"), ("b", "added"), (files.MANIFEST, "{}")])
def test_a_manifest_tells_what_has_changed(tmp_path, blamed, content):
    folder = tmp_path / "key"
    files.write_text(folder / "sub" / "a", "content")
    files.write_manifest(folder, {"seconds": 1})
    assert files.verify_manifest(folder) == ""
    files.write_text(folder / blamed, content)
    assert files.verify_manifest(folder).startswith(f"{blamed}: ")
    aside = files.set_aside(folder)
    assert names(tmp_path) == [aside.name]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    files.check_writable(tmp_path / "new", "results_dir")
    assert names(tmp_path / "new") == []
    with pytest.raises(UserError, match=r"^work_dir=.*test_files\.py: cannot be written to"):
        files.check_writable(files.Path(__file__), "work_dir")
