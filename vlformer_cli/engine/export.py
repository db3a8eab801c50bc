"""Export to ONNX and torch.export; nothing gets its final name before it gave torch's numbers at other sizes.

The exported graph takes what `VLFormer.forward` takes and returns class logits NQ2 and mask logits NQYX. Every picture
fills its canvas up to a multiple of 32, as the Predictor lays it out. Tokenisation stays in Python.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from vlformer_cli.config import to_tree
from vlformer_cli.engine.checkpoint import LoadedModel, write_atomically
from vlformer_cli.model.backbone import Backbone
from vlformer_cli.model.deform_attn import DeformableAttention
from vlformer_cli.model.text_encoder import TextEncoder
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import VLFormerError

OPSET = 20
TOLERANCE = 1e-3  # of mask logits, between runtimes that sum in different orders
INPUTS = ("images", "pixel_valid", "tokens", "image_index")
OUTPUTS = ("class_logits", "mask_logits")
CHECKS = ((2, 160, 192, 5, 7), (1, 320, 256, 1, 4), (3, 96, 96, 4, 20))
"""Images, height, width, expressions, tokens: none of them the traced ones."""

Arrays = tuple[NDArray[np.float32], ...]
Runner = Callable[[Sequence[Tensor]], Arrays]


class Exported(nn.Module):
    """The model with plain tensors as its inputs and outputs."""

    def __init__(self, model: VLFormer) -> None:
        super().__init__()
        self.model = exportable(model)

    def forward(
        self, images: Tensor, pixel_valid: Tensor, tokens: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class logits NQ2 and mask logits NQYX."""
        output = self.model(images, pixel_valid, tokens, image_index)
        return output.class_logits, output.mask_logits


class EvenSizeConv(nn.Module):
    """timm's `Conv2dSame` for inputs whose sides are multiples of the stride, where its padding is always the same.

    The original computes its padding from the size with Python's numbers, which exporters cannot follow.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        reach = [(k - 1) * d + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        total_y, total_x = (r - s for r, s in zip(reach, conv.stride, strict=True))
        self.margins = (total_x // 2, total_x - total_x // 2, total_y // 2, total_y - total_y // 2)

    def forward(self, x: Tensor) -> Tensor:
        """BCYX."""
        conv = self.conv
        y: Tensor = F.conv2d(F.pad(x, self.margins), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        return y


def exportable(model: VLFormer) -> VLFormer:
    """A copy that computes the same with operators that exporters know and with no shape that depends on values."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(model.backbone.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame):
                setattr(parent, name, EvenSizeConv(child))
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            module.by_grid = True
        elif isinstance(module, TextEncoder):
            module.merge_repeats = False
        elif isinstance(module, Backbone):
            module.whole_canvas = True
    return model


def export_onnx(loaded: LoadedModel, path: Path) -> float:
    """Writes the ONNX file and returns the largest difference from torch; raises VLFormerError if it is too large."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise VLFormerError(f"export to ONNX needs more packages ({error}): pip install 'vlformer[export]'") from error
    module = Exported(loaded.model)
    largest = 0.0

    def write(partial: Path) -> None:
        nonlocal largest
        with _quiet():
            program = torch.onnx.export(
                module,
                example_inputs(2, 128, 160, 3, 6),
                dynamo=True,
                opset_version=OPSET,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes=_dynamic_shapes(),
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props["vlformer_model"] = json.dumps(to_tree(loaded.config))
        program.save(str(partial), external_data=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # onnxruntime does not see a container's limits
        session = onnxruntime.InferenceSession(str(partial), options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        largest = check(
            module,
            lambda xs: tuple(session.run(None, {n: x.numpy() for n, x in zip(INPUTS, xs, strict=True) if n in names})),
        )

    write_atomically(path, write)
    return largest


def export_torch(loaded: LoadedModel, path: Path) -> float:
    """Writes a `.pt2` file of torch.export; the rest as `export_onnx`."""
    module = Exported(loaded.model)
    largest = 0.0

    def write(partial: Path) -> None:
        nonlocal largest
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, example_inputs(2, 128, 160, 3, 6), dynamic_shapes=_dynamic_shapes())
        with partial.open("wb") as file:
            torch.export.save(program, file)
        with partial.open("rb") as file:
            again = torch.export.load(file).module()
        largest = check(module, lambda xs: tuple(y.numpy() for y in again(*xs)))

    write_atomically(path, write)
    return largest


def check(module: nn.Module, run: Runner) -> float:
    """The largest difference in logits, at sizes and counts other than the traced ones; VLFormerError if too large."""
    largest = 0.0
    for sizes in CHECKS:
        inputs = example_inputs(*sizes)
        with torch.no_grad():
            expected = module(*inputs)
        for ours, theirs in zip(expected, run(inputs), strict=True):
            largest = max(largest, float(np.abs(ours.numpy() - theirs).max()))
    if not largest <= TOLERANCE:
        raise VLFormerError(
            f"the exported model differs from torch by {largest:.1e} in logits, more than {TOLERANCE:.0e}: not written"
        )
    return largest


def example_inputs(images: int, height: int, width: int, expressions: int, tokens: int) -> tuple[Tensor, ...]:
    """Random pictures with a few rows of padding, and token ids that end where CLIP's expressions end."""
    generator = torch.Generator().manual_seed(images + height + width + expressions + tokens)
    pixels = torch.randint(0, 256, (images, 3, height, width), generator=generator, dtype=torch.uint8)
    valid = torch.ones(images, height, width, dtype=torch.bool)
    valid[:, height - 10 :] = False
    ids = torch.randint(300, 40_000, (expressions, tokens), generator=generator)
    ids[:, 0], ids[:, -1] = 49_406, 49_407
    return pixels, valid, ids, torch.arange(expressions) % images


def _dynamic_shapes() -> dict[str, dict[int, object]]:
    free = Dim.DYNAMIC
    return {
        "images": {0: free, 2: free, 3: free},
        "pixel_valid": {0: free, 1: free, 2: free},
        "tokens": {0: free, 1: free},
        "image_index": {0: free},
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk a lot; what they warn of is what `check` tests."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
