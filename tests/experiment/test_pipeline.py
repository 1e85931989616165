import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lpslim
from lpslim.base.errors import UserError
from lpslim.experiment import records, stages
from lpslim.models import storage
from lpslim.pruning.cost import count
from lpslim.pruning.criteria import hrank
from tests.composing import ROOT


def weights(config, record, stage="finetune"):
    return load_file(f"{config.work_dir}/stages/{stage}/{record.stages[stage]}/weights.safetensors")


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_leaves_a_record_and_a_folder_that_agree(run):
    config, path = run("target_flops=0.5")
    record = records.read(path)
    assert abs(record.cost["flops_drop"] - 50) <= 0.3
    assert list(record.stages) == ["baseline", "sparsify", "score", "prune", "finetune"]
    assert {"last", "val", "paper"} == set(record.accuracy["finetune"])
    assert record.data["train"] + record.data["val"] + record.data["test"] == 1797
    assert path.stat().st_size < 50_000
    folder = next((stages.Path(config.work_dir) / "runs" / "adhoc").glob(f"{record.key[:8]}*"))
    assert json.loads((folder / "record.json").read_text()) == json.loads(path.read_text())
    assert (folder / "run.log").read_text().count("epoch 1/1") == 3
    assert (
        (folder / "convergence.csv").read_text().startswith("iteration,epoch,primal,dual,sparsity,capped\n1,")
    )
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert "sparsify/test_accuracy" in events.Tags()["scalars"]
    model = lpslim.load(folder / "pruned")
    cost = count(model, torch.zeros(1, 1, 8, 8))
    assert {"macs": cost.macs, "params": cost.params} == record.cost["pruned"]
    assert same_bits(dict(model.state_dict()), weights(config, record))


def test_a_second_run_reads_the_record_and_does_nothing(run, capsys, monkeypatch):
    _, path = run("target_flops=0.5")
    monkeypatch.setattr(stages, "fit", lambda *_, **__: pytest.fail("a stage was computed again"))
    assert run("target_flops=0.5")[1] == path
    assert "measured before" in capsys.readouterr().out


def test_a_sweep_over_ratio_trains_the_baseline_and_the_admm_once(run, monkeypatch):
    run("ratio=0.3")
    trained = []
    fit = stages.fit

    def spy(*arguments, stage, **named):
        trained.append(stage)
        return fit(*arguments, stage=stage, **named)

    monkeypatch.setattr(stages, "fit", spy)
    _, one = run("ratio=0.4")
    _, other = run("ratio=0.6")
    assert trained == ["finetune", "finetune"]
    assert records.read(one).cost["flops_drop"] < records.read(other).cost["flops_drop"]


def test_the_same_config_and_seed_give_the_same_bits(run, tmp_path):
    here, first = run("target_flops=0.5")
    there, second = run("target_flops=0.5", work=tmp_path)
    one, other = records.read(first), records.read(second)
    assert one.key == other.key
    assert one.accuracy == other.accuracy
    assert one.convergence == other.convergence
    assert one.channels == other.channels
    for stage in ("baseline", "sparsify", "finetune"):
        assert same_bits(weights(here, one, stage), weights(there, other, stage))


def test_another_seed_gives_another_network(run):
    here, first = run("target_flops=0.5")
    _, second = run("target_flops=0.5", "seed=1")
    one, other = records.read(first), records.read(second)
    assert one.stages["baseline"] != other.stages["baseline"]
    assert not same_bits(weights(here, one), weights(here, other))


@pytest.mark.parametrize(
    "overrides",
    [
        ("p=1",),
        ("p=0", "ratio=0.6"),
        ("M=null",),
        ("regularizer.form=norm",),
        ("regularizer.updates_per_epoch=4",),
        ("criterion.weights=W",),
        ("regularizer=none",),
        ("target_params=0.5",),
        ("schedule=step",),
        ("trainer.channels_last=false",),
        ("trainer.precision=bf16",),
        ("model=resnet20",),
    ],
    ids=" ".join,
)
def test_every_option_runs_and_is_recorded(run, overrides):
    record = records.read(run(*overrides)[1])
    assert 0 < record.cost["params_drop"] < 100
    expected = 0 if "regularizer=none" in overrides else 4 if "updates_per_epoch=4" in overrides[0] else 1
    assert len(record.convergence) == expected
    if "p=0" in overrides:
        assert record.convergence[0]["sparsity"] == pytest.approx(0.6, abs=1e-4)
    if "target_params=0.5" in overrides:
        assert abs(record.cost["params_drop"] - 50) <= 0.3


