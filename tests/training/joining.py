"""Actions in several processes that find each other as those of torchrun do."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from typing import Any

import torch

from lpslim import cli
from lpslim.training.runtime import make_accelerator
from lpslim.training.schedule import Trainer
from tests.composing import ROOT
from tests.experiment.dying import PROCESSES

CPU = Trainer(device="cpu", threads=1)


def start(action: Callable[..., Any], *arguments: Any, world: int = 2) -> list[tuple[Any, Any]]:
    """Start ``action`` in so many processes; return each one and where its result will come from."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        result, sender = PROCESSES.Pipe(duplex=False)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        process = PROCESSES.Process(target=_live, args=(place, sender, action, arguments))
        process.start()
        sender.close()
        started.append((process, result))
    return started


def together(action: Callable[..., Any], *arguments: Any, world: int = 2, within: float = 60) -> list[Any]:
    """Do ``action`` in so many processes and return what it gives in each."""
    started = start(action, *arguments, world=world)
    for _, result in started:
        assert result.poll(within), "a process hangs"
    found = [torch.load(BytesIO(result.recv_bytes()), weights_only=True) for _, result in started]
    for process, _ in started:
        process.join(within)
        assert process.exitcode is not None, "a process hangs"
    return found


def _live(place: dict[str, Any], sender: Any, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # for workers that decode, as in a real run
    if place["WORLD_SIZE"] > 1:
        os.environ.update({key: str(value) for key, value in place.items()})
        cli.SILENT = place["RANK"] > 0  # that module was imported before
        make_accelerator(CPU)
    found = BytesIO()
    torch.save(action(*arguments), found)
    sender.send_bytes(found.getvalue())


def command(*words: str) -> tuple[int, str, str]:
    """Do what ``python run.py`` does with these words; return exit code, output and errors."""
    sys.argv = ["run.py", *words]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    code, said, complained = 0, StringIO(), StringIO()
    with redirect_stdout(said), redirect_stderr(complained):
        try:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                complained.write(end.code)
    return code, said.getvalue(), complained.getvalue()
