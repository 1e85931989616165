"""Actions in several processes that find each other as those of torchrun do."""

import os
import socket
from io import BytesIO

import torch

from lpslim.training.distributed import make_accelerator
from tests.experiment.dying import PROCESSES
from tests.training.toys import CPU


def together(action, *arguments, world=2, within=60, **named):
    """Run ``action`` in so many processes; return each one's result, or its exit code where it gave none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started, found = [], []
    for rank in range(world):
        result, sender = PROCESSES.Pipe(duplex=False)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}  # fmt: skip
        process = PROCESSES.Process(target=_live, args=(place, sender, action, arguments, named))
        process.start()
        sender.close()
        started.append((process, result))
    for process, result in started:
        assert result.poll(within), "a process hangs"
        try:
            found.append(torch.load(BytesIO(result.recv_bytes()), weights_only=True))
        except EOFError:
            process.join(within)
            found.append(process.exitcode)
    for process, _ in started:
        process.join(within)
        assert process.exitcode is not None, "a process hangs"
    return found


def _live(place, sender, action, arguments, named):
    os.environ.update({key: str(value) for key, value in place.items()})
    make_accelerator(CPU)
    found = BytesIO()
    torch.save(action(*arguments, **named), found)
    sender.send_bytes(found.getvalue())
