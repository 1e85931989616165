"""Checks of a configuration before anything is read or trained: values and names. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from lpslim.base.errors import UserError
from lpslim.experiment import config as schema
from lpslim.experiment.config import Config, Rule, one_of
from lpslim.training.schedule import DEVICES, OPTIMIZERS, PRECISIONS, SCHEDULES

PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
NAME = re.compile(rf"{PART}(/{PART})*")  # as a path it cannot climb out of its folder
LONGEST_NAME = 200
NAMES = {
    "name": Rule(
        lambda name: len(name) <= LONGEST_NAME and NAME.fullmatch(name),
        "parts of letters, digits, '.', '_' and '-' between slashes",
    ),
    "dataset.name": Rule(re.compile(PART).fullmatch, "letters, digits, '.', '_' and '-'"),
}
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
    "threads": schema.between(1, 1024, "threads, or null for PyTorch's choice"),
}  # fmt: skip


def check(config: Config, choices: Mapping[str, str] = MappingProxyType({})) -> None:
    """Refuse a configuration that cannot work.

    choices: group -> choice of the command line, such as dataset -> glue/rte, for the messages.

    Raises:
        UserError: one line per fault: the key, its value and what it may be.
    """
    faults = []
    for key, value, metadata in schema.declared(config):
        rule = metadata.get("rule") or NAMES.get(key) or TRAINING.get(key.rpartition(".")[2], schema.ANY)
        if value is not None and not rule.accepts(value):
            faults.append(_fault(key, value, rule.allowed))
    if faults := [*faults, *_combinations(config, choices)]:
        raise UserError("\n".join(faults))


def _fault(key: str, value: object, allowed: object) -> str:
    return f"{key}={_typed(value)}: must be {allowed}"


def _typed(value: object) -> str:
    """Return a value as it is typed on a command line."""
    return (
        "null"
        if value is None
        else repr(value).removesuffix(".0")
        if isinstance(value, float)
        else str(value)
    )


def _combinations(config: Config, choices: Mapping[str, str]) -> Iterator[str]:
    if config.model.input != config.dataset.input:
        wanted = f"{config.model.input}s for model={choices.get('model', config.model.name)}"
        dataset = choices.get("dataset", config.dataset.name)
        yield _fault("dataset", dataset, f"{wanted}, and gives {config.dataset.input}s")
    if config.dataset.input == "text" and not config.dataset.tokenizer:
        yield _fault("dataset.tokenizer", "", "the name of the encoder whose tokens the texts become")
    if config.target_flops is not None and config.target_params is not None:
        yield _fault("target_params", config.target_params, "null when target_flops is given")
    if config.dataset.source == "digits" and config.dataset.image_size % 8:
        yield _fault("dataset.image_size", config.dataset.image_size, "a multiple of 8 for the digits")
    if config.regularizer.name != "none" and not config.regularizer.train.epochs:
        yield _fault("regularizer.train.epochs", 0, "1 or more, or regularizer=none")
    if config.retrain != "finetune" and not config.baseline.epochs and config.scratch.epochs is None:
        yield _fault("scratch.epochs", None, "1 or more with baseline.epochs=0")
    for key, value, allowed in (
        ("criterion.name", config.criterion.name, "magnitude"),
        ("criterion.layer_budget_from", config.criterion.layer_budget_from, None),
        ("round_to", config.round_to, 1),
        ("protected", config.protected, []),
        ("retrain", config.retrain, "finetune"),
    ):
        if config.granularity == "weights" and value != allowed:
            yield _fault(key, value, f"{_typed(allowed)} with granularity=weights")
