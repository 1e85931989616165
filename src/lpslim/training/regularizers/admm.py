"""The ADMM inside a training loop: its gradient after each backward, its update on schedule."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from lpslim.pruning.units import regularised_weights
from lpslim.sparsity.admm import ADMM
from lpslim.sparsity.penalties import Penalty
from lpslim.training.runtime import Hooks


class Sparsifier(Hooks):
    """Regularises the convolution and linear weights of ``model`` while it is trained.

    Args:
        model: the network that the loop trains.
        penalty, lamb, rho, form: see :class:`lpslim.sparsity.admm.ADMM`.
        updates_per_epoch: outer iterations (Z- and U-steps) in an epoch.

    After training, ``convergence`` has one row per outer iteration and :meth:`sparse` returns Z.
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty,
        *,
        lamb: float,
        rho: float,
        form: str,
        updates_per_epoch: int,
    ) -> None:
        self.weights = regularised_weights(model)
        self.penalty, self.updates_per_epoch = penalty, updates_per_epoch
        self.lamb, self.rho, self.form = lamb, rho, form
        self.convergence: list[dict[str, float]] = []

    def begin(self) -> None:
        """Start from Z = W, U = 0, on the device where the weights now are."""
        self.admm = ADMM(
            list(self.weights.values()), self.penalty, lamb=self.lamb, rho=self.rho, form=self.form
        )

    def after_backward(self) -> None:
        """Add the penalty's gradient."""
        self.admm.add_gradient()

    def after_step(self, step: int, steps_per_epoch: int) -> None:
        """Do the Z- and U-step when an outer iteration ends with this step."""
        due, done = (n * self.updates_per_epoch // steps_per_epoch for n in (step, step - 1))
        if due > done:
            row = {"iteration": len(self.convergence) + 1, "epoch": step / steps_per_epoch}
            self.convergence.append({**row, **asdict(self.admm.update())})

    def state_dict(self) -> dict[str, Any]:
        """Return Z, V and what was measured so far."""
        return {"admm": self.admm.state_dict(), "convergence": self.convergence}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.admm.load_state_dict(state["admm"])
        self.convergence = state["convergence"]

    def sparse(self) -> dict[str, Tensor]:
        """Return Z by parameter name, on the CPU."""
        return {name: z.cpu() for name, z in zip(self.weights, self.admm.Z, strict=True)}
