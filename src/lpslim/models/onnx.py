"""Export of a network to ONNX, checked against PyTorch in ONNX Runtime.

    python -m lpslim.models.onnx outputs/runs/<name>/<key>/pruned

Writes ``pruned.onnx`` beside the folder: input "input", images (batch, C, H, W) or tokens (batch, 3, length),
output "logits" (batch, classes), any batch size and length. Needs ``pip install 'lpslim[onnx]'``.
"""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from lpslim.base.errors import UserError
from lpslim.base.files import atomic_file
from lpslim.base.modules import Example, call, eval_mode, example_input
from lpslim.models import storage

OPSET = 17  # left open, the file would depend on torch's version
TOLERANCE = 1e-4  # of the largest output: sums in another order differ by 1e-6, a wrong graph by far more
ROUNDINGS = 32  # the same in half precision, in units of its rounding


def to_onnx(model: nn.Module, example: Example, path: str | Path) -> float:
    """Write a network, in evaluation mode, as ONNX; return its largest absolute difference from PyTorch.

    Both compute the outputs for the same random inputs, in batches of 1 and 3; the file appears, or replaces
    another, only if they agree to 1e-4 of the largest (float16: to 0.03).

    Args:
        model: a network in float32, or in another precision that ONNX Runtime computes all of it in.
        example: a tensor, such as images (batch, C, H, W) or tokens (batch, 3, L), a tuple of them, or a dict
            by keyword, on the model's device; the first axis of each is the batch.
        path: file in a folder that exists. Its inputs are named input, input0, input1, ..., or by the dict's
            keys; its outputs logits, logits0, logits1, ..., or by the keys of the network's own dict.

    Raises:
        UserError: no such folder, a network that cannot be exported or then differs; nothing is written.
    """
    path, name, inputs = Path(path).expanduser(), type(model).__name__, _named(example, "input")
    _runtime()
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if not isinstance(example, Tensor) and len(inputs) != len(example):
        raise UserError(f"{path}: not written: the example must be a tensor, or a tuple or dict of tensors")
    floats = [v.dtype for v in (*model.parameters(), *inputs.values()) if v.is_floating_point()]
    dtype = max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    with atomic_file(path) as scratch, eval_mode(model), torch.no_grad():
        try:
            difference, largest = _exported(model, example, scratch)
        except Exception as problem:  # exporter and runtime raise what they come upon
            reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
            advice = "" if {*floats} <= {torch.float32} else "; export model.float() with a float32 example"
            raise UserError(f"{path}: not written: {name} cannot be exported ({reason}){advice}") from problem
        if not difference <= max(TOLERANCE, ROUNDINGS * torch.finfo(dtype).eps) * largest:  # nor if NaN
            fault = f"differs from PyTorch by {difference:.2g} (largest logit {largest:.3g})"
            raise UserError(f"{path}: not written: the exported {name} {fault}")
    return difference


def _exported(model: nn.Module, example: Example, path: Path) -> tuple[float, float]:
    """Write the file; return the largest difference of its outputs from PyTorch's, and the largest output."""
    inputs, outputs = _named(example, "input"), _named(call(model, example), "logits")
    lengths = {2: "length"} if isinstance(example, Tensor) and example.ndim == 3 else {}
    axes = {**{name: {0: "batch", **lengths} for name in inputs}, **{name: {0: "batch"} for name in outputs}}
    plain = isinstance(example, Tensor) and [*outputs] == ["logits"]
    with warnings.catch_warnings(), BaseTorchFunctionMode():  # under which torch fuses no attention
        warnings.simplefilter("ignore")  # the tracer's doubts: the comparison settles them
        # dynamo=True needs onnxscript as well, and 20 times as long, for the same nodes in ONNX Runtime
        torch.onnx.export(
            model if plain else _Positional(model, example), tuple(inputs.values()), str(path), dynamo=False,
            opset_version=OPSET, input_names=[*inputs], output_names=[*outputs], dynamic_axes=axes,
        )  # fmt: skip
    runtime, pairs = session(path, torch.get_num_threads()), []
    for batch in (1, 3):  # a size that the trace froze shows at one
        drawn = {name: _samples(value, batch) for name, value in inputs.items()}
        expected = _named(call(model, _like(example, [*drawn.values()])), "logits")
        values = runtime.run([*expected], {name: value.cpu().numpy() for name, value in drawn.items()})
        for value, reference in zip(values, expected.values(), strict=True):
            if value.shape != reference.shape:
                raise ValueError(f"outputs {tuple(reference.shape)} of PyTorch became {value.shape}")
            pairs.append((torch.from_numpy(value).double().flatten(), reference.cpu().double().flatten()))
    exported, reference = map(torch.cat, zip(*pairs, strict=True))
    different, finite = exported != reference, reference.isfinite()  # masked logits are -inf in both
    compared = (exported - reference)[different], reference[finite]
    difference, largest = (values.abs().max().item() if len(values) else 0.0 for values in compared)
    return difference, largest


