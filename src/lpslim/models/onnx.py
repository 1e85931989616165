"""A network as an ONNX file, checked against PyTorch in ONNX Runtime.

    python -m lpslim.models.onnx outputs/runs/<name>/<key>/pruned

Writes ``pruned.onnx`` beside the folder: input "input", images (batch, channels, height, width) or tokens
(batch, 3, length) as in lpslim.data.tokens, output "logits" (batch, classes), any batch size and length. Odd widths
are filled up with zero channels (lpslim.padding), which makes them faster and changes no logit. A network of
your own: :func:`to_onnx`. Needs ``pip install 'lpslim[onnx]'``.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lpslim import padding
from lpslim.base.errors import UserError
from lpslim.base.modules import evaluating
from lpslim.data.splits import example as blank_input
from lpslim.models import storage

OPSET = 17  # left open, the file would depend on torch's version
BATCHES = (1, 3)  # a batch size that the trace froze shows at the other one
FEWEST_WORDS = 32  # token ids that every vocabulary has
TOLERANCE = 1e-4  # of the largest logit: sums in another order differ by some 1e-6, a wrong graph by far more


@dataclass(frozen=True)
class Agreement:
    """The largest absolute difference from PyTorch's logits, and the largest of those logits."""

    difference: float
    scale: float

    @property
    def holds(self) -> bool:
        """Whether the difference is at most ``TOLERANCE`` of the scale; not so if it is not a number."""
        return self.difference <= TOLERANCE * self.scale


def to_onnx(model: nn.Module, example: Tensor, path: str | Path) -> float:
    """Write the network as ONNX; return the largest absolute difference of its logits from PyTorch's.

    example: images (batch, C, H, W) or tokens (batch, 3, L), any batch, on the model's device. The
    model's mode is kept.

    Raises:
        UserError: the packages onnx and onnxruntime are not installed.
    """
    write(model, example, path)
    return compare(model, example, path).difference


def write(
    model: nn.Module, example: Tensor, path: str | Path, finish: Callable[[Path], object] = padding.pad
) -> None:
    """Write the network in evaluation mode, batch size and length open; see :func:`to_onnx`.

    finish: what is done to the file in place before it appears; by default odd widths are filled up.
    """
    _runtime()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    open_axes = {0: "batch"} if example.ndim == 4 else {0: "batch", 2: "length"}
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        with evaluating(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's doubts: compare() settles them
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
        finish(scratch)
        os.replace(scratch, path)


@torch.no_grad()
def compare(model: nn.Module, example: Tensor, path: str | Path) -> Agreement:
    """Run the file and the network on the same seeded random inputs, in batches of 1 and 3.

    example: of the inputs' shape, type and device; texts are shorter in the second batch, and one of
    them is padded. The model's mode is kept.

    Raises:
        UserError: the packages onnx and onnxruntime are not installed.
    """
    runtime = session(path, torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    images = [samples(example, batch, generator) for batch in BATCHES]
    with evaluating(model):
        expected = torch.cat([model(each.to(example.device)).cpu() for each in images])
    found = torch.cat([logits(runtime, each) for each in images])
    return Agreement((found - expected).abs().max().item(), expected.abs().max().item())


def samples(example: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Return random inputs like ``example`` on the CPU: images, or texts that are the shorter the more."""
    if example.is_floating_point():
        return torch.randn(batch, *example.shape[1:], generator=generator, dtype=example.dtype)
    length = max(2, example.shape[2] // batch)
    tokens = torch.randint(FEWEST_WORDS, (batch, 3, length), generator=generator)
    tokens[:, 1] = 1
    tokens[:, 2] %= 2
    tokens[0, :, length // 2 :] *= batch == 1  # the first of several is padded
    return tokens


def session(path: str | Path, threads: int, profile: str | Path | None = None) -> Any:
    """Return ONNX Runtime's session of a file on the CPU.

    profile: how the name of the file begins that its ``end_profiling()`` will write; none without it.

    Raises:
        UserError: the packages onnx and onnxruntime are not installed.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # its threads would spin on after a call, and slow whatever is run or timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits(session: Any, images: Tensor) -> Tensor:
    """Return the logits (batch, classes) of images or tokens on the CPU."""
    (found,) = session.run(["logits"], {"input": images.numpy()})
    return torch.from_numpy(found)


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401 - torch's exporter needs it
        import onnxruntime
    except ImportError as problem:
        raise UserError(f"{problem.name} is not installed: pip install 'lpslim[onnx]'") from problem
    return onnxruntime


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; return the exit code (1: the file does not agree with PyTorch, 2: the user's mistake)."""
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
        agreement = _export(options.network, output)
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0 if agreement.holds else 1


def _export(folder: Path, output: Path) -> Agreement:
    described = architecture.describe(folder)
    if described.family is None:
        load = f"lpslim.load({str(folder)!r}, model=<the dense one>)"
        raise UserError(
            f"{folder}: {described.name} is a network of your own, and this command cannot build it; from "
            f"Python: lpslim.models.onnx.to_onnx({load}, <an image>, <file>)"
        )
    blank = blank_input(described.input_shape)
    model = architecture.load(folder)
    write(model, blank, output)
    agreement = compare(model, blank, output)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")
    print(f"max difference from PyTorch: {agreement.difference:.2g} (largest logit {agreement.scale:.3g})")
    if not agreement.holds:
        print(f"error: {output} is wrong: more than {TOLERANCE:g} of the largest logit off", file=sys.stderr)
    return agreement


if __name__ == "__main__":
    sys.exit(main())
