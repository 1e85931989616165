"""Trackers: what each holds of a run, and that one which does not work is no reason to lose a run."""

import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lpslim.base.errors import UserError
from lpslim.experiment import checks, tracking
from tests.composing import configured

WORDS = ("regularizer.train.epochs=2", "regularizer.updates_per_epoch=2")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which the stages are computed once, and found from then on."""
    return tmp_path_factory.mktemp("tracked")


def folder_of(done) -> Path:
    return Path(done.config.work_dir) / "runs" / "adhoc" / done.record.key[:8]


def expected(record):
    """Return series -> [(step, value)] that a tracker must hold of a run, besides times."""
    series = {"record/cost.flops_drop": [(0, record.cost.flops_drop)]}
    series["record/accuracy.finetune.last"] = [(0, record.accuracy["finetune"]["last"])]
    for stage, curve in record.curves.items():
        series[f"{stage}/test_accuracy"] = list(enumerate(curve.test_accuracy, 1))
    for name in ("epoch", "primal", "dual", "sparsity", "capped"):
        series[f"admm/{name}"] = [(row["iteration"], row[name]) for row in record.convergence]
    assert len(series["admm/primal"]) == 4
    return series


def same(held, record):
    for name, points in expected(record).items():
        assert [step for step, _ in held(name)] == [step for step, _ in points], name
        assert [value for _, value in held(name)] == pytest.approx([v for _, v in points], rel=1e-4), name


def test_tensorboard_shows_a_run_whether_its_stages_are_computed_or_found(run, work):
    for _ in range(2):
        done = run(*WORDS, work=work)
        board = folder_of(done) / "tensorboard"
        events = EventAccumulator(str(board)).Reload()
        same(lambda name, e=events: [(p.step, p.value) for p in e.Scalars(name)], done.record)
        assert "baseline/epoch" not in events.Tags()["scalars"]
        (shown,) = events.Tensors("record/text_summary")
        assert done.path.read_text().encode() in shown.tensor_proto.string_val[0]
        (settings,) = board.glob("*/hparams.yml")
        assert "regularizer.updates_per_epoch: 2\n" in settings.read_text()
        assert str(work) not in settings.read_text()  # no place on this machine
        for place in ("results", "outputs/runs"):
            shutil.rmtree(work / place)


def test_mlflow_holds_a_run(run, work, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'lpslim[mlflow]'")
    monkeypatch.chdir(tmp_path)  # where it puts artefacts
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    done = run(*WORDS, "trainer.trackers=[mlflow]", f"results_dir={tmp_path}", work=work)
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (found.info.run_name, found.info.status) == (f"adhoc, seed 0, {done.record.key[:8]}", "FINISHED")
    assert (found.data.params["key"], found.data.params["M"]) == (done.record.key, "1.0")
    client = mlflow.MlflowClient()
    history = client.get_metric_history
    same(lambda name: [(p.step, p.value) for p in history(found.info.run_id, name)], done.record)
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == [done.path.name]


def unblocked(stored: bytes, block: int = 2**15, header: int = 7) -> bytes:
    """Return what W&B's file holds: LevelDB's log format, pieces of at most a block with a header each."""
    content, at = b"", header
    while at + header <= len(stored):
        if (left := block - at % block) < header:
            at += left
        size = int.from_bytes(stored[at + 4 : at + 6], "little")
        content += stored[at + header : at + header + size]
        at += header + size
    return content


def test_wandb_holds_a_run(run, work, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install 'lpslim[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = run(*WORDS, "trainer.trackers=[wandb]", f"results_dir={tmp_path}", work=work)
    wandb.teardown()  # ends the process that writes
    (stored,) = folder_of(done).glob("wandb/offline-run-*/*.wandb")
    content = unblocked(stored.read_bytes())
    assert f"adhoc, seed 0, {done.record.key[:8]}".encode() in content
    for row in done.record.convergence:
        assert str(row["primal"]).encode() in content
    for stage, curve in done.record.curves.items():
        assert content.count(f"{stage}/test_accuracy".encode()) >= len(curve.test_accuracy)
    (kept,) = stored.parent.glob("files/*.json")
    assert kept.read_text() == done.path.read_text()


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_one_that_is_not_installed_is_named_with_its_remedy(tracker, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == tracker else name)
    with pytest.raises(UserError) as refused:
        configured("trainer.trackers=[tensorboard,wandb,mlflow]")
    said = f"trainer.trackers={tracker}: is not installed: pip install 'lpslim[{tracker}]'"
    assert str(refused.value) == said


class Broken(tracking.GeneralTracker):
    """A tracker that fails at one of its calls."""

    name, requires_logging_directory, tracker, keep = "broken", False, None, None

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, []

    def __getattribute__(self, name):
        if name in ("start", "store_init_configuration", "log", "keep", "finish"):
            self.calls.append(name)
            if name == self.at:
                raise ConnectionError("nobody there")
        return super().__getattribute__(name)


@pytest.mark.parametrize("at", ["start", "store_init_configuration"])
def test_one_that_does_not_start_ends_the_run_before_any_work(run, tmp_path, monkeypatch, at):
    broken = Broken(at)
    monkeypatch.setitem(tracking.MAKE, "wandb", lambda *_: broken)
    monkeypatch.setattr(checks, "find_spec", bool)
    with pytest.raises(UserError, match=r"^trainer\.trackers=wandb: does not start: nobody there$"):
        run("trainer.trackers=[tensorboard,wandb]", work=tmp_path)
    assert not (tmp_path / "outputs" / "stages").exists()
    assert ("finish" in broken.calls) == (at != "start")


@pytest.mark.parametrize("at", ["log", "keep", "finish"])
def test_one_that_fails_later_is_left_out_and_the_run_goes_on(run, work, tmp_path, monkeypatch, caplog, at):
    broken = Broken(at)
    monkeypatch.setitem(tracking.MAKE, "wandb", lambda *_: broken)
    monkeypatch.setitem(tracking.KEEP, "wandb", lambda tracker, record: tracker.keep)
    monkeypatch.setattr(checks, "find_spec", bool)
    done = run(*WORDS, "trainer.trackers=[wandb,tensorboard]", f"results_dir={tmp_path}", work=work)
    assert broken.calls.count(at) == 1
    assert "wandb fails, and tracks this run no longer: nobody there" in caplog.text
    events = EventAccumulator(str(folder_of(done) / "tensorboard")).Reload()
    assert "record/cost.flops_drop" in events.Tags()["scalars"]