class _Positional(nn.Module):
    """A network with its inputs one after the other, in place of by keyword, and a tuple of its outputs."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model, self.example = model, example
        self.training = False  # the exporter gives the modules within the wrapper's mode afterwards

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_named(call(self.model, _like(self.example, inputs)), "").values())


def _named(value: Any, name: str) -> dict[str, Tensor]:
    """Return the tensors among inputs or outputs by name: of a dict its keys, of a tuple numbered ones."""
    if isinstance(value, Tensor):
        return {name: value}
    many = enumerate(value) if isinstance(value, tuple | list) else ()
    entries = value.items() if isinstance(value, Mapping) else ((f"{name}{i}", entry) for i, entry in many)
    return {key: tensor for inner, entry in entries for key, tensor in _named(entry, inner).items()}


def _like(example: Example, inputs: Sequence[Tensor]) -> Example:
    """Return inputs in the form of an example."""
    if isinstance(example, Tensor):
        return inputs[0]
    return dict(zip(example, inputs, strict=True)) if isinstance(example, Mapping) else tuple(inputs)


def _samples(example: Tensor, batch: int) -> Tensor:
    """Return seeded random inputs like ``example``: noise, texts, all but one padded, or its own numbers."""
    generator = torch.Generator().manual_seed(batch)
    if example.is_floating_point():
        return torch.randn(batch, *example.shape[1:], generator=generator).to(example)
    if example.ndim != 3 or example.shape[1] != 3:
        repeated = example[:1].expand(batch, *example.shape[1:])
        order = torch.randperm(repeated.numel(), generator=generator).to(example.device)
        return repeated.flatten()[order].view(repeated.shape)
    length = max(2, example.shape[2] // batch)
    tokens = torch.randint(32, (batch, 3, length), generator=generator)  # ids that every vocabulary has
    tokens[:, 1] = 1
    tokens[:, 2] %= 2
    tokens[1:, :, length // 2 :] = 0
    return tokens.to(example)


def session(path: str | Path, threads: int) -> Any:
    """Return ONNX Runtime's session of a file on the CPU; UserError if its package is missing."""
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # its threads would spin on after a call, and slow whatever is run or timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits(session: Any, inputs: Tensor) -> Tensor:
    """Return the logits (batch, classes) of images or tokens on the CPU."""
    (values,) = session.run(["logits"], {"input": inputs.numpy()})
    return torch.from_numpy(values)


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401 - torch's exporter needs it
        import onnxruntime
    except ImportError as problem:
        raise UserError(f"{problem.name} is not installed: pip install 'lpslim[onnx]'") from problem
    return onnxruntime


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a saved network; exits with code 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser("python -m lpslim.models.onnx", description="Export a network to ONNX.")
    parser.add_argument("network", type=Path, help="folder of a network: architecture.json, weights")
    parser.add_argument("--output", type=Path, help="file to write; default <network>.onnx")
    options = parser.parse_args(arguments)
    folder = options.network.resolve()
    output = options.output or folder.with_name(f"{folder.name}.onnx")
    try:
        example = example_input(storage.describe(folder).input_shape)
        difference = to_onnx(storage.load(folder), example, output)
    except (UserError, OSError) as problem:
        parser.exit(2, f"error: {problem}\n")
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, max difference from PyTorch {difference:.2g}")


if __name__ == "__main__":
    main()
