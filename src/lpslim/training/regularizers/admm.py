"""ADMM in a training loop: its gradient after each backward, its Z- and U-step once an outer iteration."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.pruning.units import regularised_weights
from lpslim.sparsity.admm import ADMM
from lpslim.sparsity.penalties import Penalty
from lpslim.training.callbacks import Regularizer
from lpslim.training.schedule import iterations_done


@dataclass(eq=False)
class ADMMRegularizer(Regularizer):
    """ADMM on the weights of convolutions and linear layers, with so many outer iterations an epoch."""

    model: nn.Module
    penalty: Penalty
    lamb: float
    rho: float
    form: str
    updates_per_epoch: int

    def __post_init__(self) -> None:
        self.weights = regularised_weights(self.model)
        if not self.weights:
            raise UserError("regularizer.name=admm: the network has no convolution and no linear layer")

    def begin(self) -> None:
        """Start from Z = W and U = 0, on the device where the weights now are."""
        weights = list(self.weights.values())
        self.admm = ADMM(weights, self.penalty, lamb=self.lamb, rho=self.rho, form=self.form)

    def after_backward(self) -> None:
        """Add the gradient of the augmented Lagrangian."""
        self.admm.add_gradient()

    def after_step(self, step: int, steps_per_epoch: int) -> None:
        """Do the Z- and U-step when an outer iteration ends with this step."""
        before, now = (iterations_done(n, steps_per_epoch, self.updates_per_epoch) for n in (step - 1, step))
        if before < now:
            row = {"iteration": len(self.convergence) + 1, "epoch": step / steps_per_epoch}
            self.convergence.append({**row, **asdict(self.admm.update())})

    def state_dict(self) -> dict[str, Any]:
        """Return Z, V and the convergence so far."""
        return {"admm": self.admm.state_dict(), "convergence": self.convergence}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.admm.load_state_dict(state["admm"])
        self.convergence = state["convergence"]

    def sparse(self) -> dict[str, Tensor]:
        """Return Z by parameter name, on the CPU."""
        return {name: z.cpu() for name, z in zip(self.weights, self.admm.Z, strict=True)}


build = ADMMRegularizer
