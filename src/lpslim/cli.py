"""The command line around Hydra: plain messages, exit code 2 for the user's mistakes."""

from __future__ import annotations

import difflib
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from lpslim.base.errors import RunError, UserError
from lpslim.experiment.config import Config, check
from lpslim.experiment.records import flat
from lpslim.experiment.sweep import SweepSummary

if TYPE_CHECKING:  # slow to import, and a refused configuration does not need it
    from lpslim.outlook import Outcome

GROUPS = (
    "model",
    "dataset",
    "regularizer",
    "criterion",
    "method",
    "schedule",
    "trainer",
    "experiment",
    "profile",
    "debug",
)


CONF = Path("conf")
SILENT = os.environ.get("RANK", "0") != "0"  # one of several processes, of which the first speaks
INTERRUPTED = 130  # the shell's code for a program that Ctrl-C ended
NO_CHOICE = "Config group override must be"  # how Hydra's ValueError for model=null begins
NO_SLURM = 'Could not detect "srun"'  # how submitit's RuntimeError begins
NO_PLUGIN = re.compile(r"Could not (?:find|load) 'hydra/(launcher|sweeper)/(\w+)_plugin'")  # see _make_room
EXTRAS = {
    "submitit_slurm": "slurm",
    "submitit_local": "slurm",
}  # where pyproject.toml's extra is not called as the plugin is
MISTAKES = (UserError, RunError, HydraException, OmegaConfBaseException, YAMLError)
RESOLVER = re.compile(r"\$\{[^${}]*:")  # ${oc.env:TOKEN} would stand in the record; ${p} may


def register(conf: Path) -> None:
    """Make the schema known to Hydra, and the groups below ``conf`` to its help and messages."""
    global CONF
    CONF = conf
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("lpslim.groups", _groups, replace=True)
    _make_room(conf)


def _make_room(conf: Path) -> None:
    """Let ``hydra/launcher=joblib`` mean our file of that name, and call the plugin's own ``joblib_plugin``.

    Ours says in its defaults that it begins with the plugin's, whose types then hold.
    """
    Plugins.instance()  # they make theirs known when they are found
    for path in [*conf.glob("hydra/launcher/*.yaml"), *conf.glob("hydra/sweeper/*.yaml")]:
        known = ConfigStore.instance().repo["hydra"][path.parent.name]
        if path.name in known:
            known[f"{path.stem}_plugin.yaml"] = known.pop(path.name)


def _choices(group: str) -> list[str]:
    folder = CONF / group
    files = (p for p in folder.rglob("*.yaml") if not p.name.startswith("_"))  # _base: what others share
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in files)


def _groups() -> str:
    lines = []
    for group in GROUPS:
        rows = {name.split("/")[0] + "/..." if "/" in name else name for name in _choices(group)}
        text = textwrap.fill(
            ", ".join(sorted(rows)), 76, initial_indent=f"  {group:<13} ", subsequent_indent=" " * 16
        )
        lines.append(text)
    return "\n".join(lines) + "\n"


def checked(composed: DictConfig) -> Config:
    """Return the typed configuration.

    Raises:
        UserError: it cannot work; see :func:`lpslim.experiment.config.check`.
    """
    known = dict(flat(OmegaConf.to_container(OmegaConf.structured(Config))))
    extra = [key for key, _ in flat(OmegaConf.to_container(composed)) if key not in known]
    if extra:  # "+key=value" passes Hydra
        raise UserError("\n".join(_unknown(key) for key in extra))
    if called := [
        key for key, value in flat(OmegaConf.to_container(composed)) if RESOLVER.search(str(value))
    ]:
        raise UserError(
            "\n".join(f"{key}: a value may not call a resolver (${{name:...}})" for key in called)
        )
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check(config)
    return config


def filed(composed: DictConfig) -> dict[str, Any]:
    """Return the settings of the experiment file that has this run's name, flat; empty if none has."""
    name = composed.name
    if name not in _choices("experiment") or not GlobalHydra.instance().is_initialized():
        return {}
    return dict(flat(OmegaConf.to_container(compose("config", [f"experiment={name}"]), resolve=True)))


