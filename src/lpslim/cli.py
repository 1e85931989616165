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
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from lpslim.config import Config, check
from lpslim.errors import RunError, UserError
from lpslim.records import PLACES, flat

if TYPE_CHECKING:  # slow to import, and a refused configuration does not need it
    from lpslim.outlook import Stage

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
MISTAKES = (UserError, RunError, HydraException, OmegaConfBaseException, YAMLError)
RESOLVER = re.compile(r"\$\{[^${}]*:")  # ${oc.env:TOKEN} would stand in the record; ${p} may


def register(conf: Path) -> None:
    """Make the schema known to Hydra, and the groups below ``conf`` to its help and messages."""
    global CONF
    CONF = conf
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("lpslim.groups", _groups, replace=True)


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
        UserError: it cannot work; see :func:`lpslim.config.check`.
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


def differences(composed: DictConfig) -> dict[str, list[Any]]:
    """Return ``{key: [file's value, run's value]}`` against the experiment file of this name.

    Empty if they agree, the places aside, or if no experiment file has this name.
    """
    name = composed.name
    if name not in _choices("experiment") or not GlobalHydra.instance().is_initialized():
        return {}
    as_filed = dict(flat(OmegaConf.to_container(compose("config", [f"experiment={name}"]), resolve=True)))
    as_run = dict(flat(OmegaConf.to_container(composed, resolve=True)))
    return {
        key: [as_filed.get(key), value]
        for key, value in as_run.items()
        if key not in PLACES and as_filed.get(key) != value
    }


def explain(problem: Exception, arguments: list[str]) -> str:
    """Return one or a few lines for the user, without Hydra's internals."""
    text = str(problem)
    if isinstance(problem, OverrideParseException):
        return f"{problem.override}: cannot be read as key=value; quote what is special: 'key=\"a b\"'"
    if isinstance(problem, YAMLError):
        return "a configuration file is no plain YAML: " + " ".join(text.split())
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
    Debug.wanted = "--debug" in sys.argv or os.environ.get("HYDRA_FULL_ERROR") == "1"
    sys.argv = ["dry_run=true" if word == "--dry-run" else word for word in sys.argv if word != "--debug"]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the message is ours to write
    try:
        main()
    except Exception as problem:
        if not isinstance(problem, MISTAKES) and not str(problem).startswith(NO_CHOICE):
            raise
        if SweepSummary.jobs:  # Hydra raises one job's mistake once all have ended
            SweepSummary.show()
        else:
            report_mistake(problem)
        sys.exit(code_of(problem))
    except KeyboardInterrupt:
        if SweepSummary.jobs:
            SweepSummary.show()
        sys.exit(INTERRUPTED)


def code_of(problem: Exception) -> int:
    """Return the exit code: 1 where the machine failed or a run diverged, 2 for the user's mistakes."""
    return 1 if isinstance(problem, RunError) else 2


def task(composed: DictConfig) -> Path | list[Stage] | None:
    """Do one run of the command line; what stops a single run ends the program with its exit code.

    In a sweep it is raised, so that the other jobs go on and the summary names it.
    """
    from lpslim.runs import execute  # slow to import, and a refused configuration does not need it

    try:
        return execute(checked(composed), differences(composed))
    except (UserError, RunError) as problem:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        report_mistake(problem)
        sys.exit(code_of(problem))


class SweepSummary(Callback):
    """Hydra callback: after a sweep in one process, says what became of each job.

    The notes belong to the class: Hydra makes the object, and raises past it when a job has failed.
    """

    jobs: ClassVar[list[str]] = []
    foreseen: ClassVar[list[Stage]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Note one job's end."""
        overrides = " ".join(job_return.overrides or [])
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            return
        if job_return.status == JobStatus.COMPLETED:
            self.jobs.append(f"  done    {overrides}")
            if isinstance(job_return.return_value, list):
                self.foreseen.extend(job_return.return_value)
        else:
            if Debug.wanted:
                traceback.print_exception(job_return._return_value)
            problem = explain(job_return._return_value, list(job_return.overrides or []))
            self.jobs.append(f"  FAILED  {overrides}: {problem.splitlines()[0]}")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the list.

        A sweep without a job, whose pattern such as glob(...) matched nothing, ends with code 2.
        """
        if not self.jobs:
            print("error: the sweep has no job: a pattern such as glob(...) matches nothing", file=sys.stderr)
            sys.exit(2)  # Hydra would turn an exception into a warning and code 0
        self.show()

    @classmethod
    def show(cls) -> None:
        """Print what became of the jobs, and after a dry run what all together have left to do."""
        failed = sum(line.startswith("  FAILED") for line in cls.jobs)
        print(f"sweep: {len(cls.jobs)} jobs, {failed} failed", *cls.jobs, sep="\n")
        if cls.foreseen:
            from lpslim.outlook import total  # as in task

            print(f"all together: {total(cls.foreseen)}")
