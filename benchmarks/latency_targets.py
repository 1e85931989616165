"""Are networks pruned as far as the paper's tables say as much faster? Original and pruned at those targets.

    python benchmarks/latency_targets.py --quick
    python benchmarks/latency_targets.py --rows vgg16 resnet56
    python benchmarks/render.py     # then: renews the tables of docs/latency.md

For rows of all four tables the dense network is built with fresh weights and pruned by the library to the
row's target, floors observed: once to any width, then to multiples of 8 and of 16. Where the floors do not
allow the target with such widths, it goes as far as they do. Both networks are timed as benchmarks/latency.py
does; ``share``: speed-up over FLOPs ratio. Networks of any width are also timed from files that were not
filled up (lpslim.padding). Then ONNX Runtime's profiler says where the time of a batch goes, layer by layer
(benchmarks/layers.py).

Widths: the time that a network takes depends on them, not on its weights. Magnitudes of fresh weights give
each layer a width of its own, as irregular as in a trained network, but about the same share of every layer,
whereas the paper's networks lost more in some stages than in others. So where it prints the drop in
parameters too, the scores of wide layers are shifted against those of narrow ones until both drops are met.
Beyond that the widths of its networks are not known.

Some half an hour on two CPU cores on which nothing else runs; two minutes with --quick: the small networks,
batches of 32, fewer rounds, no multiples of 16.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))  # run as a script, it has its own folder there alone

from benchmarks import layers, pairs, timing
from lpslim import cli, padding
from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.data.splits import example as blank_input
from lpslim.experiment.config import Config
from lpslim.models.storage import Architecture
from lpslim.pruning import selection
from lpslim.pruning.budget import Survey
from lpslim.pruning.cost import CostModel, layer_costs
from lpslim.pruning.selection import Kept
from lpslim.pruning.units import pooled
from reproduce import published

ROOT = Path(__file__).parent.parent
AS_EXPORTED = 0  # any width, the file not filled up
VARIANTS = (AS_EXPORTED, 1, 8, 16)
SHIFTS = (-1.0, 1.0)  # in scores from 0 to 1, for twice the width
HALVINGS = 12
BATCH = 32
CALLS = 25  # under the profiler


@dataclass(frozen=True)
class Target:
    """A row of the paper: its experiment, the input's shape, the classes; a large one takes minutes."""

    experiment: str
    shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 10
    large: bool = False


TARGETS = (
    Target("vgg16_cifar10/flops60_cos350"),
    Target("vgg16_cifar10/flops82_step300"),
    Target("resnet_cifar10/resnet56_flops58_cos350"),
    Target("resnet_cifar10/resnet56_flops81_cos300"),
    Target("resnet_cifar10/resnet110_flops52_cos400"),
    Target("resnet_cifar10/resnet110_flops78_cos350"),
    Target("resnet50_imagenet/flops62_cos150", (3, 224, 224), 1000, large=True),
    Target("resnet50_imagenet/flops63_step30", (3, 224, 224), 1000, large=True),
    Target("bert_glue/sst2", (3, 128), 2, large=True),
)


@dataclass(frozen=True)
class Plan:
    """A row's configuration, its dense network, what can be removed from it, and a score for each unit."""

    config: Config
    architecture: Architecture
    survey: Survey
    scores: list[Tensor]

    def kept(self, round_to: int) -> Kept:
        """Return the units that stay at the row's target, or at the floors where it lies beyond them."""
        try:
            return self.survey.kept(replace(self.config, round_to=round_to), self.scores)
        except UserError:
            units, least = self.survey.units, self.survey.least
            return selection.strongest(units, self.scores, selection.fewest(units, least, round_to))

    def drops(self, kept: Kept) -> tuple[float, float]:
        """Return which shares of the multiply-adds and of the parameters are gone."""
        widths = [len(kept[each.layer]) for each in self.survey.units]
        return self.survey.cost.flops_drop(widths), self.survey.cost.params_drop(widths)


def composed(experiment: str) -> Config:
    """Return the configuration of a row as the command line composes it."""
    cli.register(ROOT / "conf")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = compose("config", [f"experiment={experiment}"])
    return cli.checked(found)


def dense(config: Config, target: Target) -> Architecture:
    """Return a row's dense network; of an encoder BERT-base, which needs no hub without its weights."""
    arguments: dict[str, Any] = {"num_classes": target.classes}
    if config.model.input == "text":
        arguments["configuration"] = {"model_type": "bert"}
    return Architecture(config.model.family, config.model.name, target.shape, arguments)


