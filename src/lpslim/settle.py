"""What a run's trainer leaves open, or asks for and cannot have here: settled before its keys are made.

``trainer=auto`` leaves open (null) the layout of images in memory, torch.compile and CUDA graphs. Each is
measured on the dense network, and the figures are kept in ``work_dir/trainer/``, so that the same command
later decides the same and finds its stages.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from lpslim import ranks, speed, store, strict
from lpslim.config import Config
from lpslim.engine import make_accelerator
from lpslim.errors import UserError
from lpslim.failures import out_of_memory
from lpslim.keys import KEY_LENGTH, digest
from lpslim.recipe import Trainer, scaled
from lpslim.speed import Speed
from lpslim.splits import Data
from lpslim.survey import check_target

log = logging.getLogger(__name__)

MARGIN = 1.05  # what is better by less is noise
SHORT = 60.0  # seconds of training, in which no compilation is made up for
LARGEST = 100_000  # bytes of a file
WITHOUT = "%s=true: %s; goes on without"
MODES = ((False, False), (True, False), (True, True))  # compile, cuda_graphs: the simplest first
Rows = dict[str, Speed | str]  # by name: how fast; or why it is out


class Row(TypedDict):
    """A :class:`lpslim.speed.Speed`."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    compilation: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Kept(TypedDict):
    """A file: what was asked for, with all that the answer depends on, and what was measured."""

    asked: dict[str, Any]
    rows: dict[str, Row | Annotated[str, Field(min_length=1, max_length=speed.SHOWN)]]


SHAPE: TypeAdapter[Any] = TypeAdapter(Kept)


@dataclass(frozen=True)
class Ahead:
    """What a run will train: samples in one process, and the networks that would be compiled for it.

    The baseline and the last stage alone count as samples, so that methods with and without the ADMM decide
    alike and share their baseline.
    """

    samples: float
    networks: int

    def seconds(self, row: Speed | str) -> float:
        """Return how long it takes; for ever, where it cannot be done."""
        if isinstance(row, str):
            return math.inf
        return self.samples / row.per_second + self.networks * row.compilation

    def best(self, ways: Sequence[Trainer], rows: Mapping[str, Speed | str]) -> Trainer:
        """Return the way that takes least time: the first of ``ways``, unless another is clearly better."""
        seconds = [self.seconds(rows[name(way)]) for way in ways]
        return ways[0 if seconds[0] <= MARGIN * min(seconds) else seconds.index(min(seconds))]


def name(way: Trainer) -> str:
    """Return a way to train in words."""
    mode = ("compiled with CUDA graphs" if way.cuda_graphs else "compiled") if way.compile else "eager"
    return f"{'channels_last' if way.channels_last else 'contiguous'}, {mode}"


def settled(config: Config, data: Data) -> Config:
    """Return the configuration with nothing of its trainer open and nothing that does not work here.

    Says what it decides, and why. Of several processes, which all call it, the main one decides for all.

    Raises:
        UserError: there is no such device; or, where something is to be measured, the network does not take
            the data, or ``work_dir`` cannot be written to.
    """
    chosen = ranks.decided(lambda: _settled(config, data))
    settings = {key: getattr(chosen, key) for key in ("channels_last", "compile", "cuda_graphs")}
    return replace(config, trainer=replace(config.trainer, **settings))


def _settled(config: Config, data: Data) -> Trainer:
    trainer = config.trainer
    if not trainer.compile and None not in (trainer.channels_last, trainer.compile, trainer.cuda_graphs):
        return trainer
    on_cuda = make_accelerator(trainer).device.type == "cuda"
    if trainer.cuda_graphs and not on_cuda:
        log.warning(WITHOUT, "trainer.cuda_graphs", "there is no CUDA device here")
        trainer = replace(trainer, cuda_graphs=False)
    if trainer.compile and (fault := _compile_fault(trainer)):
        log.warning(WITHOUT, "trainer.compile", fault)
        trainer = replace(trainer, compile=False, cuda_graphs=False)
    images = len(data.shape) == 3
    layouts = (
        [True, False] if trainer.channels_last is None and images else [trainer.channels_last is not False]
    )
    modes = [
        replace(trainer, compile=compile, cuda_graphs=graphs)
        for compile, graphs in MODES
        if trainer.compile in (None, compile) and trainer.cuda_graphs in (None, graphs)
        and ((on_cuda and images) or graphs is trainer.cuda_graphs or not graphs)  # texts: a graph per length
    ]  # fmt: skip
    ways = [[replace(mode, channels_last=layout) for layout in layouts] for mode in modes]
    if len(ways) * len(layouts) > 1:
        return _fastest(config, data, ways)
    return ways[0][0]


