"""What a user can get wrong, and the exact line that says so."""

import subprocess
import sys

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lpslim.base.errors import UserError
from lpslim.cli import checked, explain
from lpslim.experiment.keys import plan
from tests.composing import CONF, ROOT, composed

NAMED = "must be parts of letters, digits, '.', '_' and '-' between slashes"
EXPERIMENTS = ", ".join(
    sorted(str(p.relative_to(CONF / "experiment").with_suffix("")) for p in CONF.rglob("experiment/*/*.yaml"))
)
CRITERIA = "bn_scale, chip, fpgm, hrank, magnitude, random"
BAD = {
    "p=0.5": "p=0.5: must be 1 or more (the penalty is |z|^(1/p)), or 0 for L0",
    "p=-1": "p=-1.0: must be 1 or more (the penalty is |z|^(1/p)), or 0 for L0",
    "p=nan": "p=nan: must be 1 or more (the penalty is |z|^(1/p)), or 0 for L0",
    "p=abc": "p=abc: Value 'abc' of type 'str' could not be converted to Float",
    "M=0": "M=0.0: must be a positive number, or null for no synaptic inhibition",
    "M=-1": "M=-1.0: must be a positive number, or null for no synaptic inhibition",
    "rho=0": "rho=0.0: must be a positive number",
    "lamb=-1e-4": "lamb=-0.0001: must be a positive number",
    "ratio=1.2": "ratio=1.2: must be at least 0 and below 1",
    "adjust=1": "adjust=1.0: must be at least 0 and below 1",
    "target_flops=60.6": "target_flops=60.6: must be the share to remove, above 0 and below 1, or null",
    "target_params=0": "target_params=0.0: must be the share to remove, above 0 and below 1, or how many to "
    "leave (67e6), or null",
    "seed=-1": "seed=-1: must be 0 or more, and below 2^63",
    "seed=1.5": "seed=1.5: Value '1.5' of type 'float' could not be converted to Integer",
    "selection=best": "selection=best: must be one of last, val, paper",
    "epoch_scale=0": "epoch_scale=0.0: must be a positive number",
    "rohh=3": "rohh: no such key; did you mean rho?",
    "+anything=1": "anything: no such key; python run.py --help lists the keys",
    "dataset.rooot=x": "dataset.rooot: no such key; did you mean dataset.root or dataset.rgb?",
    "model=bert": "model=bert: no such choice; one of bert_base, bert_tiny, minilm, resnet101, resnet110, "
    "resnet18, resnet20, resnet32, resnet34, resnet44, resnet50, resnet56, torchvision, vgg16, vgg19, "
    "vgg_small",
    "schedule=linear": "schedule=linear: no such choice; one of cosine, step",
    "model.family=nope": "model.family=nope: must be one of bert, resnet_cifar, resnet_imagenet, "
    "torchvision_zoo, vgg",
    "model.name=vgg16": "model.name=vgg16: must be one of resnet20, resnet32, resnet44, resnet56, resnet110",
    "model.input=text": "dataset=digits: gives image input, but model=resnet20 reads text",
    "model.floor=1": "model.floor=1.0: must be at least 0 and below 1",
    "dataset.source=os": "dataset.source=os: must be one of cifar, digits, glue, grammar, imagefolder, "
    "tiny_imagenet",
    "dataset.val_fraction=0": "dataset.val_fraction=0.0: must be above 0 and below 1",
    "dataset.crop_padding=-1": "dataset.crop_padding=-1: must be 0 to 4096 pixels",
    "dataset.image_size=9": "dataset.image_size=9: must be a multiple of 8 for the digits",
    "regularizer.penalty=scad": "regularizer.penalty=scad: must be one of lp, bn_scale, none",
    "regularizer.form=cubed": "regularizer.form=cubed: must be one of squared, norm",
    "regularizer.updates_per_epoch=0": "regularizer.updates_per_epoch=0: must be 1 or more",
    "regularizer.train.lr=0": "regularizer.train.lr=0.0: must be a positive number",
    "criterion.name=luck": f"criterion.name=luck: must be one of {CRITERIA}",
    "criterion.widths=luck": f"criterion.widths=luck: must be one of {CRITERIA}",
    "criterion.across=layers": "criterion.across=layers: must be one of minmax, uniform, raw",
    "criterion=apib": f"criterion=apib: no such choice; one of {CRITERIA}",
    "method=dropout": "method=dropout: no such choice; one of chip, fpgm, hrank, l0, l1, l1_norm, lp, "
    "lp_no_cap, no_admm, random, scratch_b, scratch_e, slimming, uniform, weights",
    "structure=blocks": "structure=blocks: must be one of channels, weights",
    "retrain=scratch": "retrain=scratch: must be one of finetune, scratch_e, scratch_b",
    "round_to=0": "round_to=0: must be 1 or more channels",
    "criterion.weights=U": "criterion.weights=U: must be one of Z, W",
    "regularizer.train.epochs=0": "regularizer.train.epochs=0: must be 1 or more",
    "baseline.schedule=square": "baseline.schedule=square: must be one of cosine, step, linear, constant",
    "baseline.optimizer=adam": "baseline.optimizer=adam: must be one of sgd, adamw",
    "finetune.clip_norm=0": "finetune.clip_norm=0.0: must be a positive number",
    "model=bert_tiny": "dataset=digits: gives image input, but model=tiny reads text",
    "model=bert_tiny dataset=grammar criterion=hrank": "criterion.name=hrank: must be magnitude or random "
    "for an encoder of texts",
    "model=bert_tiny dataset=grammar regularizer=bn_scale": "regularizer.penalty=bn_scale: must be another: "
    "an encoder of texts has no batch-norm",
    "model=bert_tiny dataset=grammar dataset.tokenizer=''": "dataset.tokenizer='': must be the name of the "
    "encoder whose tokens the texts become",
    "structure=weights protected=[layer1]": "protected=['layer1']: must be [] with structure=weights",
    "retrain=scratch_e model.weights=x.pt baseline.epochs=0": "baseline.epochs=0: must be 1 or more",
    "dataset.max_length=1": "dataset.max_length=1: must be 2 to 65536 tokens",
    "finetune.batch_size=0": "finetune.batch_size=0: must be 1 or more",
    "finetune.momentum=1": "finetune.momentum=1.0: must be at least 0 and below 1",
    "finetune.weight_decay=-1": "finetune.weight_decay=-1.0: must be 0 or more",
    "finetune.warmup_epochs=10": "finetune.warmup_epochs=10.0: must be 0 or more, and below epochs=10",
    "finetune.milestones=[0.7,0.2]": "finetune.milestones=[0.7, 0.2]: must be shares of the epochs, "
    "between 0 and 1, in order",
    "trainer.device=tpu": "trainer.device=tpu: must be one of auto, cpu, cuda",
    "trainer.precision=int4": "trainer.precision=int4: must be one of no, bf16, fp16",
    "trainer.threads=0": "trainer.threads=0: must be 1 to 1024, or null for PyTorch's choice",
    "name=../../x": f"name=../../x: {NAMED}",
    "name=/tmp/x": f"name=/tmp/x: {NAMED}",
    "name=": f"name=: {NAMED}",
    "name=a/../b": f"name=a/../b: {NAMED}",
    "name=.hidden": f"name=.hidden: {NAMED}",
    "name=null": "name=null: field 'name' is not Optional",
    "name=${oc.env:HOME}": "name: a value may not call a resolver (${name:...})",
    "results_dir=${oc.env:NO_SUCH_VARIABLE}": "results_dir: a value may not call a resolver (${name:...})",
    "protected=[${oc.env:HOME}]": "protected: a value may not call a resolver (${name:...})",
    "name=x-${oc.env:HOME}": "name: a value may not call a resolver (${name:...})",
    "p=${nothing}": "p=${nothing}: Interpolation key 'nothing' not found",
    "p=${rho}": "p=0.0015: must be 1 or more (the penalty is |z|^(1/p)), or 0 for L0",
    "dataset.name=../x": "dataset.name=../x: must be letters, digits, '.', '_' and '-'",
    "dataset.root=": "dataset.root=: must be a folder",
    "work_dir=": "work_dir=: must be a folder",
    "results_dir=": "results_dir=: must be a folder",
    "model.weights=": "model.weights=: must be a file, the name of weights, or null",
    "seed=9223372036854775808": "seed=9223372036854775808: must be 0 or more, and below 2^63",
    "dataset.image_size=0": "dataset.image_size=0: must be a multiple of 8 for the digits\n"
    "dataset.image_size=0: must be 1 to 4096 pixels",
    "dataset=cifar10 dataset.image_size=-3": "dataset.image_size=-3: must be 1 to 4096 pixels",
    "dataset=imagenet dataset.image_size=1000000": "dataset.image_size=1000000: must be 1 to 4096 pixels",
    "dataset.workers=-1": "dataset.workers=-1: must be 0 to 1024 processes",
    "dataset.store_gb=-1": "dataset.store_gb=-1.0: must be 0 or more GB",
    "dataset.store_gb=inf": "dataset.store_gb=inf: must be 0 or more GB",
    "dataset.max_length=100000000": "dataset.max_length=100000000: must be 2 to 65536 tokens",
    "trainer.threads=100000": "trainer.threads=100000: must be 1 to 1024, or null for PyTorch's choice",
    "protected=layer1": "protected=layer1: Invalid value assigned: str is not a ListConfig, list or tuple.",
    "protected=[1,null]": "protected=[1,null]: Invalid type assigned: NoneType is not a subclass of str. "
    "value: None",
    "finetune.milestones=[a]": "finetune.milestones=[a]: Value 'a' of type 'str' could not be converted to "
    "Float",
    "p=": "p=: Value '' of type 'str' could not be converted to Float",
    "p=[1]": "p=[1]: Value '[1]' of type 'list' could not be converted to Float",
    "p=1=2": "p=1=2: cannot be read as key=value; quote what is special: 'key=\"a b\"'",
    "p=!!python/object/apply:os.system": "p=!!python/object/apply:os.system: cannot be read as key=value; "
    "quote what is special: 'key=\"a b\"'",
    "p": "p: cannot be read as key=value; quote what is special: 'key=\"a b\"'",
    "=3": "=3: must be key=value",
    "schedule=null": "schedule=null: must be one of cosine, step",
    "regularizer=null": "regularizer=null: must be one of bn_scale, lp, none",
    "experiment=../../etc/passwd": f"experiment=../../etc/passwd: no such choice; one of {EXPERIMENTS}",
    "finetune.lr=nan": "finetune.lr=nan: must be a positive number",
    "finetune.lr=inf": "finetune.lr=inf: must be a positive number",
    "finetune.epochs=1.5": "finetune.epochs=1.5: Value '1.5' of type 'float' could not be converted to "
    "Integer",
    "target_flops=0.5 target_params=0.5": "target_params=0.5: must be null when target_flops is given",
    "trainer.compile=perhaps": "trainer.compile=perhaps: Value 'perhaps' is not a valid bool (type str)",
    "trainer.channels_last=x": "trainer.channels_last=x: Value 'x' is not a valid bool (type str)",
    "trainer.cuda_graphs=true": "trainer.cuda_graphs=true: must be false or null unless trainer.compile=true",
    "trainer=auto trainer.cuda_graphs=true": "trainer.cuda_graphs=true: must be false or null unless "
    "trainer.compile=true",
    "trainer.compile=true trainer.cuda_graphs=true trainer.device=cpu": "trainer.cuda_graphs=true: must be "
    "false or null with trainer.device=cpu",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_refused_with_its_exact_message(override):
    with pytest.raises((UserError, HydraException, OmegaConfBaseException, ValueError)) as refused:
        checked(composed(*override.split()))
    assert explain(refused.value, override.split()) == BAD[override]


def test_single_weights_go_with_magnitude_alone():
    with pytest.raises(UserError) as refused:
        checked(composed("method=chip", "structure=weights", "round_to=8", "retrain=scratch_e"))
    assert str(refused.value).splitlines() == [
        "criterion.name=chip: must be magnitude with structure=weights",
        "round_to=8: must be 1 with structure=weights",
        "retrain=scratch_e: must be finetune with structure=weights",
    ]


def test_epochs_may_be_none_where_the_weights_are_given():
    assert checked(composed("model.weights=file.pt", "baseline.epochs=0")).baseline.epochs == 0
    with pytest.raises(UserError, match=r"^baseline\.epochs=0: must be 1 or more$"):
        checked(composed("baseline.epochs=0"))


def test_weights_of_another_network_of_that_name_are_refused():
    with pytest.raises(
        UserError, match=r"model\.weights=DEFAULT: must be a file that exists, torchvision has none"
    ):
        plan(checked(composed("model=vgg16", "model.weights=DEFAULT")), None)


def test_a_sweep_that_matches_nothing_is_a_mistake():
    done = subprocess.run(
        [sys.executable, "run.py", "-m", "experiment=glob(vgg16/*)"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: the sweep has no job: a pattern such as glob(...) matches nothing\n"


def test_all_faults_are_told_at_once():
    with pytest.raises(UserError) as refused:
        checked(composed("p=0.5", "M=0", "target_flops=0.5", "target_params=0.5"))
    assert [line.split("=")[0] for line in str(refused.value).splitlines()] == ["p", "M", "target_params"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ratio=1.2"], "error: ratio=1.2: must be at least 0 and below 1\n"),
        (["rohh=1"], "error: rohh: no such key; did you mean rho?\n"),
        (
            ["model=resnet50", "dataset=imagenet", "dataset.root=/nowhere"],
            "error: dataset.root=/nowhere: no images there.",
        ),
    ],
)
def test_the_program_ends_with_code_2_and_no_traceback(arguments, expected, tmp_path):
    done = subprocess.run(
        [sys.executable, "run.py", f"work_dir={tmp_path}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(expected)
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "stages").exists()


def test_a_sweep_with_a_mistake_says_what_became_of_every_job(tmp_path):
    words = ["-m", "seed=-1,0", "debug=dry", "dataset=digits", f"work_dir={tmp_path}"]
    done = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stdout[done.stdout.index("sweep:") :].splitlines()
    assert last[0] == "sweep: 2 jobs, 1 failed"
    assert last[1].startswith("  FAILED  seed=-1 ")
    assert last[1].endswith(": seed=-1: must be 0 or more, and below 2^63")
    assert last[2].startswith("  done    seed=0 ")
    assert last[3].startswith("all together: 0 stages found, 5 to do: 46 epochs, about ")


@pytest.mark.parametrize("words", [["ratio=1.2"], ["-m", "ratio=1.2,0.5", "debug=dry"], ["rohh=1"]])
def test_the_traceback_is_there_for_who_asks(words, tmp_path):
    command = [sys.executable, "run.py", *words, f"work_dir={tmp_path}", "--debug"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("Traceback (most recent call last)") >= 1
    assert (
        "UserError" if "ratio" in words[-1] or "-m" in words else "ConfigCompositionException"
    ) in done.stderr
    assert ("error: " in done.stderr) != ("sweep: 2 jobs, 1 failed" in done.stdout)


YAML = {
    "an object": (
        "name: !!python/object/apply:os.mkdir [{ran}]",
        "could not determine a constructor for the tag",
    ),
    "a broken line": ("name: [", "expected the node content"),
}


@pytest.mark.parametrize("kind", YAML)
def test_an_experiment_file_that_is_no_plain_yaml(kind, tmp_path):
    text, problem = YAML[kind]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_text(
        "# @package _global_\n" + text.format(ran=tmp_path / "ran") + "\n"
    )
    command = [sys.executable, "run.py", "--config-dir", str(tmp_path), "experiment=odd", "debug=dry"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: a configuration file is no plain YAML: ")
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def test_help_reads_like_a_manual():
    done = subprocess.run([sys.executable, "run.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for group in ("model", "dataset", "regularizer", "criterion", "schedule", "trainer", "experiment"):
        assert f"\n  {group} " in done.stdout
    assert done.stdout.count("python run.py") >= 4
