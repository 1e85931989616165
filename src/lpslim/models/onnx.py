"""Export of a network to ONNX, checked against PyTorch in ONNX Runtime.

    python -m lpslim.models.onnx outputs/runs/<name>/<key>/pruned

Writes ``pruned.onnx`` beside the folder: input "input", images (batch, C, H, W) or tokens (batch, 3, length),
output "logits" (batch, classes), any batch size and length. Needs ``pip install 'lpslim[onnx]'``.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.files import atomic_file
from lpslim.base.modules import eval_mode, example_input
from lpslim.models import storage

OPSET = 17  # left open, the file would depend on torch's version
TOLERANCE = 1e-4  # of the largest logit: sums in another order differ by some 1e-6, a wrong graph by far more


def to_onnx(model: nn.Module, example: Tensor, path: str | Path) -> float:
    """Write a network, in evaluation mode, as ONNX; return its largest absolute difference from PyTorch.

    Both compute the logits of the same random inputs, in batches of 1 and 3; the file appears, or replaces
    another, only if they agree to 1e-4 of the largest: else, or without onnx or onnxruntime, UserError.
    example: images (batch, C, H, W) or tokens (batch, 3, L), on the model's device.
    """
    _runtime()
    lengths = {2: "length"} if example.ndim == 3 else {}
    axes = {"input": {0: "batch", **lengths}, "logits": {0: "batch"}}
    with atomic_file(Path(path)) as scratch, eval_mode(model), torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's doubts: the comparison settles them
            # dynamo=True needs onnxscript as well, and 20 times as long, for the same nodes in ONNX Runtime
            torch.onnx.export(
                model, (example,), str(scratch), dynamo=False, opset_version=OPSET,
                input_names=["input"], output_names=["logits"], dynamic_axes=axes,
            )  # fmt: skip
        runtime = session(scratch, torch.get_num_threads())
        inputs = [_samples(example, batch) for batch in (1, 3)]  # a size that the trace froze shows at one
        expected = torch.cat([model(batch.to(example.device)).cpu() for batch in inputs])
        exported = torch.cat([logits(runtime, batch) for batch in inputs])
        difference, largest = (exported - expected).abs().max().item(), expected.abs().max().item()
        if not difference <= TOLERANCE * largest:  # nor if it is not a number
            fault = f"differs from PyTorch by {difference:.2g} (largest logit {largest:.3g})"
            raise UserError(f"{path}: not written: the exported {type(model).__name__} {fault}")
    return difference


def _samples(example: Tensor, batch: int) -> Tensor:
    """Return seeded random inputs like ``example``, on the CPU: images, or texts, all but one padded."""
    generator = torch.Generator().manual_seed(batch)
    if example.is_floating_point():
        return torch.randn(batch, *example.shape[1:], generator=generator, dtype=example.dtype)
    length = max(2, example.shape[2] // batch)
    tokens = torch.randint(32, (batch, 3, length), generator=generator)  # ids that every vocabulary has
    tokens[:, 1] = 1
    tokens[:, 2] %= 2
    tokens[1:, :, length // 2 :] = 0
    return tokens


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
