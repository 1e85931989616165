"""Checks of a configuration before anything is read or trained: values and names. Imports no torch."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from math import isfinite

from lpslim.base.errors import UserError
from lpslim.experiment import config as schema
from lpslim.experiment.config import Config, Rule, one_of
from lpslim.training.schedule import DEVICES, OPTIMIZERS, PRECISIONS, SCHEDULES, TRACKERS

CHANNELS_ALONE = ("criterion.name", "criterion.layer_budget_from", "coupled", "round_to", "protected",
                  "retrain")  # fmt: skip
SHARES = Rule(
    lambda shares: shares == sorted(shares) and all(0 < share < 1 for share in shares),
    "shares of the epochs, between 0 and 1, in order",
)
TRAINING = {  # settings declared by lpslim.training.schedule, by the last part of their keys
    "epochs": schema.ZERO_OR_MORE, "batch_size": schema.ONE_OR_MORE, "lr": schema.POSITIVE,
    "momentum": schema.BELOW_ONE, "weight_decay": schema.ZERO_OR_MORE, "label_smoothing": schema.BELOW_ONE,
    "warmup_epochs": schema.ZERO_OR_MORE, "clip_norm": schema.POSITIVE, "milestones": SHARES,
    "schedule": one_of(*SCHEDULES), "optimizer": one_of(*OPTIMIZERS), "device": one_of(*DEVICES),
    "precision": one_of(*PRECISIONS), "checkpoint_minutes": schema.ZERO_OR_MORE,
    "trackers": Rule(set(TRACKERS).issuperset, f"a list of {', '.join(TRACKERS)}, or [] for none"),
    "threads": schema.between(1, 1024, "threads, or null for PyTorch's choice"),
}  # fmt: skip


def check(config: Config, choices: Mapping[str, str]) -> None:
    """Refuse a configuration that cannot work: UserError, a line per fault: key, value, what it may be.

    choices: group -> choice of the command line, such as dataset -> glue/rte, for the messages.
    """
    faults = []
    for key, value, metadata in schema.declared(config):
        rule = metadata.get("rule") or TRAINING.get(key.rpartition(".")[2])
        if rule and value is not None and not rule.accepts(value):
            faults.append(_fault(key, value, rule.allowed))
    if faults := [*faults, *_combinations(config, choices)]:
        raise UserError("\n".join(faults))


def _fault(key: str, value: object, allowed: object) -> str:
    return f"{key}={_typed(value)}: must be {allowed}"


def _typed(value: object) -> str:
    """Return a value as it is typed on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _combinations(config: Config, choices: Mapping[str, str]) -> Iterator[str]:
    for tracker in TRACKERS:
        if tracker in config.trainer.trackers and not find_spec(tracker):
            yield f"trainer.trackers={tracker}: is not installed: pip install 'lpslim[{tracker}]'"
    if config.model.input != config.dataset.input:
        wanted = f"{config.model.input}s for model={choices.get('model', config.model.name)}"
        dataset = choices.get("dataset", config.dataset.name)
        yield _fault("dataset", dataset, f"{wanted}, and gives {config.dataset.input}s")
    if config.dataset.input == "text" and not config.dataset.tokenizer:
        yield _fault("dataset.tokenizer", "", "the name of the encoder whose tokens the texts become")
    if config.target_flops is not None and config.target_params is not None:
        yield _fault("target_params", config.target_params, "null when target_flops is given")
    if config.coupled and config.model.input == "text":
        yield _fault("coupled", True, "false for texts: the stream of an encoder keeps its width")
    if config.dataset.source == "digits" and config.dataset.image_size % 8:
        yield _fault("dataset.image_size", config.dataset.image_size, "a multiple of 8 for the digits")
    if config.regularizer.name != "none" and not config.regularizer.train.epochs:
        yield _fault("regularizer.train.epochs", 0, "1 or more, or regularizer=none")
    if config.protocol == "val" and not config.dataset.val_fraction:
        yield _fault("protocol", "val", "last or paper with dataset.val_fraction=0, which leaves no split")
    elif config.protocol == "val" and config.model.weights and config.model.input == "image":
        yield _fault("protocol", "val", "last or paper with model.weights, which have seen the images of val")
    if config.retrain == "rewind" and config.regularizer.name == "none":
        yield _fault(
            "retrain", "rewind", "finetune with regularizer=none, whose weights are the dense network's"
        )
    if config.retrain.startswith("scratch") and not config.baseline.epochs and config.scratch.epochs is None:
        yield _fault("scratch.epochs", None, "1 or more with baseline.epochs=0")
    if config.trainer.cuda_graphs and config.trainer.compile:
        yield _fault("trainer.cuda_graphs", True, "false with trainer.compile=true")
    if config.trainer.cuda_graphs and config.model.input == "text":
        yield _fault("trainer.cuda_graphs", True, "false for texts, whose batches differ in length")
    for group in ("options", "penalty_options"):
        for name, value in getattr(config.regularizer, group).items():
            if isinstance(value, float) and not isfinite(value):
                yield _fault(f"regularizer.{group}.{name}", value, "a finite number")
    given, defaults = ({key: value for key, value, _ in schema.declared(c)} for c in (config, Config()))
    for key in CHANNELS_ALONE if config.granularity == "weights" else ():
        if given[key] != defaults[key]:
            yield _fault(key, given[key], f"{_typed(defaults[key])} with granularity=weights")