def explain(problem: Exception, arguments: list[str]) -> str:
    """Return one or a few lines for the user, without Hydra's internals."""
    text = str(problem)
    if isinstance(problem, OverrideParseException):
        return f"{problem.override}: cannot be read as key=value; quote what is special: 'key=\"a b\"'"
    if isinstance(problem, YAMLError):
        return "a configuration file is no plain YAML: " + " ".join(text.split())
    if lacking := NO_PLUGIN.search(text):
        kind, plugin = lacking.groups()
        extra = EXTRAS.get(plugin, plugin)
        return f"hydra/{kind}={plugin}: not installed; python -m pip install -e '.[{extra}]'"
    if text.startswith(NO_SLURM):
        return "hydra/launcher=submitit_slurm: no srun here; start the sweep where SLURM's commands are"
    given = {a.lstrip("+~").split("=")[0]: a for a in arguments if "=" in a}
    if missing := re.search(r"Could not find '([^']+)'", text):
        group = next((g for g in GROUPS if missing[1].startswith(g + "/")), None)
        if group:
            name = missing[1].removeprefix(group + "/")
            return f"{group}={name}: no such choice; one of {', '.join(_choices(group))}"
    if text.startswith(NO_CHOICE):
        key = next((key for key, word in given.items() if not key or word.endswith(("=", "=null"))), "")
        return f"{given[key]}: must be " + (f"one of {', '.join(_choices(key))}" if key else "key=value")
    cause = problem.__cause__ or problem
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        unknown = next((key for key in given if f"'{key}'" in text or key in text), text)
        return _unknown(unknown)
    if isinstance(cause, OmegaConfBaseException) and (key := str(cause.full_key).partition("[")[0]) in given:
        return f"{given[key]}: {str(cause.msg).splitlines()[0]}"
    return text


def _unknown(key: str) -> str:
    known = [name for name, _ in flat(OmegaConf.to_container(OmegaConf.structured(Config)))]
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "python run.py --help lists the keys"
    return f"{key}: no such key; {hint}"


def report_mistake(problem: Exception) -> None:
    """Print a mistake of the user's on the error stream, with ``--debug`` its traceback before it."""
    if SILENT:
        return
    if Debug.wanted:
        traceback.print_exception(problem)
    for line in explain(problem, sys.argv[1:]).splitlines():
        print(f"error: {line}", file=sys.stderr)


class Debug:
    """Whether tracebacks are wanted: ``--debug`` on the command line, or HYDRA_FULL_ERROR=1."""

    wanted: ClassVar[bool] = False


def guarded(main: Callable[[], object]) -> None:
    """Run ``main``; a mistake of the user's ends with its message and exit code 2.

    With ``--debug``, or HYDRA_FULL_ERROR=1 in the environment, the traceback is shown as well.
    ``--dry-run`` is understood as ``dry_run=true``.
    """
    if SILENT:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the program ends
    Debug.wanted = SweepSummary.traces = "--debug" in sys.argv or os.environ.get("HYDRA_FULL_ERROR") == "1"
    sys.argv = ["dry_run=true" if word == "--dry-run" else word for word in sys.argv if word != "--debug"]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the message is ours to write
    try:
        main()
    except Exception as problem:
        if SweepSummary.running and (code := SweepSummary.running.close(problem)):
            sys.exit(code)  # the summary has said it
        if not isinstance(problem, MISTAKES) and not str(problem).startswith((NO_CHOICE, NO_SLURM)):
            raise
        report_mistake(problem)
        sys.exit(code_of(problem))
    except KeyboardInterrupt:
        if SweepSummary.running:
            SweepSummary.running.close(interrupted=True)
        sys.exit(INTERRUPTED)


def code_of(problem: Exception) -> int:
    """Return the exit code: 1 where the machine failed or a run diverged, 2 for the user's mistakes."""
    return 1 if isinstance(problem, RunError) else 2


def task(composed: DictConfig) -> Outcome | None:
    """Do one run of the command line; what stops a single run ends the program with its exit code.

    In a sweep it is raised, in words for the user, so that the other jobs go on and the summary names it.
    """
    from lpslim.experiment.runner import (
        execute,  # slow to import, and a refused configuration does not need it
    )

    try:
        return execute(checked(composed), filed(composed))
    except MISTAKES as problem:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            report_mistake(problem)
            sys.exit(code_of(problem))
        if isinstance(problem, UserError | RunError):
            raise
        raise UserError(explain(problem, list(HydraConfig.get().overrides.task))) from problem
