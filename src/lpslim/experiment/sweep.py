"""The summary of a sweep, the same whichever launcher did its jobs."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lpslim.base import files
from lpslim.base.errors import RunError, UserError
from lpslim.experiment import jobs, objective
from lpslim.experiment.jobs import Job

WORDS = {
    "done": "  done    ",
    "failed": "  FAILED  ",
    "lost": "  LOST    ",
    "running": "  running ",
    "stopped": "  stopped ",
}
COUNTED = {"lost": "lost", "stopped": "stopped", "running": "still running", "waiting": "not begun"}
SAID = {"lost": "killed; the same command goes on", "running": "goes on without this program"}
PATIENCE = 3.0  # seconds for the workers of a launcher that gave up to be gone


class SweepSummary(Callback):
    """Hydra callback: after a sweep, says what became of each job.

    The object travels to the processes that do the jobs, and the folder of their notes with it.
    ``objective``: what a job returns to a sweeper that searches, by name (lpslim.experiment.objective).
    """

    running: ClassVar[SweepSummary | None] = None  # Hydra raises past the callbacks when a job has failed
    traces: ClassVar[bool] = False  # whether the user wants tracebacks

    def __init__(self, objective: Sequence[str] | None = None) -> None:
        self.objective = list(objective or [])
        self.folder: Path | None = None
        self.planned: list[str] = []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Make a folder for this sweep alone, and list its jobs as far as they are known."""
        place = Path(config.hydra.sweep.dir).absolute()
        try:
            store.check_writable(place, "hydra.sweep.dir")
            objective.check(self.objective)
        except UserError as problem:
            print(f"error: {problem}", file=sys.stderr)
            sys.exit(2)  # Hydra would turn an exception into a warning
        self.folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=place))
        self.planned = planned(config)
        SweepSummary.running = self

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Show that the job lives."""
        if self.folder:
            jobs.begin(self.folder, config.hydra.job.num, " ".join(config.hydra.overrides.task))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Note the job's end; where a sweeper searches, give it the values that it asked for."""
        if not self.folder:
            return
        job = ended(job_return)
        if self.objective and job_return.status == JobStatus.COMPLETED:
            try:
                recorded = job_return.return_value.record
                job_return.return_value = objective.values(recorded, self.objective)
            except UserError as problem:
                job_return.status, job_return.return_value = JobStatus.FAILED, problem
                job = ended(job_return)
        jobs.end(self.folder, config.hydra.job.num, job)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the list; a job's failure that the sweeper took lightly gives its exit code all the same.

        A sweep without a job, whose pattern such as glob(...) matched nothing, ends with code 2.
        """
        if not self.planned and not self._begun():
            self.close()
            print("error: the sweep has no job: a pattern such as glob(...) matches nothing", file=sys.stderr)
            sys.exit(2)
        code = self.close()
        if self.objective:
            print(f"best trials: {config.hydra.sweep.dir}/optimization_results.yaml")
        if code:
            sys.exit(code)

    def close(self, problem: Exception | None = None, interrupted: bool = False) -> int:
        """Print what became of the jobs if any began, and return the exit code that they give.

        That is the first failed one's, or 1 where one was killed; ``problem`` is what the launcher
        then said.
        """
        assert self.folder
        if not self._begun():
            shutil.rmtree(self.folder, ignore_errors=True)
            return 0
        found = self._settled()
        states = [job.state for job in found]
        for job in found:
            if job.trace and (self.traces or job.surprise):
                print(job.trace, file=sys.stderr)
        print(*summary(found, "stopped" if interrupted else "lost"), sep="\n")
        if problem and "lost" in states:
            print(f"error: {type(problem).__name__}: {first_line(problem)}", file=sys.stderr)
        if "running" not in states:
            shutil.rmtree(self.folder, ignore_errors=True)
        return next((job.code for job in found if job.code), int("lost" in states))

    def _begun(self) -> bool:
        return self.folder is not None and any(self.folder.iterdir())

    def _settled(self) -> list[Job]:
        """Return the jobs, once workers that are being ended with the launcher had time to go."""
        assert self.folder
        if ray := sys.modules.get("ray"):
            ray.shutdown()  # its jobs end with the program that asked for them
        until = time.monotonic() + PATIENCE
        found = jobs.read(self.folder, self.planned)
        while any(job.state == "running" for job in found) and time.monotonic() < until:
            time.sleep(0.1)
            found = jobs.read(self.folder, self.planned)
        return found


def planned(config: DictConfig) -> list[str]:
    """Return the overrides of the jobs that Hydra's own sweeper will launch; of another's none."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return []
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    try:
        overrides = parser.parse_overrides([*words, *config.hydra.overrides.task])
        return [" ".join(job) for job in BasicSweeper.split_arguments(overrides, None)[0]]
    except HydraException:  # the sweeper will say so
        return []


def ended(job_return: JobReturn) -> Job:
    """Return the note of a job that has ended."""
    overrides = " ".join(job_return.overrides or [])
    if job_return.status == JobStatus.COMPLETED:
        gave = job_return.return_value
        return Job(overrides, "done", stages=[asdict(stage) for stage in gave.stages], dry=not gave.record)
    problem = job_return._return_value
    surprise = not isinstance(problem, UserError | RunError)
    return Job(
        overrides,
        "failed",
        problem=f"{type(problem).__name__}: {first_line(problem)}" if surprise else first_line(problem),
        code=2 if isinstance(problem, UserError) else 1,
        trace="".join(traceback.format_exception(problem)),
        surprise=surprise,
    )


def first_line(problem: BaseException) -> str:
    """Return the first line of a message, which may be empty."""
    return next(iter(str(problem).splitlines()), "")


def summary(found: Sequence[Job], lost: str = "lost") -> list[str]:
    """Return the lines on what became of the jobs; ``lost``: how to call those that began and did not end."""
    states = [lost if job.state == "lost" else job.state for job in found]
    more = "".join(f", {states.count(state)} {word}" for state, word in COUNTED.items() if state in states)
    lines = [f"sweep: {len(found)} jobs, {states.count('failed')} failed{more}"]
    for job, state in zip(found, states, strict=True):
        reason = job.problem or SAID.get(state)
        if state in WORDS:
            lines.append(f"{WORDS[state]}{job.overrides}{f': {reason}' if reason else ''}")
    if stages := [stage for job in found for stage in job.stages]:
        from lpslim.outlook import Stage, account, total  # slow to import, and a refused job does not need it

        told = total if any(job.dry for job in found) else account
        lines.append(f"all together: {told([Stage(**stage) for stage in stages])}")
    return lines
