"""Effect of the cap M on problems small enough to follow: least squares with 15 weights.

    python benchmarks/cap_off_lasso.py --p 5

Twenty problems ``min_w ||A w - b||^2 / 2 + lamb * sum |w|^(1/p)`` with 5 true weights that are not zero,
solved by the ADMM with an exact W-step, with M = 1 and without a cap (M = null), at several rho / lamb (15 is
the released code's), from three starts: the least-squares weights, random ones, zero. At "scale 1" the true
weights have size 0.3 to 1.5, else a twentieth of that. Ten seconds on one core, the same figures every time.

Cells read ``cap / no cap``. ``settled``: problems, of 20, whose residuals fell below 1e-6. Means over the
problems: ``kept``, weights that are not zero; ``lost``, true weights that are zero; ``held``, weights at zero
although the loss pulls at them with more than lamb * M. ``pull``: the strongest such pull, over lamb.
``objective``: the mean of the formula above, without a cap. ``off lower``: problems whose objective is lower
without it. The line below each setting says how far apart its three starts end.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lpslim.sparsity.admm import ADMM
from lpslim.sparsity.penalties.lp import Lp

SETTINGS = [(1.0, 0.05, 1), (1.0, 0.05, 15), (1.0, 0.05, 200), (0.05, 0.005, 15), (0.05, 0.005, 200)]
HEADER = ("scale", "rho/lamb", "start", "settled", "kept", "lost", "held", "pull", "objective", "off lower")


@dataclass(frozen=True)
class Problems:
    """A batch of least-squares problems. A: (seeds, n, d). b: (seeds, n). truth: (seeds, d)."""

    A: Tensor
    b: Tensor
    truth: Tensor

    @classmethod
    def draw(cls, seeds: int = 20, scale: float = 1.0) -> Problems:
        """Draw n = 40 equations in d = 15 weights, 5 of them true; all but the scale is the same."""
        n, d, true, noise = 40, 15, 5, 0.3
        generator = torch.Generator().manual_seed(0)
        A = torch.randn(seeds, n, d, generator=generator, dtype=torch.float64) / n**0.5
        size = 0.3 + 1.2 * torch.rand(seeds, d, generator=generator, dtype=torch.float64)
        sign = torch.randint(2, (seeds, d), generator=generator) * 2 - 1
        order = torch.rand(seeds, d, generator=generator).argsort(dim=1)
        truth = torch.where(order < true, size * sign, 0.0)
        error = noise / n**0.5 * torch.randn(seeds, n, generator=generator, dtype=torch.float64)
        return cls(A, scale * (_times(A, truth) + error), scale * truth)

    def starts(self) -> dict[str, Tensor]:
        """Return the least-squares weights, random ones of the size of the true, and zero."""
        generator = torch.Generator().manual_seed(1)
        unit = torch.randn(self.truth.shape, generator=generator, dtype=torch.float64)
        return {
            "least sq.": torch.linalg.lstsq(self.A, self.b[..., None]).solution[..., 0],
            "random": unit * self.truth[self.truth != 0].abs().mean(),
            "zero": torch.zeros_like(self.truth),
        }

    def gradient(self, w: Tensor) -> Tensor:
        """Return the gradient (seeds, d) of ||A w - b||^2 / 2."""
        return _times(self.A.mT, _times(self.A, w) - self.b)

    def objective(self, w: Tensor, lamb: float, p: float) -> Tensor:
        """Return ||A w - b||^2 / 2 + lamb * sum |w|^(1/p) of each problem."""
        loss = (_times(self.A, w) - self.b).square().sum(dim=1) / 2
        return loss + lamb * w.abs().pow(1 / p).sum(dim=1)


def _times(A: Tensor, w: Tensor) -> Tensor:
    return (A @ w[..., None])[..., 0]


@dataclass(frozen=True)
class Outcome:
    """End of the ADMM. Z, W: (seeds, d). residual: (seeds,), the larger of primal and dual."""

    Z: Tensor
    W: Tensor
    residual: Tensor


def solve(
    problems: Problems, penalty: Lp, *, lamb: float, rho: float, start: Tensor, outer: int = 3000
) -> Outcome:
    """Run the ADMM with exact W-steps on all problems at once, until all residuals are below 1e-8.

    The penalty acts entry by entry, so that one tensor holds the weights of every problem.
    """
    W = start.clone()
    admm = ADMM([W], penalty, lamb=lamb, rho=rho)
    identity = torch.eye(W.shape[1], dtype=W.dtype)
    inverse = torch.linalg.inv(problems.A.mT @ problems.A + rho * identity)
    pulled = _times(problems.A.mT, problems.b)
    for _ in range(outer):
        before = admm.Z[0].clone()
        W.copy_(_times(inverse, pulled + rho * admm.V[0]))
        residuals = admm.update()
        if max(residuals.primal, residuals.dual) < 1e-8:
            break
    Z = admm.Z[0]
    return Outcome(Z, W, torch.maximum((W - Z).norm(dim=1), rho * (Z - before).norm(dim=1)))


def held(problems: Problems, Z: Tensor, lamb: float) -> Tensor:
    """Return the pull |gradient| / lamb where it exceeds 1 on a weight at zero, elsewhere 0."""
    pull = problems.gradient(Z).abs() / lamb
    return torch.where((Z == 0) & (pull > 1.001), pull, 0.0)


def row(problems: Problems, capped: Tensor, free: Tensor, lamb: float, p: float) -> list[str]:
    """Return the cells from ``kept`` on, for the two limits (seeds, d)."""
    both = (capped, free)
    pulls = [held(problems, z, lamb) for z in both]
    scores = [problems.objective(z, lamb, p) for z in both]

    def counts(masks: Iterable[Tensor]) -> str:
        return " / ".join(f"{mask.sum(1).double().mean():.2f}" for mask in masks)

    return [
        counts(z != 0 for z in both),
        counts((problems.truth != 0) & (z == 0) for z in both),
        counts(pull > 0 for pull in pulls),
        " / ".join(f"{pull.max():.1f}" for pull in pulls),
        " / ".join(f"{score.mean():.4f}" for score in scores),
        str(int((scores[1] < scores[0] - 1e-9).sum())),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--p", type=float, default=5.0, help="the penalty is |w|^(1/p); default 5")
    p = parser.parse_args(arguments).p
    line = "{:>5} {:>8}  {:<9} {:>8} {:>12} {:>11} {:>13} {:>11} {:>17} {:>9}"
    print(f"p = {p:g}; cells: cap M = 1 / no cap")
    print(line.format(*HEADER))
    for scale, lamb, ratio in SETTINGS:
        problems = Problems.draw(scale=scale)
        ends = []  # of each start: with the cap, without
        for name, start in problems.starts().items():
            run = partial(solve, problems, lamb=lamb, rho=ratio * lamb, start=start)
            outcomes = [run(Lp(p, M)) for M in (1.0, None)]
            ends.append([outcome.Z for outcome in outcomes])
            settled = " / ".join(str(int((outcome.residual < 1e-6).sum())) for outcome in outcomes)
            print(line.format(f"{scale:g}", ratio, name, settled, *row(problems, *ends[-1], lamb, p)))
        apart = [
            max((first - Z).abs().max().item() for Z in others) for first, *others in zip(*ends, strict=True)
        ]
        print(f"{'':16}ends of the three starts apart by {apart[0]:.1e} / {apart[1]:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