def _compile_fault(trainer: Trainer) -> str:
    fault = speed.compile_fault(trainer.device, trainer.precision, bool(trainer.cuda_graphs))
    return f"torch.compile does not work here ({fault})" if fault else ""


def _fastest(config: Config, data: Data, ways: list[list[Trainer]]) -> Trainer:
    """Return the best of ``ways``, by mode and layout, and print it beside the others."""
    ahead, remark = _ahead(config, data), ""
    rows, source = _rows(config, data, ways[:1], ahead)
    first = ahead.best(ways[0], rows)
    if len(ways) > 1:
        remark = "" if first.compile else _not_worth(ahead, rows[name(first)]) or _compile_fault(first)
        if not remark:
            rows, source = _rows(config, data, ways, ahead)
    tried = [way for mode in ways for way in mode if name(way) in rows]
    best = ahead.best(tried, rows)
    row = rows[name(best)]
    if isinstance(row, Speed):
        speed.remember(replace(config, trainer=best), data, row)
    others = [_other(name(way), rows[name(way)], row, ahead) for way in tried if way is not best]
    beside = "; ".join([*others, *([remark] if remark else [])])
    rate = (
        row
        if isinstance(row, str)
        else f"{row.per_second:.0f} {'images' if len(data.shape) == 3 else 'texts'}/s"
    )
    print(f"trainer: {name(best)}: {rate} ({beside}); {source}")
    return best


def _ahead(config: Config, data: Data) -> Ahead:
    recipes = [scaled(each, config.epoch_scale) for each in (config.baseline, config.finetune)]
    networks = sum(each.epochs > 0 for each in (*recipes, config.regularizer.train))
    return Ahead(sum(each.epochs for each in recipes) * len(data.train) / ranks.share().world, networks)


def _not_worth(ahead: Ahead, row: Speed | str) -> str:
    seconds = ahead.seconds(row)
    return f"compiled: not tried, for {seconds:.0f} s of training" if seconds < SHORT else ""


def _rows(config: Config, data: Data, ways: list[list[Trainer]], ahead: Ahead) -> tuple[Rows, str]:
    """Return how fast the ways are, from their file or measured in one go, and words on where that is kept.

    Of the second mode and later ones only that in the best layout so far is measured.
    """
    work = Path(config.work_dir)
    store.check_writable(work, "work_dir")
    asked = {**speed.circumstances(config, data), "ways": [[name(way) for way in mode] for mode in ways]}
    path = store.make_folder(work / "trainer", work) / f"{digest(asked)[:KEY_LENGTH]}.json"
    with store.locked(path.with_suffix(".lock")):  # two that measure at once would slow each other down
        if rows := _kept(path, asked):
            return rows, f"from {path}; delete it to measure anew"
        check_target(config, data)
        for mode in ways:
            tried = [way for each in ways for way in each if name(way) in rows]
            best = ahead.best(tried, rows).channels_last if tried else None
            for way in mode:
                if best in (None, way.channels_last):
                    if way.compile:
                        log.info("trainer: measures %s; compiling takes its time", name(way))
                    rows[name(way)] = _row(replace(config, trainer=way), data)
        plain = {each: row if isinstance(row, str) else asdict(row) for each, row in rows.items()}
        store.write_json(path, {"asked": asked, "rows": plain})
    return rows, f"kept in {path}"


def _row(config: Config, data: Data) -> Speed | str:
    try:
        if not config.trainer.compile:
            return speed.measured(config, data)
        with speed.empty_cache():
            return speed.measured(config, data)
    except Exception as problem:
        if out_of_memory(problem):
            return "out of memory"
        if not config.trainer.compile:
            raise
        return speed.reason(problem)  # the compiler's trouble with this network


def _kept(path: Path, asked: dict[str, Any]) -> Rows:
    """Return the rows of a file, none if it is not there or not what was written."""
    if not path.exists():
        return {}
    try:
        content = strict.read(path, SHAPE, "measurements of a trainer", LARGEST)
        lacking = [each for each in asked["ways"][0] if each not in content["rows"]]
        if lacking or digest(content["asked"]) != digest(asked):
            raise UserError(f"{path}: not the measurements of this trainer")
    except UserError as problem:
        log.warning("%s: measured anew", problem)
        return {}
    return {each: row if isinstance(row, str) else Speed(**row) for each, row in content["rows"].items()}


def _other(name: str, row: Speed | str, best: Speed | str, ahead: Ahead) -> str:
    if isinstance(row, str):
        return f"{name}: {row}"
    told = f"{name} {row.per_second:.0f}"
    if isinstance(best, Speed) and row.compilation and row.per_second > MARGIN * best.per_second:
        told += f", but {ahead.networks} compilations of {row.compilation:.0f} s take longer than they save"
    return told