RIVALS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


@pytest.mark.parametrize("method", RIVALS)
def test_every_method_runs_under_the_same_roof(method, run):
    config, path = run(f"method={method}", "target_flops=0.5")
    record = records.read(path)
    assert abs(record.cost["flops_drop"] - 50) <= 0.3
    model = lpslim.load(f"{config.work_dir}/stages/finetune/{record.key}")
    assert (
        count(model, torch.zeros(1, 1, 8, 8)).macs
        == (record.cost["dense" if method == "weights" else "pruned"]["macs"])
    )
    epochs = len(record.curves["finetune"]["train_loss"])
    assert epochs == (2 if method == "scratch_b" else 1)


def test_all_methods_start_from_one_baseline(run):
    keys = {
        records.read(run(f"method={method}", "target_flops=0.5")[1]).stages["baseline"] for method in RIVALS
    }
    assert len(keys) == 1


def test_the_controls_have_the_widths_of_the_selection_and_other_channels(run):
    reference, chance, scratch = (
        run(f"method={method}", "target_flops=0.5") for method in ("no_admm", "random", "scratch_e")
    )
    one, other, third = (records.read(path) for _, path in (reference, chance, scratch))
    assert one.channels == other.channels == third.channels
    pruned = [
        architecture.describe(stages.Path(config.work_dir) / "stages" / "prune" / record.stages["prune"]).kept
        for (config, _), record in ((reference, one), (chance, other), (scratch, third))
    ]
    assert pruned[0] != pruned[1]
    assert pruned[0] == pruned[2]


def test_single_weights_stay_zero_through_the_fine_tune(run):
    config, path = run("method=weights", "target_params=0.6")
    record = records.read(path)
    assert abs(record.cost["params_drop"] - 60) < 0.1
    before, after = weights(config, record, "prune"), weights(config, record)
    zeros = 0
    for name, value in before.items():
        if name.endswith("weight") and value.ndim > 1:
            assert torch.equal(value == 0, after[name] == 0)
            zeros += int((value == 0).sum())
    assert record.cost["dense"]["params"] - record.cost["pruned"]["params"] == zeros
    assert record.channels == {}


def test_a_second_target_reads_the_scores_again(run, monkeypatch):
    run("method=hrank", "target_flops=0.5")
    monkeypatch.setattr(hrank, "score", lambda *_: pytest.fail("the maps were looked at again"))
    record = records.read(run("method=hrank", "target_flops=0.4")[1])
    assert abs(record.cost["flops_drop"] - 40) <= 0.3


def test_given_weights_can_be_pruned_without_training_them(run, tmp_path):
    config, path = run("target_flops=0.5")
    trained = f"{config.work_dir}/stages/baseline/{records.read(path).stages['baseline']}/weights.safetensors"
    given, second = run(f"model.weights={trained}", "baseline.epochs=0", "target_flops=0.5", work=tmp_path)
    one, other = records.read(path), records.read(second)
    assert same_bits(weights(config, one, "baseline"), weights(given, other, "baseline"))
    assert other.curves["baseline"] == {"train_loss": [], "val_accuracy": [], "test_accuracy": []}
    assert set(other.accuracy["baseline"].values()) == {one.accuracy["baseline"]["last"]}
    assert one.stages["baseline"] != other.stages["baseline"]


def test_widths_are_multiples_where_hardware_wants_them(run):
    record = records.read(run("target_flops=0.5", "round_to=8")[1])
    assert all(kept % 8 == 0 for kept, _ in record.channels.values())
    assert abs(record.cost["flops_drop"] - 50) < 5


def test_a_budget_that_such_widths_miss_is_named_in_the_log(run, caplog):
    caplog.set_level("WARNING")
    record = records.read(run("target_flops=0.5", "round_to=32")[1])
    reached = record.cost["flops_drop"] / 100
    assert abs(reached - 0.5) > 0.003
    assert f"target_flops=0.5: the nearest with round_to=32 is {reached:.4f}" in caplog.messages


