"""From finished stages to the run's folder and its record."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from lpslim.base import files
from lpslim.base.errors import DivergenceError
from lpslim.data.splits import Data
from lpslim.experiment import records
from lpslim.experiment.config import Config
from lpslim.experiment.records import Record
from lpslim.experiment.versions import RULE, VERSIONS
from lpslim.models.storage import WEIGHTS
from lpslim.training.loop import distributed

DIGITS = 4  # of a percentage or a loss: finer than any set of images can tell
COSTS = ("dense", "pruned", "flops_drop", "params_drop")
COLUMNS = ("train_loss", "val_accuracy", "test_accuracy")


def make_record(
    config: Config,
    composed: dict[str, Any],
    differs: dict[str, list[Any]],
    data: Data,
    keys: dict[str, str],
    infos: dict[str, dict[str, Any]],
    device: str,
    diverged: DivergenceError | None = None,
) -> Record:
    """Return the record of a run from what its stages say (``infos``, stage -> stage.json).

    Where one diverged, ``infos`` has the stages before it.
    """
    pruned = infos.get("prune", {})
    curves = {stage: info["curve"] for stage, info in infos.items() if "curve" in info}
    if diverged:
        curves[diverged.stage] = diverged.curve
    return Record(
        experiment=config.name,
        key=keys["finetune"],
        seed=config.seed,
        differs=differs,
        config=composed,
        stages=keys,
        data={
            "name": data.name,
            "source": data.source,
            "fingerprint": data.fingerprint,
            "metric": data.task.metric,
            **{split: len(getattr(data, split)) for split in ("train", "val", "test")},
        },
        cost={"rule": RULE, **{key: pruned[key] for key in COSTS if key in pruned}},
        accuracy={stage: info["accuracy"] for stage, info in infos.items() if "accuracy" in info},
        channels=pruned.get("channels", {}),
        convergence=infos.get("sparsify", {}).get("convergence", []),
        curves={stage: _columns(rows) for stage, rows in curves.items()},
        seconds={stage: round(info["seconds"], 1) for stage, info in infos.items()},
        environment={**records.environment(device), **ranks.counted()},
        versions={stage: VERSIONS["score" if stage == "widths" else stage] for stage in keys},
        weights={stage: info["files"][WEIGHTS] for stage, info in infos.items()
                 if WEIGHTS in info.get("files", {})},
        diverged={name: getattr(diverged, name) for name in ("stage", "epoch", "step", "loss")}
                 if diverged else {},
    )  # fmt: skip


def _columns(curve: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [round(row[name], DIGITS) for row in curve] for name in COLUMNS}


def fill_folder(folder: Path, record: Record, pruned: Path) -> None:
    """Put the record, the convergence series and the pruned network into the run's folder."""
    store.write_json(folder / "record.json", vars(record))
    if record.convergence:
        store.write_text(folder / "convergence.csv", pd.DataFrame(record.convergence).to_csv(index=False))
    network = store.make_folder(folder / "pruned", folder)
    store.refuse_links(network)  # a tokenizer may follow, written by another library
    for file in pruned.iterdir():
        if file.name != store.MANIFEST:
            with store.beside(network / file.name) as scratch:
                shutil.copyfile(file, scratch)


def summary(record: Record, selection: str) -> str:
    """Return the lines that end a run's output."""
    if record.diverged:
        what = "diverged in {stage}, epoch {epoch}, step {step}: loss {loss}".format(**record.diverged)
        return f"{record.experiment}, seed {record.seed}: {what}"
    cost, accuracy = record.cost, record.accuracy
    dense, pruned = cost["dense"], cost["pruned"]
    metric = record.data.get("metric", "accuracy")
    return "\n".join(
        [
            f"{record.experiment}, seed {record.seed}: test {metric} (selection={selection})",
            f"  dense              {accuracy['baseline'][selection]:6.2f} %   "
            f"{dense['macs'] / 1e6:9.2f} M multiply-adds   {dense['params'] / 1e6:7.3f} M parameters",
            f"  pruned             {accuracy['prune']['last']:6.2f} %   "
            f"{pruned['macs'] / 1e6:9.2f} M (-{cost['flops_drop']:.2f} %)"
            f"   {pruned['params'] / 1e6:7.3f} M (-{cost['params_drop']:.2f} %)",
            f"  pruned, fine-tuned {accuracy['finetune'][selection]:6.2f} %",
        ]
    )
