"""Mistakes on the command line: one line with the key, the value and what it may be, and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import MissingConfigException

from lpslim import cli
from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.experiment.refusals import explained
from lpslim.models import storage
from tests.composing import CONF, ROOT, configured
from tests.experiment.dying import places

NAME = "must be parts of letters, digits, '.', '_' and '-' between slashes"


def plugins(package, *more):
    return f"must be one of {', '.join([*registry.choices(package), *more])}"


CRITERIA = plugins("pruning.criteria")
POSITIVE, SHARE, BELOW_ONE = "must be a positive number", "above 0 and below 1", "at least 0 and below 1"
PACKAGE = "experiment=odd: its first line must be '# @package _global_', with no byte-order mark before it, "
UNREADABLE = "cannot be read as key=value"
# words -> what the message says after the word itself, or whole where it begins with "error: "
VALUES = {
    "p=0.5": "must be 1 or more (the penalty is |z|^(1/p)), or 0 for L0",
    "p=nan": "must be 1 or more",
    "p=abc": "'abc' of type 'str' could not be converted to Float",
    "p=": "could not be converted to Float",
    "p=[1]": "could not be converted to Float",
    "M=0": f"{POSITIVE}, or null for no synaptic inhibition",
    "M=-1": POSITIVE,
    "rho=0": POSITIVE,
    "lamb=-0.1": POSITIVE,
    "ratio=1.2": f"must be {BELOW_ONE}",
    "adjust=1": f"must be {BELOW_ONE}",
    "target_flops=60.6": SHARE,
    "target_params=0": "the share to remove, above 0 and below 1, or how many to leave (67e6)",
    "seed=-1": "must be 0 or more, and below 2^63",
    "seed=9223372036854775808": "below 2^63",
    "seed=1.5": "could not be converted to Integer",
    "protocol=best": "must be one of last, val, paper",
    "epoch_scale=0": POSITIVE,
    "epoch_scale=1001": "must be a positive number, at most 1000",
    "granularity=blocks": "must be one of channels, weights",
    "retrain=scratch": "must be one of finetune, rewind, scratch_e, scratch_b",
    "round_to=0": "must be 1 or more",
    "kind=other": "must be one of ADMM, rival, control, unstructured",
    "model.family=nope": plugins("models.families"),
    "model.name=vgg16": "must be one of resnet20, resnet32, resnet44, resnet56, resnet110",
    "model.floor=1": BELOW_ONE,
    "model.weights=": "must be a file, the name of weights, or null",
    "dataset.source=os": plugins("data.datasets"),
    "dataset.val_fraction=1": BELOW_ONE,
    "dataset.crop_padding=-1": "must be 0 to 4096 pixels",
    "dataset.image_size=9": "must be a multiple of 8 for the digits",
    "dataset.image_size=8000": "must be 1 to 4096 pixels",
    "dataset.workers=-1": "must be 0 to 1024 processes",
    "dataset.cache_gb=inf": "must be 0 or more",
    "dataset.max_length=1": "must be 2 to 65536 tokens",
    "dataset.root=": "must be a folder",
    "work_dir=": "must be a folder",
    "dataset.name=../x": "must be letters, digits, '.', '_' and '-'",
    "name=../../x": NAME, "name=/tmp/x": NAME, "name=": NAME, "name=a/../b": NAME, "name=.hidden": NAME,
    "name=null": "not Optional",
    "regularizer.name=scad": plugins("training.regularizers", "none"),
    "regularizer.penalty=scad": plugins("sparsity.penalties"),
    "regularizer.form=cubed": "must be one of squared, norm",
    "regularizer.updates_per_epoch=0": "must be 1 or more",
    "regularizer.train.lr=0": POSITIVE,
    "regularizer.train.epochs=0": "must be 1 or more, or regularizer=none",
    "criterion.name=luck": CRITERIA,
    "criterion.layer_budget_from=luck": CRITERIA,
    "criterion.score_norm=layers": "must be one of minmax, uniform, raw",
    "criterion.weights=U": "must be one of Z, W",
    "baseline.schedule=square": "must be one of cosine, step, linear, constant",
    "baseline.optimizer=adam": "must be one of sgd, adamw",
    "baseline.epochs=-1": "must be 0 or more",
    "finetune.batch_size=0": "must be 1 or more",
    "finetune.momentum=1": BELOW_ONE,
    "finetune.weight_decay=-1": "must be 0 or more",
    "finetune.clip_norm=0": POSITIVE,
    "finetune.lr=inf": POSITIVE,
    "finetune.milestones=[a]": "'a' of type 'str' could not be converted to Float",
    "finetune.warmup_epochs=-1": "must be 0 or more",
    "trainer.device=tpu": "must be one of auto, cpu, cuda",
    "trainer.precision=fp16": "must be one of auto, fp32, bf16",
    "trainer.threads=0": "must be 1 to 1024 threads, or null for PyTorch's choice",
    "trainer.compile=perhaps": "not a valid bool",
    "protected=layer1": "not a ListConfig, list or tuple",
    "p=${nothing}": "Interpolation key 'nothing' not found",
    "model=bert": "must be one of bert_base, bert_tiny, ",
    "dataset=glue/nope": "glue/cola, ",
    "schedule=linear": "must be one of cosine, step",
    "criterion=apib": "must be one of bn_scale, chip, ",
    "method=dropout": "must be one of chip, ",
    "experiment=../../etc/passwd": "must be one of bert_glue/cola, ",
    "hydra/launcher=nope": "must be one of basic, cores, ",
    "schedule=null": "must be one of cosine, step",
    "p": UNREADABLE, "p=1=2": UNREADABLE, "=3": UNREADABLE, "p=!!python/object/apply:os.system": UNREADABLE,
}  # fmt: skip
WHOLE = {
    "RATIO=0.3": "RATIO: no such key; did you mean ratio",
    "~baseline": "~baseline: a setting cannot be deleted; left out, it has its default",
    "--epochs 3": "--epochs: no such flag; settings are key=value",
    "--config-dir /nowhere p=3": "--config-dir=/nowhere: no such folder",
    "M=null dataset=nosuch": "dataset=nosuch: must be one of cifar10, ",
    "method=lp_channels regularizer.options.ramp=nan": "regularizer.options.ramp=nan: must be a finite",
    "method=lp_channels regularizer.options.ramp=abc": "regularizer.options: ",
    "rohh=3": "rohh: no such key; did you mean rho?",
    "modell=vgg16": "modell: no such key; did you mean model",
    "+anything=1": "anything: no such key; see --help",
    "+finetune.epochss=1": "finetune.epochss: no such key; did you mean finetune.epochs",
    "++trainer.foo.bar=1": "trainer.foo.bar: no such key",
    "dataset.rooot=x": "dataset.rooot: no such key; did you mean dataset.root",
    "regularizer.options.a=1": "regularizer.options.a: no such key; ++regularizer.options.a=... adds it",
    "finetune.milestones=[0.7,0.2]": "finetune.milestones=[0.7, 0.2]: must be shares of the epochs",
    "trainer.trackers=[aim]": "trainer.trackers=['aim']: must be a list of tensorboard, wandb, mlflow, or []",
    "model=vgg16 dataset=glue/rte": "dataset=glue/rte: must be images for model=vgg16, and gives texts",
    "model=bert_base dataset=cifar10": "dataset=cifar10: must be texts for model=bert_base, and gives images",
    "model=bert_tiny dataset=toy_text dataset.tokenizer=''": "dataset.tokenizer=: must be the name of the",
    "model=bert_tiny dataset=toy_text regularizer=bn_l1": "regularizer.name=bn_l1: ",
    "trainer.cuda_graphs=true trainer.compile=true": "trainer.cuda_graphs=true: must be false with trainer",
    "trainer.cuda_graphs=true model=bert_tiny dataset=toy_text": "trainer.cuda_graphs=true: must be false fo",
    "protocol=val dataset.val_fraction=0": "protocol=val: must be last or paper with dataset.val_fraction=0,",
    "protocol=val model.weights=x.pth": "protocol=val: must be last or paper with model.weights,",
    "regularizer=none retrain=rewind": "retrain=rewind: must be finetune with regularizer=none,",
    "retrain=scratch_e baseline.epochs=0": "scratch.epochs=null: must be 1 or more with baseline.epochs=0",
    "target_flops=0.5 target_params=0.5": "target_params=0.5: must be null when target_flops is given",
    "granularity=weights protected=[layer1]": "protected=['layer1']: must be [] with granularity=weights",
    "name=${oc.env:HOME}": "name: a value may not call a resolver",
    "results_dir=${oc.env:NO_SUCH_VARIABLE}": "results_dir: a value may not call a resolver",
    "protected=[${oc.env:HOME}]": "protected: a value may not call a resolver",
    "p=1,2": "Ambiguous value for argument 'p=1,2'",
    "model=resnet50 dataset=imagenet dataset.root=/nowhere": "dataset.root=/nowhere: ",
    "model=resnet50 dataset=imagenet dataset.root=~/nowhere": f"dataset.root={Path.home()}/nowhere: ",
    "model=resnet50 dataset=imagenet dataset.root='~/nowhere'": f"dataset.root={Path.home()}/nowhere: ",
    "model=resnet50 dataset=imagenet dataset.root=1.10": "dataset.root=1.10: ",  # no number
    "model.weights=~/nowhere.pth": f"model.weights={Path.home()}/nowhere.pth: must be a file that exists",
    "work_dir='~no_such_user'": "work_dir=~no_such_user: must be a folder",
    # names that were chosen, not typed
    "model=resnet50": "model=resnet50: takes images of 3 channels, not 1",
    "model=torchvision": "model=torchvision (mobilenet_v2): takes images of 3 channels, not 1",
    "model=torchvision model.name=vgg11": "model.name=vgg11: takes images of 3 channels, not 1",
    "model=bert_tiny dataset=toy_text dataset.max_length=65": "dataset.max_length=65: must be at most 64, as "
    "model=bert_tiny (tiny) reads",
}


def refusal(words, capsys):
    """Return the lines of the error stream."""
    assert cli.main(words.split(), CONF) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


@pytest.mark.parametrize("words", [*VALUES, *WHOLE])
def test_a_value_is_refused_as_it_was_typed_with_what_it_may_be_in_one_line(words, capsys):
    (line,) = refusal(words, capsys)
    assert line.startswith(WHOLE.get(words, f"{words}: "))
    assert VALUES.get(words, "") in line


def test_a_message_is_the_same_where_omegaconf_tells_causes(monkeypatch, capsys):
    monkeypatch.setenv("OC_CAUSE", "1")  # as under a debugger, or where coverage is measured
    (line,) = refusal("p=${nothing}", capsys)
    assert line == "p=${nothing}: Interpolation key 'nothing' not found"


def test_all_faults_are_told_at_once(capsys):
    lines = refusal("p=0.5 M=0 target_flops=0.5 target_params=0.5 finetune.lr=0", capsys)
    assert [line.split("=")[0] for line in lines] == ["p", "M", "finetune.lr", "target_params"]
    single = refusal("method=weights round_to=8 protected=[a] criterion.layer_budget_from=fpgm", capsys)
    assert [line.split("=")[0] for line in single] == ["criterion.layer_budget_from"]  # the method's, first


def test_a_preset_names_the_plugin_that_it_lacks():
    lacking = MissingConfigException("", "hydra/launcher/joblib", ["basic", "cores"])
    with pytest.raises(UserError) as refused, explained(["hydra/launcher=cores"], CONF):
        raise lacking
    assert str(refused.value).startswith("hydra/launcher=cores: needs Hydra's plug-in hydra/launcher/joblib")


@pytest.mark.parametrize("words", ["model=resnet20 dataset=digits32", "model=bert_tiny dataset=toy_text"])
def test_weights_that_are_not_finite_are_refused_by_file_and_tensor(words, tmp_path, capsys):
    config = configured(*words.split())
    data = registry.find("data.datasets", config.dataset.source).load(config.dataset, tmp_path)
    model = storage.dense(config.model.family, config.model.name, data.shape, data.num_classes).build()
    name, value = list(model.named_parameters())[5]
    value.data.flatten()[0] = float("nan")
    file = tmp_path / "weights.pth"
    if "bert" in words:
        model.transformer.save_pretrained(file)
    else:
        torch.save(model.state_dict(), file)
    (line,) = refusal(f"{words} model.weights={file} work_dir={tmp_path}/outputs", capsys)
    tensor = name.removeprefix("transformer.")
    assert line == f"model.weights={file}: {tensor} holds values that are no finite numbers"
    assert not (tmp_path / "outputs" / "stages").exists()


MISTAKES = """
import contextlib, io, json, sys
from pathlib import Path
from lpslim import cli
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.redirect_stderr(told):
        code = cli.main(words.split(), Path("conf").absolute())
    print(json.dumps([code, told.getvalue()]))
