"""Export of a network to ONNX, checked against PyTorch in ONNX Runtime.

    python -m lpslim.models.onnx outputs/runs/<name>/<key>/pruned

Writes ``pruned.onnx`` beside the folder: input "input", images (batch, channels, height, width) or tokens
(batch, 3, length) as in lpslim.data.tokens, output "logits" (batch, classes), any batch size and length. From
Python: :func:`to_onnx`. Needs ``pip install 'lpslim[onnx]'``.
"""

from __future__ import annotations

import argparse
import sys
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
BATCHES = (1, 3)  # a batch size that the trace froze shows at the other one
FEWEST_TOKENS = 32  # token ids that every vocabulary has
TOLERANCE = 1e-4  # of the largest logit: sums in another order differ by some 1e-6, a wrong graph by far more


def to_onnx(model: nn.Module, example: Tensor, path: str | Path) -> float:
    """Write a network in evaluation mode as ONNX; return its largest absolute difference from PyTorch's logits.

    Both are run on the same seeded random inputs, in batches of 1 and 3; the file appears only if they agree.

    Args:
        model: any classifier that torch's tracer can follow; its mode is kept.
        example: images (batch, C, H, W) or tokens (batch, 3, L), any batch, on the model's device.
        path: the file to write; one that is there is replaced.

    Raises:
        UserError: the packages onnx and onnxruntime are not installed, or the exported network's logits
            differ from PyTorch's by more than 1e-4 of the largest.
    """
    _runtime()
    open_axes = {0: "batch"} if example.ndim == 4 else {0: "batch", 2: "length"}
    with atomic_file(Path(path)) as scratch, eval_mode(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's doubts: the comparison settles them
            # dynamo=True needs onnxscript as well, and 20 times as long, for a graph that ONNX
            # Runtime brings to the same nodes
            torch.onnx.export(
                model,
                (example,),
                str(scratch),
                dynamo=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": open_axes, "logits": {0: "batch"}},
            )
        difference, largest = _compare(model, example, scratch)
        if not difference <= TOLERANCE * largest:  # nor if it is not a number
            raise UserError(
                f"{path}: not written: the exported {type(model).__name__} differs from PyTorch by "
                f"{difference:.2g} (largest logit {largest:.3g})"
            )
    return difference


@torch.no_grad()
def _compare(model: nn.Module, example: Tensor, path: Path) -> tuple[float, float]:
    """Return the largest absolute difference of the logits, and the largest absolute logit of PyTorch."""
    runtime = session(path, torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    inputs = [samples(example, batch, generator) for batch in BATCHES]
    expected = torch.cat([model(batch.to(example.device)).cpu() for batch in inputs])
    exported = torch.cat([logits(runtime, batch) for batch in inputs])
    return (exported - expected).abs().max().item(), expected.abs().max().item()


def samples(example: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Return random inputs like ``example`` on the CPU: images, or texts that are the shorter the more.

    The first of several texts is padded.
    """
    if example.is_floating_point():
        return torch.randn(batch, *example.shape[1:], generator=generator, dtype=example.dtype)
    length = max(2, example.shape[2] // batch)
    tokens = torch.randint(FEWEST_TOKENS, (batch, 3, length), generator=generator)
    tokens[:, 1] = 1
    tokens[:, 2] %= 2
    if batch > 1:
        tokens[0, :, length // 2 :] = 0
    return tokens


def session(path: str | Path, threads: int) -> Any:
    """Return ONNX Runtime's session of a file on the CPU.

    Raises:
        UserError: the packages onnx and onnxruntime are not installed.
    """
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; return the exit code (2: the user's mistake, or a network that ONNX cannot hold)."""
    parser = argparse.ArgumentParser(
        "python -m lpslim.models.onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", type=Path, help="folder of a network: architecture.json, weights")
    parser.add_argument("--output", type=Path, help="file to write; default <network>.onnx")
    options = parser.parse_args(arguments)
    folder = options.network.resolve()
    output = options.output or folder.parent / f"{folder.name}.onnx"
    try:
        difference = _export(options.network, output)
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, max difference from PyTorch {difference:.2g}")
    return 0


def _export(folder: Path, output: Path) -> float:
    described = storage.describe(folder)
    if described.family is None:
        load = f"lpslim.load({str(folder)!r}, model=<the dense one>)"
        raise UserError(
            f"{folder}: {described.name} is a network of your own, and this command cannot build it; from "
            f"Python: lpslim.to_onnx({load}, <an input>, <file>)"
        )
    return to_onnx(storage.load(folder), example_input(described.input_shape), output)


if __name__ == "__main__":
    sys.exit(main())
