"""Several processes that train one network: what one alone trains, with the same bits in each."""

import os
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lpslim.base.errors import DivergenceError, RunError, UserError
from lpslim.data.images import TensorSplit
from lpslim.data.metrics import Task
from lpslim.training import distributed
from lpslim.training.checkpoint import Checkpoint
from lpslim.training.evaluation import evaluate
from tests.training.joining import together
from tests.training.toys import Broken, KilledError, Killing, network, sparse, trained


def outcome(folder=None, left=None, norm=False, **config):
    """Train under the ADMM; return numbers and tensors that must agree, and the last seed; None if killed."""
    torch.manual_seed(os.getpid())  # each process begins elsewhere
    model = network(config.pop("dropout", 0.0))
    if not norm:  # on the CPU it takes its statistics from the process's own share
        model[1] = nn.Identity()
    checkpoint = folder and (Killing(folder / "stage", left) if left else Checkpoint(folder / "stage", 0))
    try:
        _, rows, found = trained(sparse, model=model, checkpoint=checkpoint, **config)
    except (KilledError, RunError):
        return None
    tensors = [*model.state_dict().values(), *found.sparse().values()]
    return [*rows, *found.convergence], tensors, torch.initial_seed()


def check_same(one, other):
    assert one[0] == other[0]
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)


@pytest.mark.parametrize("config", [{}, {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5}])
def test_the_same_global_batch_gives_the_same_network_and_admm(config):
    alone, (main, second) = outcome(**config), together(outcome, **config)
    check_same(main, second)
    for mine, theirs in zip(main[0], alone[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(main[1], alone[1], rtol=1e-4, atol=1e-5)
    assert main[2] == alone[2] != second[2]  # of dropout


def test_processes_that_are_killed_go_on_to_the_same_bits(tmp_path):
    config = {"dropout": 0.3, "norm": True}
    whole = together(outcome, **config)
    assert together(outcome, **config, folder=tmp_path, left=5) == [None, None]
    for again in together(outcome, **config, folder=tmp_path):
        check_same(again, whole[0])
    check_same(*whole)


def test_all_stop_at_the_step_at_which_one_diverges():
    assert together(_diverging) == [(1, 3, "nan")] * 2


def _diverging():
    with pytest.raises(DivergenceError) as caught:
        trained(model=Broken(at=3, rank=1), lr=0.01)
    return caught.value.epoch, caught.value.step, caught.value.loss


def test_evaluation_counts_every_sample_once_and_in_order():
    for count in (2, 1202):
        for alone, *found in zip(_evaluated(count), *together(_evaluated, count, world=3), strict=True):
            assert found == pytest.approx([alone] * 3, rel=1e-6)
        assert alone == sum(i for i in range(1, count, 2))  # the last: the metric by hand


def _evaluated(count):
    """Return the loss of a linear network, and a metric of all samples at once: the sum of the odd places."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    images = torch.randint(256, (count, 4, 4, 1), dtype=torch.uint8)
    split = TensorSplit(images, torch.arange(count) % 2, *torch.ones(2, 1))
    task = Task("order", lambda preds, targets: float((targets * torch.arange(len(preds))).sum()))
    measured = evaluate(model, split, task=task, share=distributed.share())
    return measured["loss"], measured["accuracy"]


def test_the_main_process_decides_and_goes_first_and_its_mistakes_are_everyones():
    assert together(_decisions) == [
        (0, "UserError no", "OSError full", "UserError [0]", "UserError [1]"),
        (0, "UserError no", "RunError the main process failed", "UserError [0]", "UserError [1]"),
    ]


def _decisions():
    rank = dist.get_rank()

    def fails(problem, where=None):
        if where in (None, rank):
            raise problem

    def told(agree, action):
        try:
            return agree(action)
        except Exception as problem:
            return f"{type(problem).__name__} {problem}"

    return (
        distributed.broadcast_from_main(lambda: rank),
        told(distributed.broadcast_from_main, lambda: fails(UserError("no"))),
        told(distributed.broadcast_from_main, lambda: fails(OSError("full"))),
        told(distributed.main_process_first, lambda: fails(UserError(f"[{rank}]"))),
        told(distributed.main_process_first, lambda: fails(UserError(f"[{rank}]"), where=1)),
    )


def test_a_process_that_fails_alone_ends_at_once_and_what_all_raise_passes():
    assert together(_failing) == ["passed", 1]


def _failing():
    with suppress(UserError), distributed.fail_fast(but=(UserError,)):
        raise UserError("known to all")
    with distributed.fail_fast():
        if not distributed.is_main():
            raise ValueError("only here")
    return "passed"
