"""Command line around Hydra: one plain line and exit code 2 for a mistake, exit code 1 for a failed run."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from lpslim.base import files
from lpslim.base.errors import RunError, UserError
from lpslim.experiment import sweep
from lpslim.experiment.checks import check
from lpslim.experiment.config import Config, declared, flat, is_path
from lpslim.experiment.refusals import KEYS, PLUGIN_KEYS, explained, key_of, no_such

RESOLVER = re.compile(r"\$\{[^${}]*:")  # ${oc.env:TOKEN} would be written to the record; ${p} may
PATH_KEYS = [key for key, _, metadata in declared(Config()) if is_path(metadata)]
ASKING = {  # flags of Hydra's that ask for information
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc",
}  # fmt: skip
DETAILS = {"--resolve", "--package", "-p"}  # of --cfg
SET_BY_METHOD = {"regularizer", "regularizer.name", "regularizer.penalty", "criterion", "criterion.name",
                 "criterion.score_norm", "criterion.layer_budget_from", "retrain", "granularity"}  # fmt: skip


def main(words: Sequence[str], conf: Path) -> int:
    """Do what a command line asks, with the configuration files below ``conf``; return the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flags in (["--debug"], ["--dry-run"], ["--multirun", "-m"]):
        parser.add_argument(*flags, action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path)
    own, rest = parser.parse_known_args(words)
    rest = [_as_path(word) for word in (["dry_run=true", *rest] if own.dry_run else rest)]
    ConfigStore.instance().store(name="schema", node=Config)
    try:
        if own.config_dir:
            folder = own.config_dir.expanduser().absolute()
            if not folder.is_dir():
                raise UserError(f"--config-dir={own.config_dir}: no such folder")
            rest = [f"hydra.searchpath=[{_quoted(f'file://{folder}')}]", *rest]
        if _asks_hydra(rest):
            with explained(rest, conf):
                _hydra(["-m", *rest] if own.multirun else rest, conf)
            return 0
        with hydra.initialize_config_dir(str(conf), version_base="1.3"):
            composed = compose(rest, conf, swept=own.multirun)
            if not own.multirun:
                configure_log(composed.hydra.job_logging)
                _execute(composed, composed.hydra)
                return 0
        sweep.check(composed)
        return _sweep(rest, conf, Path(composed.hydra.sweep.dir).expanduser().absolute(), own.debug)
    except KeyboardInterrupt:
        return 130  # the shell's code for a program that Ctrl-C ended
    except (UserError, RunError) as problem:
        if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks
            if own.debug:
                traceback.print_exception(problem)
            print(*(f"error: {line}" for line in str(problem).splitlines()), sep="\n", file=sys.stderr)
        return 2 if isinstance(problem, UserError) else 1


def _asks_hydra(words: Sequence[str]) -> bool:
    """Return whether the words ask Hydra for information; UserError for other flags, and for deletions."""
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    asks = not ASKING.isdisjoint(flags)
    if odd := [flag for flag in flags if flag not in (ASKING | DETAILS if asks else ())]:
        raise UserError(f"{odd[0]}: no such flag; settings are key=value")
    for word in words:
        if word.startswith("~") and not key_of(word).startswith((*PLUGIN_KEYS, "hydra")):
            raise UserError(f"{word}: a setting cannot be deleted; left out, it has its default")
    return asks


def compose(words: Sequence[str], conf: Path, swept: bool = False) -> DictConfig:
    """Return the configuration of a command line, Hydra's node included, without keys that are ``swept``."""
    with explained(words, conf):
        parsed = zip(words, OverridesParser.create().parse_overrides(list(words)), strict=True)
        fixed = [word for word, override in parsed if not (swept and override.is_sweep_override())]
        return hydra.compose("config", fixed, return_hydra_config=True)


