"""Runner: one run from its checked configuration to its record."""

import logging
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from tqdm.contrib.logging import logging_redirect_tqdm

from lpslim.base import files, registry
from lpslim.base.errors import DivergenceError, RunError, UserError
from lpslim.experiment import keys, records, stages
from lpslim.experiment.config import IGNORED_KEYS, Config, flat
from lpslim.experiment.environment import environment
from lpslim.experiment.keys import Info, PlannedStage, plan
from lpslim.experiment.tracking import Trackers
from lpslim.models import family as families
from lpslim.models import storage
from lpslim.pruning import criteria, unstructured
from lpslim.training import distributed
from lpslim.training.distributed import broadcast_from_main, main_process_first


def execute(config: Config, experiment_file: Config | None) -> Path | None:
    """Do the run that ``config`` (already checked) describes; return the path of its record, None if dry.

    Finished stages are found by their keys; a run whose record exists is not repeated.
    UserError: the data are not there, or the network cannot do what is asked. RunError: it diverged, or the
    machine failed.

    experiment_file: the configuration of the run's experiment file without overrides; None without a file.
    """
    with distributed.fail_fast(but=(UserError, RunError)):
        distributed.make_accelerator(config.trainer)  # several processes find each other
        if not config.dry_run:
            broadcast_from_main(lambda: _check_writable(config))
        with guarded(()):
            run = main_process_first(lambda: _load(config))
        key = run.steps["finetune"].key
        if len(set(gather_object([key]))) > 1:
            raise UserError("the processes of this run have different settings, or find different data")
        path = records.path_of(Path(config.results_dir), config.name, key)
        folder = Path(config.work_dir) / "runs" / config.name / key[:8]
        known = broadcast_from_main(lambda: records.read(path) if path.exists() else None)
        if known and not config.dry_run:
            gone = "" if folder.is_dir() else "; another results_dir measures it again, for its network"
            _report(known, config, f"record: {path} (measured before{gone})")
            return path
        differs = broadcast_from_main(lambda: _begin(run, experiment_file, folder))
        if config.dry_run:
            return None
    infos: dict[str, Info] = {}
    diverged = None
    where = environment(run.config.trainer.device)  # before any training: the code that does it
    logs = _logs(run, folder) if distributed.is_main() else nullcontext()
    with distributed.fail_fast(), guarded(run.steps.values()), logs as trackers:
        try:
            for stage in run.steps:
                infos[stage] = stages.obtain(replace(run, trackers=trackers), stage)
        except DivergenceError as problem:
            diverged = problem
        described = {**keys.method(config), "differs": differs, "environment": where}
        record = records.make_record(run.config, run.data, run.steps, infos, diverged, **described)
        broadcast_from_main(lambda: _finish(run, record, folder))
        if trackers:
            trackers.keep(path)
    _report(record, config, f"run folder: {folder}\nrecord: {path}")
    return path


def _check_writable(config: Config) -> None:
    for key in ("results_dir", "work_dir"):
        files.check_writable(Path(getattr(config, key)), key)


def _load(config: Config) -> stages.Run:
    config, chosen = replace(config, trainer=distributed.resolved(config.trainer)), config.model
    load = registry.find("data.datasets", config.dataset.source).load
    data = load(config.dataset, Path(config.work_dir) / "data")
    if entry := families.published(chosen.family, chosen.name, chosen.weights):
        data = data.normalised(entry.mean, entry.std)
    return stages.Run(config, data, plan(config, data))


def _begin(run: stages.Run, experiment_file: Config | None, folder: Path) -> dict[str, list[Any]]:
    """Check and print the plan, make the run's folder, and return what the record names as ``differs``."""
    config, steps = run.config, run.steps.values()
    _check(run)
    differs = _differences(run, experiment_file) if experiment_file else {}
    epochs = {stage: train.epochs for stage, train in keys.trainings(config).items() if train.epochs}
    print(f"{config.name}, seed {config.seed}:")
    for step in steps:
        length = f"  {epochs[step.name]} epochs" if step.name in epochs else ""
        print(f"  {step.name:<12} {step.key}  {'found' if step.done else 'to do'}{length}")
    ahead = [epochs.get(step.name, 0) for step in steps if not step.done]
    print(f"  {len(steps) - len(ahead)} stages found, {len(ahead)} to do: {sum(ahead)} epochs")
    if config.trainer.precision == "bf16" and not distributed.computes_bf16(config.trainer.device):
        print("  bf16 is emulated here, as far as is known: trainer.precision=fp32 is far faster")
    if not config.dry_run:
        files.write_json(folder / "config.json", asdict(config))
    return differs


def _check(run: stages.Run) -> None:
    """Refuse, on an untrained network and before any work, what cannot be done (UserError)."""
    config, data, chosen, world = run.config, run.data, run.config.model, distributed.share().world
    if config.trainer.cuda_graphs and world > 1:
        raise UserError(f"trainer.cuda_graphs=true: must be false with {world} processes")
    for stage, train in keys.trainings(config).items():
        key, size = stage.replace("sparsify", "regularizer.train"), min(train.batch_size, len(data.train))
        if size % world:
            raise UserError(f"{key}.batch_size={size}: must be a multiple of the {world} processes")
    try:
        model = storage.dense(chosen.family, chosen.name, data.shape, data.num_classes).build()
        candidates = run.candidates(model)
    except (IndexError, RuntimeError) as fault:  # too small for its poolings, or too long a text
        raise UserError(f"model.name={chosen.name}: does not take inputs {data.shape}: {fault}") from fault
    family = families.get(chosen.family)
    family.check(model, data)
    if config.granularity == "weights":
        unstructured.check(model, keys.budget(config))
    else:
        candidates.check(keys.budget(config))
        for criterion in filter(None, (config.criterion.name, config.criterion.layer_budget_from)):
            try:
                criteria.layers(criterion, model, candidates.units)
            except UserError as problem:
                raise UserError(f"criterion={criterion}: {problem}") from problem
    if config.regularizer.name != "none":
        try:
            run.regularizer(model)
        except (TypeError, ValueError) as problem:  # an option that is no number, such as ramp=abc
            raise UserError(f"regularizer.options: {problem}") from problem
    if chosen.weights and not (config.dry_run or run.steps["baseline"].done):
        family.load_weights(model, chosen.name, chosen.weights, chosen.weights_dir)


