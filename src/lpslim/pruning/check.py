"""Check of a smaller network: it computes what the original does where removed channels are read as zero.

Both run on the example and on seeded random inputs, in evaluation mode, and in training mode on a batch of
two without dropout, in float64 where the network allows it. Parameters of one value, such as scales of zero,
are drawn at random first, so that no branch is silent. Nothing here knows what a network is made of.
"""

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from lpslim.base.errors import UserError
from lpslim.base.modules import Example, call, copied, map_tensors, same_draws, tensors
from lpslim.pruning.dependency import apply
from lpslim.pruning.graph import Graph
from lpslim.pruning.units import Cut, Units, channel_axis

PATIENCE = 5.0  # seconds before a progress bar appears
COPIES = 3  # of the network, at a time: as it is, silenced, and smaller


class Survey(NamedTuple):
    """Result of a survey: removable units, other layers with the reason, the graph, the comparison."""

    units: list[Units]
    left: dict[str, str]
    graph: Graph
    comparison: "Comparison | None"  # None: not checked


def survey(
    model: nn.Module, example: Example, protected: Sequence[str] = (), *, check: bool = True,
    coupled: bool = False,
) -> Survey:  # fmt: skip
    """Return the survey of a network; coupled: channels that layers share are among the units.

    What :meth:`Graph.discover` finds is compared without a random half of its units: layers that would not
    be pruned exactly are left alone.
    """
    graph = Graph(model, example)
    units, left = graph.discover(protected, coupled=coupled)
    if not (check and units):
        return Survey(units, left, graph, None)
    generator, comparison = torch.Generator().manual_seed(0), Comparison(model, example)
    drawn = {unit.layer: torch.randperm(unit.size, generator=generator) for unit in units}
    kept = {layer: order[len(order) // 2 :].sort().values.tolist() for layer, order in drawn.items()}
    failing = comparison.failing(graph.cuts(kept))
    passing = [unit for unit in units if unit.layer not in failing]
    return Survey(passing, left | failing, graph, comparison)


class Run(NamedTuple):
    """A mode, evaluation or training, and the inputs to run in it."""

    mode: str
    inputs: Example


class Comparison:
    """A network with what it takes to compare smaller copies of it.

    UserError if its outputs on the example are not numbers, so that nothing can be compared, or if its
    copies do not fit into memory.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        dtypes = _precisions(model)
        for dtype in dtypes:
            whole = _with_noise(copied(model).to(dtype)).eval()
            first = map_tensors(example, functools.partial(_cast, dtype=dtype))
            try:
                outputs = _run(whole, first)
                break
            except Exception:  # it computes in a precision of its own
                if dtype == dtypes[-1]:
                    raise
        self.whole, self.tolerance = whole, torch.finfo(dtype).eps ** 0.5
        self.runs = [Run("evaluation", first)] if _comparable(outputs) else []
        for mode, batches in (("evaluation", (2, 1)), ("training", (2,))):
            drawn = (map_tensors(first, functools.partial(_drawn, batch=batch)) for batch in batches)
            self.runs += [Run(mode, inputs) for inputs in drawn if self._runs(mode, inputs)][:1]
        if not self.runs:
            raise UserError("example: no output for it is a number to compare; check=False skips this")

    def _runs(self, mode: str, inputs: Example) -> bool:
        """Return whether the network itself runs so; some take one batch size, or need labels to train."""
        try:
            return _comparable(_run(copy.deepcopy(self.whole).train(mode == "training"), inputs))
        except UserError:  # the copy calls modules of the original
            raise
        except Exception:  # whatever a network raises over inputs that it does not take
            return False

    def failing(self, cuts: Mapping[str, Sequence[Cut]]) -> dict[str, str]:
        """Return the layers that have to keep their units, each with the reason; the rest together pass.

        Layers are searched in the runs alone that have shown a fault, which saves most of the time.
        """
        left, shown, others = dict[str, str](), list[Run](), list(self.runs)
        while others:
            rest = {layer: some for layer, some in cuts.items() if some and layer not in left}
            every = [cut for some in rest.values() for cut in some]
            faulty = (i for i, run in enumerate(others) if every and self._fault(every, [run]))
            if (first := next(faulty, None)) is None:
                break
            shown.append(others.pop(first))
            left |= self._search(rest, shown)
        return left

    def _search(self, cuts: Mapping[str, Sequence[Cut]], runs: Sequence[Run]) -> dict[str, str]:
        """Return, by halves, the layers that fail in these runs; the rest together pass them."""
        accepted, left, layers = list[Cut](), dict[str, str](), list(cuts)
        pending = [half for half in (layers[len(layers) // 2 :], layers[: len(layers) // 2]) if half]
        with tqdm(desc="layers checked", total=len(layers), delay=PATIENCE, leave=False) as bar:
            while pending:
                layers = pending.pop()
                more = [cut for layer in layers for cut in cuts[layer]]
                reason, middle = self._fault([*accepted, *more], runs), len(layers) // 2
                if reason and middle:
                    pending += [layers[middle:], layers[:middle]]
                    continue
                if reason:
                    left[layers[0]] = reason
                else:
                    accepted += more
                bar.update(len(layers))
        return left

    def _fault(self, cuts: Sequence[Cut], runs: Sequence[Run]) -> str:
        """Return how the network with these cuts departs from the silenced one; nothing if it does not."""
        for mode, inputs in runs:
            smaller = copy.deepcopy(self.whole).train(mode == "training")
            whole = copy.deepcopy(smaller) if smaller.training else self.whole  # training changes statistics
            try:
                apply(smaller, cuts)
                outputs = _run(smaller, inputs)
                with _silenced(whole, cuts):
                    expected = _run(whole, inputs)
            except Exception as problem:  # whatever a broken network raises
                reason = f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0][:150]}"
                return f"without channels of it {mode} fails ({reason})"
            shapes = [[tuple(tensor.shape) for tensor in run] for run in (outputs, expected)]
            if shapes[0] != shapes[1]:
                return f"the outputs would be {shapes[0]}, not {shapes[1]}"
            if (difference := max(map(_difference, outputs, expected))) > self.tolerance:
                silenced = "its removed channels were read as zero"
                return f"in {mode}, outputs would differ by {difference:.2g} from those if {silenced}"
        return ""


def _precisions(model: nn.Module) -> list[torch.dtype]:
    """Return float64 and a network's own precision, if its copies fit into memory; UserError if none do."""
    weights = [p for p in model.parameters() if p.is_floating_point()]
    own, size = (weights[0].dtype if weights else torch.float32), sum(p.numel() for p in weights)
    if weights and weights[0].is_cuda:
        device = weights[0].device
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's to use
        free = torch.cuda.mem_get_info(device)[0] + unused
    else:
        free = psutil.virtual_memory().available
    fitting = [dtype for dtype in (torch.float64, own) if COPIES * size * dtype.itemsize <= free]
    if not fitting:
        needed = f"{COPIES} copies to compare take {COPIES * size * own.itemsize / 1e9:.1f} GB"
        reason = f"{needed}, and {free / 1e9:.1f} GB are free; check=False skips this"
        raise UserError(f"{type(model).__name__}: of its {size:,} parameters, {reason}")
    return fitting


@contextmanager
def _silenced(model: nn.Module, cuts: Sequence[Cut]) -> Iterator[None]:
    """Let every layer that reads removed channels read zeros there."""
    with ExitStack() as hooks:
        for cut in (cut for cut in cuts if cut.reads):
            layer = model.get_submodule(cut.name)
            indices = torch.tensor(cut.indices)
            hook = functools.partial(_zeros, axis=channel_axis(layer), indices=indices)
            hooks.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield


def _zeros(
    _: nn.Module, inputs: Any, named: dict[str, Any], *, axis: int, indices: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first, *others = inputs or (named["input"],)
    silent = first.index_fill(axis, indices.to(first.device), 0)
    return ((silent, *others), named) if inputs else ((), {**named, "input": silent})


@torch.no_grad()
def _run(model: nn.Module, inputs: Example) -> list[Tensor]:
    """Return all tensors among a network's outputs; what it draws at random is the same every time."""
    with same_draws(), _NoDropout():  # under which torch fuses no attention
        return tensors(call(model, inputs))


class _NoDropout(TorchFunctionMode):
    """Makes dropout, which draws by the width of a layer, do nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else given["input"]
        return func(*args, **given | ({"dropout_p": 0.0} if "dropout_p" in given else {}))


@torch.no_grad()
def _with_noise(model: nn.Module) -> nn.Module:
    """Add noise to parameters whose entries are all equal, such as scales of zero, which silence a branch."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point() and bool((parameter == parameter.flatten()[:1]).all()):
            noise = torch.randn(parameter.shape, generator=generator).abs() / 4 + 0.1
            parameter.add_(noise.to(parameter))
    return model


def _cast(example: Tensor, dtype: torch.dtype) -> Tensor:
    return example.to(dtype) if example.is_floating_point() else example


def _drawn(example: Tensor, batch: int) -> Tensor:
    """Return a batch like an example of one: noise, or the same whole numbers again."""
    shaped = example.expand(batch, *example.shape[1:]) if example.ndim and len(example) == 1 else example
    if not example.is_floating_point():
        return shaped.clone()
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shaped.shape, generator=generator, dtype=torch.float64).to(example)


def _comparable(outputs: Sequence[Tensor]) -> bool:
    return any(output.numel() and bool(output.isfinite().any()) for output in outputs)


def _difference(output: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest entry; where both are no numbers, none."""
    a, b = output.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite):
        return math.inf
    a, b = a[finite], b[finite]
    return 0.0 if torch.equal(a, b) else ((a - b).abs().max() / b.abs().max()).item()