def _sweep(words: list[str], conf: Path, place: Path, debug: bool) -> int:
    files.check_writable(place, "hydra.sweep.dir")
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=place))
    code = 0
    try:
        _hydra(["-m", *words, f"hydra.sweep.dir={_quoted(folder)}"], conf)
    except Exception as problem:
        if not sweep.notes(folder):
            with explained(words, conf):
                raise
        code, reason = 1, " ".join(f"{type(problem).__name__}: {problem}".split())
        print(f"error: the launcher gave up: {reason[:300]}", file=sys.stderr)
    finally:
        jobs = sweep.notes(folder)
        print(*(job["trace"] for job in jobs if debug), sep="", end="", file=sys.stderr)
        print(*sweep.summary(jobs), sep="\n", end="\n" if jobs else "")
    if not jobs:
        raise UserError("the sweep has no job: a pattern such as glob(...) matches nothing")
    return next((job["code"] for job in jobs if job["code"]), code)


def _hydra(words: list[str], conf: Path) -> None:
    sys.argv[1:] = words  # hydra.main takes its words from nowhere else
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it then raises, in place of printing and exiting
    hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(task)()


def task(composed: DictConfig) -> Path | None:
    """Do one job of a sweep, in whichever process; return the path of its record, None if there is none."""
    job = HydraConfig.get()
    with sweep.job(Path(job.sweep.dir), job.job.num, _words(job)):
        return _execute(composed, job)
    return None  # the job has failed, which is noted


def _execute(composed: DictConfig, job: Any) -> Path | None:
    config = checked(composed, job)
    from lpslim.experiment.runner import execute  # imports torch, which a refusal need not wait for

    table, _, row = config.name.rpartition("/")
    experiment, own = None, list(job.overrides.hydra)  # which may name a folder of the user's
    if row in GlobalHydra.instance().config_loader().get_group_options(f"experiment/{table}", overrides=own):
        experiment = checked(hydra.compose("config", [f"experiment={config.name}", *own]))
    try:
        return execute(config, experiment)
    except UserError as problem:
        raise UserError(_as_typed(str(problem), config, job)) from problem


def _as_typed(message: str, config: Config, job: Any) -> str:
    """Return a message with ``model=<choice>`` in place of ``model.name=...`` that nobody typed."""
    typed = {key_of(word) for word in _words(job)}
    for group, name in (("model", config.model.name), ("dataset", config.dataset.name)):
        choice = job.runtime.choices.get(group)
        if choice and f"{group}.name" not in typed:
            of_name = "" if choice == name else f" ({name})"
            message = message.replace(f"{group}.name={name}", f"{group}={choice}{of_name}")
    return message


def checked(composed: DictConfig, job: Any = None) -> Config:
    """Return the typed configuration, or refuse it; ``job``: Hydra's node, with the words that were typed."""
    choices, words = (job.runtime.choices, _words(job)) if job else ({}, [])
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    values: Any = OmegaConf.to_container(own)
    faults = [f"{key}: a value may not call a resolver (${{name:...}})"
              for key, value in flat(values) if RESOLVER.search(str(value))]  # fmt: skip
    faults += [no_such(key, KEYS) for key, _ in flat(values)
               if key not in KEYS and not key.startswith(PLUGIN_KEYS)]  # fmt: skip
    if method := choices.get("method"):
        faults += [f"{word}: is set by method={method}, so must not be given"
                   for word in words if key_of(word) in SET_BY_METHOD]  # fmt: skip
    if faults:
        raise UserError("\n".join(faults))
    with explained(words):
        for key in PATH_KEYS:
            if (place := str(OmegaConf.select(own, key))).startswith("~"):
                OmegaConf.update(own, key, os.path.expanduser(place))
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), own))
    check(config, choices)
    return config


def _as_path(word: str) -> str:
    """Return a word whose path Hydra's grammar takes as it was typed: with ``~`` expanded, no number."""
    if key_of(word) not in PATH_KEYS:
        return word
    named = re.sub(r"(?<=[=,])[\d.]+(?=,|$)", lambda number: _quoted(number[0]), word)  # 1.10 would be 1.1
    return re.sub(r"(?<=[=,])~(?=[/,]|$)", lambda _: os.path.expanduser("~"), named)


def _quoted(text: object) -> str:
    """Return a text as a string of Hydra's grammar."""
    return "'" + str(text).replace("'", r"\'") + "'"


def _words(job: Any) -> list[str]:
    words: Any = OmegaConf.to_container(job.overrides.task)  # with ${...} as it was typed
    return list(words)
