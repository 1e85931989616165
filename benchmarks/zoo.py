"""Any network: the families of torchvision and three networks of timm, pruned by lpslim and by Torch-Pruning.

    python -m benchmarks.zoo                      # what is not in results/zoo.json yet: two hours on one core
    python -m benchmarks.zoo --only resnet18 vit_b_16 --again
    python -m benchmarks.zoo --render             # docs/zoo.md from the JSON alone

Each case is a network, a way (coupled off, coupled on, Torch-Pruning) and a share of the multiply-adds to
remove, and runs in a process of its own with a limit of time. Weights are random; norms, biases and
statistics are drawn too, so that no difference hides behind zeros. Whether a result computes what the
silenced original does is asked of benchmarks/silenced.py, which knows none of the pruning code. Needs timm:
pip install 'lpslim[bench]'.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import inspect
import multiprocessing
import re
import resource
import signal
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn

import lpslim
from benchmarks import silenced, timing, zoo_page
from lpslim.base.errors import UserError
from lpslim.base.files import read_json, write_json
from lpslim.pruning import cost

TARGETS = (0.3, 0.5)
WAYS = ("off", "on", "torch_pruning")
Result = tuple[nn.Module, dict[str, Any]]  # the pruned network, and what the library says of it
FLOOR = 0.1  # the share of its channels that every layer keeps, in both libraries
STEPS = 50  # of Torch-Pruning's pruner, two per cent of the channels each
CLASSES = 1000
MEMORY = 8 << 30  # bytes that a case may take
PACKAGES = ("torch", "torchvision", "timm", "torch-pruning", "lpslim")


@dataclass(frozen=True)
class Network:
    """A network with random weights, and the side of its square input in pixels."""

    family: str
    name: str
    size: int = 64
    library: str = "torchvision"
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return 3, self.size, self.size

    def build(self) -> nn.Module:
        """Return it in evaluation mode; the same weights every time."""
        torch.manual_seed(0)
        arguments = dict(self.arguments)
        if self.library == "timm":
            import timm  # Torch-Pruning has imported it already, if it is there

            model = timm.create_model(self.name, pretrained=False, **arguments)
        else:
            model = torchvision.models.get_model(self.name, weights=None, **arguments)
        silenced.draw_constants(model)
        return model.eval()


TIMM = {"library": "timm"}
NETWORKS = [
    Network("AlexNet", "alexnet"),
    Network("ConvNeXt", "convnext_tiny"),
    Network("DenseNet", "densenet121"),
    Network("EfficientNet", "efficientnet_b0"),
    Network("EfficientNetV2", "efficientnet_v2_s"),
    Network("GoogLeNet", "googlenet", arguments=(("init_weights", False),)),
    Network("Inception", "inception_v3", 299, arguments=(("init_weights", False),)),
    Network("MaxVit", "maxvit_t", 224),
    Network("MNASNet", "mnasnet1_0"),
    Network("MobileNetV2", "mobilenet_v2"),
    Network("MobileNetV3", "mobilenet_v3_small"),
    Network("MobileNetV3", "mobilenet_v3_large"),
    Network("RegNet", "regnet_x_400mf"),
    Network("RegNet", "regnet_y_400mf"),
    Network("ResNet", "resnet18"),
    Network("ResNet", "resnet50"),
    Network("ResNeXt", "resnext50_32x4d"),
    Network("Wide ResNet", "wide_resnet50_2"),
    Network("ShuffleNetV2", "shufflenet_v2_x1_0"),
    Network("SqueezeNet", "squeezenet1_1"),
    Network("Swin", "swin_t"),
    Network("Swin", "swin_v2_t"),
    Network("VGG", "vgg11"),
    Network("VGG", "vgg16_bn"),
    Network("ViT", "vit_b_16", arguments=(("image_size", 64),)),
    Network("timm: ViT", "deit_tiny_patch16_224", arguments=(("img_size", 64),), **TIMM),
    Network("timm: MobileNetV4", "mobilenetv4_conv_small", **TIMM),
    Network("timm: ConvNeXtV2", "convnextv2_atto", **TIMM),
]


def ways() -> list[str]:
    """Return the ways that the installed lpslim knows."""
    known = "coupled" in inspect.signature(lpslim.prune).parameters
    return [way for way in WAYS if way != "on" or known]


def by_lpslim(model: nn.Module, example: Tensor, target: float, coupled: bool) -> Result:
    """Return the pruned network with what the library says of it; at the most there is, if less than asked.

    UserError if the library refuses the network.
    """
    arguments: dict[str, Any] = {"floor": FLOOR} | ({"coupled": True} if coupled else {})
    prune = partial(lpslim.prune, model, example, **arguments)
    said: dict[str, Any] = {}
    try:
        result = prune(target_flops=target)
    except UserError as problem:
        if not (limit := re.search(r"at most (0\.\d+)|nearest are (0\.\d+)", str(problem))):
            raise
        said["most"] = float(limit[1] or limit[2])
        if said["most"] <= 0:
            raise
        result = prune(target_flops=said["most"])
    left = Counter(re.sub(r"'[^']*'|\d[\d.e+-]*", "…", reason) for reason in result.left_alone.values())
    reason, count = left.most_common(1)[0] if left else ("", 0)
    said |= {"left_alone": left.total(), "reason": reason, "reason_layers": count}
    return result.model, said


def by_torch_pruning(
    model: nn.Module, example: Tensor, target: float, *, classes: int = CLASSES, most_steps: int = STEPS
) -> Result:
    """Return the network pruned by Torch-Pruning's group norm, globally, step by step until the target.

    Its settings are those of its own ResNet-56 script, and the floor of ours. It is told which layer
    classifies and how many heads each nn.MultiheadAttention has; nothing else is known of the network.
    """
    pruner = tp.pruner.GroupNormPruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
        pruning_ratio=1.0, max_pruning_ratio=1 - FLOOR, iterative_steps=most_steps,
        ignored_layers=[m for m in model.modules() if classes in _outputs(m)],
        num_heads={m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)},
    )  # fmt: skip
    dense, steps = cost.count(model, example).macs, 0
    while steps < most_steps and 1 - cost.count(model, example).macs / dense < target:
        pruner.step()
        steps += 1
    return model, {"steps": steps}


def _outputs(module: nn.Module) -> tuple[int | None, int | None]:
    return getattr(module, "out_features", None), getattr(module, "out_channels", None)


def case(network: Network, way: str, target: float) -> dict[str, Any]:
    """Measure one case: the row of the JSON without its key."""
    dense, example = network.build(), torch.zeros(1, *network.shape)
    prune = by_torch_pruning if way == "torch_pruning" else partial(by_lpslim, coupled=way == "on")
    began, cpu = time.perf_counter(), _cpu()
    try:
        pruned, row = prune(copy.deepcopy(dense), example, target)
    except UserError as problem:
        row = {"outcome": "refused", "message": str(problem)}
        return row | {"cpu_seconds": _cpu() - cpu, "seconds": time.perf_counter() - began}
    row |= {"cpu_seconds": _cpu() - cpu, "seconds": time.perf_counter() - began}
    lost, layers = silenced.narrower(dense, pruned)
    try:
        before, after = cost.count(dense, example).macs, cost.count(pruned, example).macs
        row |= {"narrower": lost, "layers": layers, "reached": 1 - after / before}
        compared = silenced.compare(dense, pruned, network.shape)
    except silenced.IncomparableError as problem:
        return row | {"outcome": "unknown", "message": str(problem)}
    return row | {"outcome": "pruned", "difference": compared.difference, "moved": compared.moved}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def in_process(network: Network, way: str, target: float, limit: int) -> dict[str, Any]:
    """Measure one case in a process of its own; what ends it otherwise is its outcome.

    limit: seconds of processor time; of time on the clock, which other work stretches, ten times as many.
    """
    fork = multiprocessing.get_context("fork")  # nothing has to be imported again
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(sender, limit, network, way, target))
    process.start()
    sender.close()
    try:
        if receiver.poll(10 * limit):
            row: dict[str, Any] = receiver.recv()
            return row
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGXCPU:
            return {"outcome": "failed", "message": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return {"outcome": "no end", "message": f"no end after {limit} s of processor time"}


def _send(sender: Connection, limit: int, network: Network, way: str, target: float) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    try:
        row = case(network, way, target)
    except Exception as problem:  # whatever either library raises
        line = str(problem).strip().partition("\n")[0][:200]
        row = {"outcome": "failed", "message": f"{type(problem).__name__}: {line}"}
    sender.send(row)


def measure(options: argparse.Namespace) -> None:
    """Measure what is missing, and write after each case."""
    versions = {package: version(package) for package in PACKAGES}  # raises if one is not there
    content = read_json(options.json) if options.json.is_file() else {"rows": []}
    code = _code()
    chosen = [network for network in NETWORKS if not options.only or network.name in options.only]
    for target, way in [(target, way) for target in TARGETS for way in ways()]:
        for network in chosen if way in (options.ways or WAYS) else []:
            key = {"network": network.name, "way": way, "target": target}
            old = [row for row in content["rows"] if key.items() <= row.items()]
            if old and not options.again:
                continue
            about = {"family": network.family, "size": network.size, "code": code}
            date = datetime.now(UTC).date().isoformat()
            row = {**key, **about, "date": date, **in_process(network, way, target, options.limit)}
            print({k: v for k, v in row.items() if k not in ("family", "size", "code", "date")}, flush=True)
            content["rows"] = sorted([*(r for r in content["rows"] if r not in old), row], key=_place)
            content |= {"machine": timing.machine(), "versions": versions}
            write_json(options.json, content)


def _place(row: dict[str, Any]) -> tuple[int, int, float]:
    names = [network.name for network in NETWORKS]
    return names.index(row["network"]), WAYS.index(row["way"]), row["target"]


def _code() -> str:
    """Return the start of a hash over the source of the pruning package."""
    folder = Path(inspect.getfile(lpslim)).parent / "pruning"
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.rglob("*.py")))).hexdigest()[:12]


def main() -> None:
    """Measure, or render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [network.name for network in NETWORKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="networks; all by default")
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", help="off, on, torch_pruning")
    parser.add_argument("--again", action="store_true", help="measure also what is in the JSON")
    parser.add_argument(
        "--limit", type=int, default=240, metavar="N", help="processor seconds of a case: 240"
    )
    parser.add_argument("--json", type=Path, default=timing.RESULTS / "zoo.json", metavar="FILE")
    parser.add_argument("--render", action="store_true", help="write docs/zoo.md and measure nothing")
    options = parser.parse_args()
    if options.render:
        zoo_page.write(timing.RESULTS)
    else:
        torch.set_num_threads(1)
        measure(options)


if __name__ == "__main__":
    main()