def test_a_target_out_of_reach_is_refused_before_any_work(run, tmp_path):
    with pytest.raises(UserError, match=r"target_flops=0\.999: must be at most 0\.9590: with these floors"):
        run("model=resnet20", "target_flops=0.999", work=tmp_path)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model=torchvision", "model.name=mobilenet_v3_small", "dataset=digits32", "method=slimming"),
            "no batch-norm with a scale follows it",
        ),
        (
            ("model=torchvision", "model.name=squeezenet1_1", "dataset=digits32", "regularizer=bn_scale"),
            "regularizer.penalty=bn_scale: squeezenet1_1 has no batch-norm with a scale",
        ),
        (
            ("model=vgg_small", "protected=[nowhere]"),
            "protected=nowhere: matches none of the prunable layers",
        ),
        (("protected=['*']",), "leaves no layer to prune"),
        (("structure=weights", "target_params=67e6"), "target_params=6.7e+07: must be below the"),
        (
            ("target_flops=0.96", "round_to=64"),
            "target_flops=0.96: must be at most 0.2482: with these floors "
            "(adjust=0.45, model.floor=0.0, one channel a layer, round_to=64) no more can be removed",
        ),
        (("model=resnet20", "target_params=10"), "target_params=10: must be at least "),
        (("target_params=1e9",), "target_params=1e+09: must be below the"),
        (
            ("model=bert_tiny", "dataset=grammar", "structure=weights", "target_params=0.9"),
            "target_params=0.9: must be below 0.8",
        ),
        (("model=bert_tiny", "dataset=grammar", "dataset.max_length=99"), r"does not take inputs (3, 99)"),
    ],
)
def test_what_the_network_cannot_do_is_refused_before_any_work(run, tmp_path, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        run(*overrides, work=tmp_path)
    assert not (tmp_path / "outputs" / "stages").exists()


def test_a_dry_run_prints_the_plan_and_does_nothing(run, tmp_path, capsys):
    _, foreseen = run("debug=dry", "dataset=digits", work=tmp_path)
    assert [stage.epochs for stage in foreseen] == [30, 6, 0, 0, 10]
    assert not any(stage.done for stage in foreseen)
    assert not (tmp_path / "results").exists()
    printed = capsys.readouterr().out
    for stage in ("baseline", "sparsify", "prune", "finetune"):
        assert f"{stage} " in printed
    assert "to do" in printed


TEXT = ("model=bert_tiny", "dataset=grammar", "target_params=0.4")
SHORT = ("baseline.epochs=1", "baseline.warmup_epochs=0", "regularizer.train.epochs=1", "finetune.epochs=1",
         "finetune.warmup_epochs=0")  # fmt: skip


def test_an_encoder_of_texts_goes_the_same_way(run):
    config, path = run(*TEXT, *SHORT)
    record = records.read(path)
    assert list(record.stages) == ["baseline", "sparsify", "score", "prune", "finetune"]
    assert record.data["metric"] == "matthews"
    assert record.cost["params_drop"] == pytest.approx(40, abs=0.3)
    heads = {layer: kept for layer, kept in record.channels.items() if "attention" in layer}
    assert [of for _, of in heads.values()] == [4, 4]
    assert [row["iteration"] for row in record.convergence] == [1]
    pruned = lpslim.load(Path(config.work_dir) / "runs" / "adhoc" / path.stem[:8] / "pruned")
    assert sum(p.numel() for p in pruned.parameters()) == record.cost["pruned"]["params"]


def test_texts_learn(run):
    _, path = run(*TEXT, "baseline.epochs=8", "baseline.warmup_epochs=1", *SHORT[2:])
    assert records.read(path).accuracy["baseline"]["last"] > 60  # Matthews; chance is 0


def test_a_size_to_reach_is_a_share_to_remove(run):
    _, one = run(*TEXT[:2], *SHORT, "target_params=50000")
    left = records.read(one).cost
    assert left["pruned"]["params"] == pytest.approx(50_000, abs=0.003 * left["dense"]["params"])


@pytest.mark.parametrize("whole", ["attention", "intermediate"])
def test_what_is_protected_stays_whole(run, whole):
    _, path = run(*TEXT[:2], *SHORT, "ratio=0.3", f"protected=['*{whole}*']")
    channels = records.read(path).channels
    assert channels
    assert not any(whole in layer for layer in channels)