def _differences(run: stages.Run, experiment: Config) -> dict[str, list[Any]]:
    """Return key -> [the experiment file's, the run's] value; empty where both have the same group.

    Memory layout and compilation change the last bits alone, and are the run's own affair.
    """
    trainer = distributed.resolved(replace(run.config.trainer, precision=experiment.trainer.precision))
    experiment = replace(experiment, trainer=trainer)
    theirs, ours = (dict(flat(records.public(config))) for config in (experiment, run.config))
    pairs = {key: [theirs.get(key), ours.get(key)] for key in {**theirs, **ours}}
    differs = {key: [a, b] for key, (a, b) in pairs.items() if a != b and key not in {*IGNORED_KEYS, "seed"}}
    other_data = any(key.startswith("dataset.") for key in differs)  # whose fingerprint is not known
    group = run.steps["finetune"].group
    return differs if other_data or plan(experiment, run.data)["finetune"].group != group else {}


@contextmanager
def _logs(run: stages.Run, folder: Path) -> Iterator[Trackers]:
    """Keep a log in the run's folder, and the run's trackers."""
    config, key = run.config, run.steps["finetune"].key
    title, settings = f"{config.name}, seed {config.seed}, {key[:8]}", dict(flat(records.public(config)))
    trackers = Trackers(config.trainer.trackers, title, folder, {"key": key, **settings})
    handler, root = logging.FileHandler(folder / "run.log"), logging.getLogger("lpslim")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        with logging_redirect_tqdm():
            yield trackers
    finally:
        trackers.finish()
        root.removeHandler(handler)
        handler.close()


@contextmanager
def guarded(planned: Iterable[PlannedStage]) -> Iterator[None]:
    """Say what is kept when the machine fails (RunError), a mistake shows late, or the user interrupts."""
    try:
        yield
    except (UserError, KeyboardInterrupt, MemoryError, OSError, RuntimeError, SafetensorError) as problem:
        finished = ", ".join(step.name for step in planned if step.done)
        kept, text = f"kept: {finished or 'checkpoints'}; the same command goes on", str(problem)
        brief = " ".join(text.split())[:200]
        if isinstance(problem, UserError) and finished:  # such as a target that no choice of channels meets
            raise UserError(f"{text}\nkept: {finished}") from problem
        if isinstance(problem, KeyboardInterrupt):
            print(f"\ninterrupted\n{kept}" if distributed.is_main() else "", file=sys.stderr)
            raise
        if isinstance(problem, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
            happened = "out of memory: take a smaller batch_size, or a machine with more memory"
        elif isinstance(problem, OSError | SafetensorError):
            happened = f"{text}: free space, permit writing, or put back what is missing"
        elif type(problem).__module__.startswith(("torch._dynamo", "torch._inductor")):
            happened = f"trainer.compile=true: {brief}; trainer.compile=false avoids it"
        else:
            raise
        raise RunError(f"{happened}\n{kept}") from problem


def _finish(run: stages.Run, record: records.Record, folder: Path) -> None:
    """Fill the run's folder, then write the record."""
    config, last = run.config, run.steps["finetune"]
    if record.convergence:
        rows = [list(record.convergence[0]), *(row.values() for row in record.convergence)]
        files.write_text(folder / "convergence.csv", "".join(f"{','.join(map(str, row))}\n" for row in rows))
    if not record.diverged:
        ignored = shutil.ignore_patterns(files.MANIFEST)
        shutil.copytree(last.folder, folder / "pruned", ignore=ignored, dirs_exist_ok=True)
        families.get(config.model.family).save_tokenizer(folder / "pruned", config.dataset.tokenizer)
    with files.locked(last.folder.with_suffix(".lock")):  # another run may be here with the same settings
        records.write(Path(config.results_dir), record)


def _report(record: records.Record, config: Config, places: str) -> None:
    """Print what a run gave (RunError: it diverged)."""
    title = f"{record.experiment}, seed {record.seed}: {record.method}"
    if where := record.diverged:
        happened = f"diverged in {where.stage}, epoch {where.epoch}, step {where.step}: loss {where.loss}"
        raise RunError(f"{title}: {happened}\n{places}\na lower learning rate may help")
    if distributed.is_main():
        print(f"{title}: test {record.data.metric} (protocol={config.protocol})")
        for name, stage in (("dense", "baseline"), ("pruned", "prune"), ("fine-tuned", "finetune")):
            print(f"  {name:<11}{record.accuracy[stage][config.protocol]:6.2f} %")
        drops = f"multiply-adds -{record.cost.flops_drop:.2f} %, parameters -{record.cost.params_drop:.2f} %"
        print(f"  {drops}\n{places}")
