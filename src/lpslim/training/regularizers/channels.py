"""Lp-ADMM on whole channels under the run's budget, which also chooses the units that stay."""

from collections.abc import Callable
from dataclasses import asdict

from torch import Tensor, nn

from lpslim.pruning.budget import Budget, Candidates
from lpslim.training.callbacks import ChannelADMM


def build(
    model: nn.Module, *, example: Tensor, candidates: Callable[[nn.Module], Candidates],
    measure: Callable[[nn.Module], float], budget: Budget, epochs: int, updates_per_epoch: int, p: float,
    M: float | None, rho: float, ramp: float = 0.4, growth: float = 3.0, watch: bool = True,
) -> ChannelADMM:  # fmt: skip
    """Return the callback; UserError as its class. Options: ramp, growth, and watch, whether to measure."""
    goal = asdict(budget)
    if budget.target_flops or budget.target_params:
        del goal["ratio"]
    return ChannelADMM(
        model, example, **goal, epochs=epochs, updates_per_epoch=updates_per_epoch, p=p, M=M, rho=rho,
        ramp=ramp, growth=growth, candidates=candidates(model),
        measure=(lambda: measure(model)) if watch else None,
    )  # fmt: skip