assert not {"torch", "pandas", "transformers"} & {*sys.modules}
"""


def test_a_traceback_is_there_for_who_asks_and_torch_for_nobody(tmp_path):
    said = {"ratio=1.2": "ratio=1.2: must be", "rohh=1": "rohh: no such key", "-m p=a,b": "p=a,b: Value 'a'",
            "-m ratio=1.2,1.3": "ratio=1.2: must be", "-m rohh=1,2": "rohh: no such key"}  # fmt: skip
    asked = [f"{words} --debug" for words in ("ratio=1.2", "-m ratio=1.2,1.3", "-m rohh=1,2")]
    lines = json.dumps([f"{words} work_dir={tmp_path}" for words in (*said, *asked)])
    done = subprocess.run([sys.executable, "-c", MISTAKES, lines], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words, line in zip((*said, *asked), done.stdout.splitlines(), strict=True):
        code, text = json.loads(line)
        assert (code, "Traceback" in text) == (2, words in asked), words
        assert said.get(words, "") in text
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: !!python/object/apply:os.mkdir [{ran}]", "could not determine a constructor for the tag"),
        ("name: [", "expected the node content"),
        (
            "# @package _global_\nselection: last",
            "In 'experiment/odd': ConfigKeyError raised while composing config: Key 'selection'",
        ),
        ("\ufeff# @package _global_\nratio: 0.4", PACKAGE),
        ("ratio: 0.4", PACKAGE),
    ],
)
def test_a_configuration_file_of_ones_own_may_be_broken(text, said, tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_text(text.format(ran=tmp_path / "ran"))
    (line,) = refusal(f"--config-dir {tmp_path} experiment=odd", capsys)
    assert said in line
    assert not (tmp_path / "ran").exists()


def test_a_run_that_fails_ends_with_code_1_and_its_reason(tmp_path, capsys):
    words = "model=vgg_small dataset=digits debug=tiny trainer.threads=1 baseline.lr=1e30 target_flops=0.5"
    assert cli.main([*words.split(), *places(tmp_path)], CONF) == 1
    told = capsys.readouterr().err
    assert "diverged in baseline" in told
    assert "Traceback" not in told


def test_of_several_processes_the_first_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["ratio=1.2"], CONF) == 2
    assert capsys.readouterr().err == ""
