"""Runner: one run from its checked configuration to its record."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.tensorboard import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from lpslim.base import files, registry
from lpslim.base.errors import DivergenceError, RunError, UserError
from lpslim.experiment import keys, records, stages
from lpslim.experiment.config import IGNORED_KEYS, Config, flat
from lpslim.experiment.keys import Info, Step, plan
from lpslim.experiment.records import Record
from lpslim.experiment.stages import Run
from lpslim.models import family as families
from lpslim.models import storage
from lpslim.pruning import criteria, unstructured
from lpslim.training import distributed, runtime
from lpslim.training.distributed import broadcast_from_main, main_process_first

SHORT = 8  # characters of a key in a folder's name


@dataclass(frozen=True)
class Outcome:
    """Result of a run: its stages as planned, and the path of its record; of a dry run None."""

    stages: list[Step]
    record_path: Path | None = None


def execute(config: Config, experiment_file: Config | None) -> Outcome:
    """Do the run that ``config`` (already checked) describes.

    Finished stages are found by their keys; a run whose record exists is not repeated.
    experiment_file: the configuration of the run's experiment file without overrides; None without a file.

    Raises:
        UserError: the data are not there, or the network cannot do what is asked.
        RunError: the run could not go on, or diverged.
    """
    with distributed.fail_fast(but=(UserError,)):
        runtime.make_accelerator(config.trainer)  # several processes find each other
        run = main_process_first(lambda: _load(config))
        config, planned, key = run.config, list(run.steps.values()), run.steps["finetune"].key
        if len(set(distributed.gather([key]))) > 1:
            raise UserError("the processes of this run have different settings, or find different data")
        path = records.path_of(Path(config.results_dir), config.name, key)
        known = broadcast_from_main(lambda: records.read(path) if path.exists() else None)
        if known and not config.dry_run:
            _report(known, config, f"record: {path} (measured before)")
            return Outcome(planned, path)
        differs = main_process_first(lambda: _differences(run, experiment_file))
        broadcast_from_main(lambda: _check(run))
        broadcast_from_main(lambda: _print_plan(run))
        if config.dry_run:
            return Outcome(planned)
        folder = Path(config.work_dir) / "runs" / config.name / key[:SHORT]
        broadcast_from_main(lambda: _prepare(config, folder))
    with distributed.fail_fast(), _explained(planned), _logs(folder) as charts:
        infos, diverged = _obtain(replace(run, charts=charts))
        record = broadcast_from_main(lambda: _record(run, infos, diverged, differs))
        broadcast_from_main(lambda: _finish(run, record, folder))
    _report(record, config, f"run folder: {folder}\nrecord: {path}")
    return Outcome(planned, path)


def _load(config: Config) -> Run:
    """Read the data, decide the precision, and plan the stages."""
    config = replace(config, trainer=runtime.resolved(config.trainer))
    load = registry.find("data.datasets", config.dataset.source).load
    data = load(config.dataset, Path(config.work_dir) / "data")
    return Run(config, data, plan(config, data))


def _differences(run: Run, experiment: Config | None) -> dict[str, list[Any]]:
    """Return the settings that make a run another one than its experiment file; none if its group is the same."""
    if experiment is None:
        return {}
    trainer = replace(experiment.trainer, device=run.config.trainer.device)
    experiment = replace(experiment, trainer=runtime.resolved(trainer))
    theirs, ours = (dict(flat(asdict(config))) for config in (experiment, run.config))
    differs = {key: [theirs.get(key), ours.get(key)] for key in {**theirs, **ours}
               if key not in {*IGNORED_KEYS, "seed"} and theirs.get(key) != ours.get(key)}  # fmt: skip
    same_data = not any(
        key.startswith("dataset.") for key in differs
    )  # else the file's have another fingerprint
    same = same_data and plan(experiment, run.data)["finetune"].group == run.steps["finetune"].group
    return {} if same else differs


def _check(run: Run) -> None:
    """Refuse, on an untrained network and before any work, what cannot be done (UserError)."""
    config, data, chosen = run.config, run.data, run.config.model
    names = {
        "sparsify": "regularizer.train",
        "finetune": "finetune" if config.retrain == "finetune" else "scratch",
    }
    trainings = {names.get(stage, stage): train for stage, train in keys.trainings(config).items()}
    runtime.check_batches(trainings, data)
    try:
        model = storage.dense(chosen.family, chosen.name, data.shape, data.num_classes).build()
        candidates = run.candidates(model)
    except (IndexError, RuntimeError) as problem:  # too small for its poolings, or too long a text
        raise UserError(f"model={chosen.name}: does not take inputs {data.shape}: {problem}") from problem
    families.get(chosen.family).check(model, data)
    if config.granularity == "weights":
        unstructured.check(model, run.budget())
    else:
        candidates.check(run.budget())
        for key in ("name", "layer_budget_from"):
            if criterion := getattr(config.criterion, key):
                try:
                    criteria.check(criterion, model, candidates.units)
                except UserError as problem:
                    raise UserError(f"criterion.{key}={criterion}: {problem}") from problem
    if config.regularizer.name != "none":
        keys.regularizer(config)[0](model)


def _print_plan(run: Run) -> None:
    print(f"{run.config.name}, seed {run.config.seed}:")
    for step in run.steps.values():
        epochs = f"  {step.epochs} epochs" if step.epochs else ""
        print(f"  {step.name:<12} {step.key}  {'found' if step.done else 'to do'}{epochs}")
    ahead = [step.epochs for step in run.steps.values() if not step.done]
    print(f"  {len(run.steps) - len(ahead)} stages found, {len(ahead)} to do: {sum(ahead)} epochs")


def _prepare(config: Config, folder: Path) -> None:
    for key in ("results_dir", "work_dir"):
        files.check_writable(Path(getattr(config, key)), key)
    files.write_json(folder / "config.json", asdict(config))


@contextmanager
def _logs(folder: Path) -> Iterator[SummaryWriter | None]:
    """Write the log and the charts of a run into its folder; in the main process alone."""
    if not distributed.is_main():
        yield None
        return
    handler, root = logging.FileHandler(folder / "run.log"), logging.getLogger("lpslim")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        with logging_redirect_tqdm(), SummaryWriter(str(folder / "tensorboard")) as charts:
            yield charts
    finally:
        root.removeHandler(handler)
        handler.close()


@contextmanager
def _explained(planned: list[Step]) -> Iterator[None]:
    """Turn a failure of the machine into a RunError that says what is kept; an interruption passes, after it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted\n{_kept(planned)}", file=sys.stderr)
        raise
    except (MemoryError, OSError, RuntimeError, SafetensorError) as problem:
        if isinstance(problem, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(
            problem
        ):
            happened = "out of memory: take a smaller batch_size, or a machine with more memory"
        elif isinstance(problem, OSError | SafetensorError):
            happened = f"{problem}: free space, permit writing, or put back what is missing"
        else:
            raise
        raise RunError(f"{happened}\n{_kept(planned)}") from problem


def _kept(planned: list[Step]) -> str:
    return f"kept: {', '.join(s.name for s in planned if s.done) or 'checkpoints'}; the same command goes on"


def _obtain(run: Run) -> tuple[dict[str, Info], DivergenceError | None]:
    """Find or compute every stage; return what they say of themselves, and where one diverged."""
    infos: dict[str, Info] = {}
    try:
        for stage in run.steps:
            infos[stage] = stages.obtain(run, stage)
    except DivergenceError as problem:
        return infos, problem
    return infos, None


def _record(
    run: Run, infos: dict[str, Info], diverged: DivergenceError | None, differs: dict[str, Any]
) -> Record:
    device = runtime.make_accelerator(run.config.trainer).device.type
    environment = records.environment(device, distributed.count())
    described = {**keys.method(run.config), "differs": differs, "environment": environment}
    return records.make_record(run.config, run.data, run.steps, infos, diverged, **described)


def _finish(run: Run, record: Record, folder: Path) -> None:
    """Fill the run's folder, then write the record."""
    config, last = run.config, run.steps["finetune"]
    if record.convergence:
        rows = [list(record.convergence[0]), *(row.values() for row in record.convergence)]
        files.write_text(folder / "convergence.csv", "".join(f"{','.join(map(str, row))}\n" for row in rows))
    if not record.diverged:
        ignored = shutil.ignore_patterns(files.MANIFEST)
        shutil.copytree(last.folder, folder / "pruned", ignore=ignored, dirs_exist_ok=True)
        families.get(config.model.family).save_tokenizer(folder / "pruned", config.dataset.tokenizer)
    path = records.path_of(Path(config.results_dir), config.name, record.key)
    with files.locked(last.lock):  # another run may be here with the same settings
        files.clear_scratch(path)
        if not path.exists():
            records.write(Path(config.results_dir), record)


def _report(record: Record, config: Config, places: str) -> None:
    """Print what a run gave; a run that diverged raises it as a RunError."""
    title, cost, protocol = (
        f"{record.experiment}, seed {record.seed}: {record.method}",
        record.cost,
        config.protocol,
    )
    if where := record.diverged:
        happened = f"diverged in {where.stage}, epoch {where.epoch}, step {where.step}: loss {where.loss}"
        raise RunError(f"{title}: {happened}\n{places}\na lower learning rate may help")
    if distributed.is_main():
        print(f"{title}: test {record.data.metric} (protocol={protocol})")
        for name, stage in (("dense", "baseline"), ("pruned", "prune"), ("fine-tuned", "finetune")):
            print(f"  {name:<11}{record.accuracy[stage][protocol]:6.2f} %")
        print(f"  multiply-adds -{cost.flops_drop:.2f} %, parameters -{cost.params_drop:.2f} %\n{places}")
