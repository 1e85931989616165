"""The Z/U update beside one pass over the memory that it must touch, and beside the same on whole tensors.

    python benchmarks/admm_update.py --quick

The update reads W, Z and V and writes Z and V: the pass is a plain copy of as many bytes. ``blocks`` is
ADMM.update as it is, ``whole`` the same arithmetic tensor by tensor, which is what an accelerator does and
what the suite did on a CPU before. They leave the same bits. Rounds in turn; medians, quartiles in brackets.
A minute and a half on two CPU cores, a third of it with --quick.

What to expect: a root costs as much as all the rest, and is drawn where |Z| is beyond the knee. Networks
that are trained have few such weights, so ``spread`` scales the random weights of ResNet-50: 1 is PyTorch's
initialisation, where every 70th is beyond. Without a cap (M=None) all need it.
"""

from __future__ import annotations

from typing import Any

import timing
import torch
from timing import Spread

from lpslim.base import registry
from lpslim.pruning.units import regularised_weights
from lpslim.sparsity.admm import ADMM
from lpslim.sparsity.penalties.lp import Lp

CASES = ((Lp(5.0, 1.0), 0.3), (Lp(5.0, 1.0), 1.0), (Lp(1.0, 1.0), 1.0), (Lp(5.0, None), 1.0))


class Whole(ADMM):
    """The same steps, one operation on a whole tensor after the other."""

    def update(self) -> Any:
        """Do the Z- and the U-step."""
        with torch.no_grad():
            return self._update_whole()


def measure(penalty: Lp, spread: float, rounds: int) -> dict[str, Any]:
    """Return one row of figures: ResNet-50's regularised weights under one penalty."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = lookup.find("models", "resnet_imagenet").build("resnet50", num_classes=1000).to(device)
    weights = [w.detach().mul_(spread) for w in regularised_weights(model).values()]
    blocks, whole = (kind(weights, penalty, lamb=1e-4, rho=1.5e-3) for kind in (ADMM, Whole))
    size, flat = sum(w.numel() for w in weights), penalty.flat_below(torch.finfo(torch.float32).eps)
    source = torch.randn(5 * size // 2, device=device)  # read once and written once: the bytes of five copies
    target = torch.empty_like(source)
    works = {"pass": lambda: target.copy_(source), "blocks": blocks.update, "whole": whole.update}
    times = timing.in_turn(works, rounds)
    same = all(torch.equal(a, b) for a, b in zip(blocks.Z + blocks.V, whole.Z + whole.V, strict=True))
    return {
        "penalty": f"p={penalty.p:g}, M={penalty.M}",
        "spread": spread,
        "weights": size,
        "roots": sum(int((w.abs() >= flat).sum()) for w in weights) / size,
        **{f"{name}_ms": Spread.of(1e3 * t for t in taken) for name, taken in times.items()},
        "blocks_over_pass": timing.ratio(times, "blocks", over="pass"),
        "whole_over_pass": timing.ratio(times, "whole", over="pass"),
        "whole_over_blocks": timing.ratio(times, "whole", over="blocks"),
        "same_bits": same,
    }


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    print(
        f"\n{row['penalty']}, spread {row['spread']}: {row['weights']} weights, "
        f"{100 * row['roots']:.3f} % need a root, same bits: {row['same_bits']}"
    )
    for name in ("pass", "blocks", "whole"):
        times = f"  x {row[f'{name}_over_pass']} of a pass" if name != "pass" else ""
        print(f"  {name:<7} {row[f'{name}_ms'].median:7.1f} ms{times}")
    print(f"  faster by {row['whole_over_blocks']}")


def main() -> None:
    """Measure, print and write."""
    options = timing.parser(__doc__, "admm_update").parse_args()
    host, rows = timing.begin(options), []
    for penalty, spread in CASES:
        rows.append(measure(penalty, spread, rounds=7 if options.quick else 25))
        show(rows[-1])
    timing.write(options, host, rows)


if __name__ == "__main__":
    main()