def plan(target: Target) -> Plan:
    """Build a row's dense network and score its units so that both printed drops are met, if both are."""
    config = composed(target.experiment)
    architecture = dense(config, target)
    torch.manual_seed(0)
    model = architecture.build()
    units = architecture.units(model)
    cost = CostModel(
        layer_costs(model, blank_input(target.shape)), units, sum(p.numel() for p in model.parameters())
    )
    survey = Survey(units, cost, selection.floors(units, adjust=config.adjust, floor=config.model.floor))
    score = lookup.find("criteria", config.criterion.name).score
    scores = [
        selection.ACROSS[config.criterion.across](each) for each in pooled(units, score(model, units, ()))
    ]
    found = Plan(config, architecture, survey, scores)
    printed = row_of(target.experiment).cells.get("params_drop")
    return shifted(found, float(printed) / 100) if printed else found


def row_of(experiment: str) -> published.Row:
    """Return the published row that an experiment reproduces."""
    table = experiment.partition("/")[0]
    return next(row for row in published.read(table) if row.experiment == experiment)


def shifted(found: Plan, params_drop: float) -> Plan:
    """Lower the scores of wide layers, or of narrow ones, until the target's widths have this drop."""

    def moved(by: float) -> Plan:
        pairs_of = zip(found.scores, found.survey.units, strict=True)
        return replace(found, scores=[scores - by * math.log2(each.size) for scores, each in pairs_of])

    low, high = SHIFTS  # the wider a layer, the more parameters it has for its multiply-adds
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        plan = moved(middle)
        low, high = (middle, high) if plan.drops(plan.kept(1))[1] < params_drop else (low, middle)
    return moved(low)


def measured(target: Target, plan: Plan, variant: int, options: Any) -> dict[str, Any]:
    """Measure one network in one variant, print the lines, and return them.

    variant: of what the widths are a multiple; ``AS_EXPORTED``: of 1, and the file is not filled up.

    Raises:
        UserError: ONNX Runtime's packages are not installed.
    """
    kept = plan.kept(max(1, variant))
    flops_drop, params_drop = plan.drops(kept)
    print(f"\n{target.experiment}, {label(variant)}: {100 * flops_drop:.1f} % of the multiply-adds gone")
    models = plan.architecture.build(), replace(plan.architecture, kept=kept).build()
    networks = pairs.of(*models, blank_input(target.shape))
    batches, rounds = ((BATCH,), 3) if options.quick else ((1, BATCH), 5 if target.large else 9)
    finish = no_finish if variant == AS_EXPORTED else padding.pad
    rows = pairs.in_onnx_runtime(networks, batches, rounds, options.threads, finish)
    print(*rows, sep="\n", flush=True)
    if variant != AS_EXPORTED:  # PyTorch knows nothing of files
        eager = pairs.in_pytorch(networks, batches, rounds)
        print(*eager, sep="\n", flush=True)
        rows += eager
    calls = CALLS // 5 if target.large or options.quick else CALLS
    before, after = layers.profiled(networks, BATCH, calls, options.threads, finish)
    return {
        "experiment": target.experiment,
        "network": plan.config.model.name,
        "variant": label(variant),
        "flops_drop": flops_drop,
        "params_drop": params_drop,
        "widths": " ".join(str(len(each)) for each in kept.values()),
        "latency": [asdict(each) for each in rows],
        "dense": [asdict(each) for each in before],
        "pruned": [asdict(each) for each in after],
    }


def label(variant: int) -> str:
    """Return a variant's name in the tables."""
    return {AS_EXPORTED: "any, not filled up", 1: "any"}.get(variant, f"multiples of {variant}")


def no_finish(_: Path) -> None:
    """Leave a file as torch's exporter wrote it."""


def variants(target: Target, quick: bool) -> Sequence[int]:
    """Return the variants to measure: of an encoder no file is filled up, and its heads are wide anyway."""
    if len(target.shape) == 2:
        return VARIANTS[1:3]
    return VARIANTS[:3] if quick else VARIANTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code (2: the user's mistake)."""
    parser = timing.parser(__doc__, "latency_targets")
    parser.add_argument(
        "--rows", nargs="+", default=[""], metavar="TEXT", help="rows whose experiment has it"
    )
    options = parser.parse_args(arguments)
    host = pairs.machine() | timing.begin(options)
    chosen = [each for each in TARGETS if any(text in each.experiment for text in options.rows)]
    rows = []
    try:
        for target in chosen:
            if target.large and options.quick:
                continue
            found = plan(target)
            rows += [measured(target, found, each, options) for each in variants(target, options.quick)]
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    timing.write(options, host, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
