"""Exported files give torch's numbers, at other sizes than the traced ones, through the Predictor's own preparation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from skimage import data
from small_model import SMALL
from timm.layers import Conv2dSame
from torch import Tensor, nn

from vlformer_cli.config import BackboneConfig
from vlformer_cli.data.tokenize import tokenize
from vlformer_cli.data.transforms import resize_image
from vlformer_cli.engine import export
from vlformer_cli.engine.checkpoint import LoadedModel, load_weights
from vlformer_cli.engine.engines import INPUTS, OUTPUTS, Run
from vlformer_cli.engine.graph import EvenSizeConv, Exported, exportable
from vlformer_cli.engine.graph_swin import FreeSizeBlock
from vlformer_cli.model.backbone import Backbone
from vlformer_cli.model.build import build_model
from vlformer_cli.tree import to_tree
from vlformer_cli.types import VLFormerError

EXPRESSIONS = ["the cup", "spoon right of the saucer", "a"]


@pytest.fixture(scope="module")
def loaded(small_weights: Path) -> LoadedModel:
    return load_weights(small_weights)


def photo_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A photograph laid out as the Predictor does it, 96 x 144 pixels on a canvas of 96 x 160."""
    photo = data.coffee()
    image = resize_image(photo, (96, 144))
    images, valid = torch.zeros(1, 3, 96, 160, dtype=torch.uint8), torch.zeros(1, 96, 160, dtype=torch.bool)
    images[0, :, :, :144], valid[0, :, :144] = torch.from_numpy(image).permute(2, 0, 1), True
    return images, valid, tokenize(EXPRESSIONS, 40)[0], torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "m.pt2", "--format", "onnx"], "--format onnx is a .onnx"),
        (["--output", "m.onnx", "--format", "torch"], "--format torch is a .pt2"),
        (["--output", "m.pth"], "it can end in .onnx (onnx), .pt2 (torch), .xml (openvino)"),
        (["--output", "m.pt2", "--int8"], "--int8 is for --format onnx and openvino"),
        (["--data", "d"], "--data and --dataset are for --int8"),
        (["--int8", "--split", "train"], "--split is for --int8 with --data or --dataset"),
    ],
)
def test_a_name_that_says_another_format_is_refused(
    run: Any, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run("export", *words) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in told


def test_what_an_exporter_cannot_do_is_no_trouble_with_the_file(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("aten::foo is not supported")

    monkeypatch.setattr(export, "_trace", fails)
    with pytest.raises(VLFormerError, match=r"could not be exported to .*m\.pt2: aten::foo is not supported"):
        export.export_torch(loaded, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_onnx(loaded: LoadedModel, small_onnx: tuple[Path, export.Written]) -> None:
    path, written = small_onnx
    assert 0 < written.difference < export.TOLERANCE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(INPUTS)
    assert [o.name for o in session.get_outputs()] == list(OUTPUTS)
    assert json.loads(session.get_modelmeta().custom_metadata_map["vlformer_model"]) == to_tree(SMALL)
    inputs = photo_inputs()
    class_logits, mask_logits = session.run(None, {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)})
    expected = loaded.model(*inputs)  # the model as it is used, not the one prepared for export
    np.testing.assert_allclose(class_logits, expected.class_logits.numpy(), atol=1e-3)
    np.testing.assert_allclose(mask_logits, expected.mask_logits.numpy(), atol=1e-3)
    assert expected.mask_logits.std() > 0.05
    assert list(path.parent.iterdir()) == [path]


class LogSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid().log()


def test_small_sigmoids_are_exact_in_onnx(tmp_path: Path) -> None:
    """ONNX Runtime's own Sigmoid is 0 or less below -18; `model/nearness.py` takes logarithms of sums of sigmoids."""
    x = torch.linspace(-80, 20, 1001)
    program = export.to_onnx(torch.export.export(LogSigmoid(), (x,)), ["x"], ["y"])
    program.save(str(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x.numpy()})
    expected = nn.functional.logsigmoid(x.double())
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_torch(small_pt2: tuple[Path, export.Written]) -> None:
    path, written = small_pt2  # masks: tests/test_engines.py
    assert written.difference < export.TOLERANCE
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow  # a minute
def test_a_resnet_too(tmp_path: Path) -> None:
    """torch.onnx's own tracing fails on its free sizes."""
    config = dataclasses.replace(SMALL, backbone=BackboneConfig(name="resnet18"), blocks=1)
    loaded = LoadedModel(build_model(config).eval(), config, {}, tmp_path / "none")
    assert export.export_onnx(loaded, tmp_path / "resnet.onnx").difference < export.TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (224, 224), (480, 256)])
def test_a_swin_with_free_sizes_is_timm_s(height: int, width: int) -> None:
    torch.manual_seed(0)
    net = small_swin()
    free = exportable(nn.ModuleDict({"backbone": net}))["backbone"]  # type: ignore[arg-type, index]
    assert sum(isinstance(module, FreeSizeBlock) for module in free.modules()) == 8
    images, valid = torch.rand(2, 3, height, width) * 255, torch.ones(2, height, width, dtype=torch.bool)
    with torch.no_grad():
        for ours, theirs in zip(free(images, valid), net(images, valid), strict=True):
            torch.testing.assert_close(ours, theirs)
            assert theirs.std() > 0.05


@pytest.mark.slow  # minutes
def test_a_swin_too(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, blocks=1)
    model = build_model(config)
    model.backbone = small_swin()
    model.pixel_decoder = build_model(
        dataclasses.replace(config, backbone=BackboneConfig(name="swin_tiny_patch4_window7_224"))
    ).pixel_decoder
    loaded = LoadedModel(model.eval(), config, {}, tmp_path / "none")
    assert export.export_onnx(loaded, tmp_path / "swin.onnx").difference < export.TOLERANCE


def small_swin() -> Backbone:
    """Two blocks a stage, the second with shifted windows, and biases of places that are not near zero."""
    net = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        out_indices=(0, 1, 2, 3),
        strict_img_size=False,
        depths=(2, 2, 2, 2),
    )
    for name, parameter in net.named_parameters():
        if "relative_position" in name:
            nn.init.normal_(parameter)
    channels, thirds = net.feature_info.channels(), (0.3, 0.3, 0.3)
    return Backbone(net=net, channels=channels, mean=thirds, std=thirds, freeze_norm=True, channels_at_end=True).eval()


class Sums(nn.Module):
    """In place of the model, because it exports fast."""

    def __init__(self, _: nn.Module) -> None:
        super().__init__()

    def forward(
        self, images: Tensor, pixel_valid: Tensor, tokens: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        return images.float().mean((1, 2, 3)) + pixel_valid.float().mean(), (tokens > 20_000).float().mean(
            1
        ) + image_index


def test_an_exported_graph_is_compared_with_the_model_itself(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that computes something else is found, as the model that it stands in for is what it has to equal."""

    class Wrong(EvenSizeConv):
        def __init__(self, conv: nn.Conv2d) -> None:
            super().__init__(conv)
            self.margins = tuple(margin + 2 * (place % 2) - 1 for place, margin in enumerate(self.margins))

    right = Exported(loaded.model)
    assert export.check(loaded, lambda inputs: right(*inputs)) < export.TOLERANCE
    monkeypatch.setattr("vlformer_cli.engine.graph.EvenSizeConv", Wrong)
    wrong = Exported(loaded.model)
    assert any(isinstance(module, Wrong) for module in wrong.modules())
    with pytest.raises(VLFormerError, match=r"differs from torch by"):
        export.check(loaded, lambda inputs: wrong(*inputs))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 2), (3, 4)])
def test_even_sizes_are_padded_as_timm_does(kernel: int, stride: int) -> None:
    conv = Conv2dSame(3, 4, kernel, stride=stride)
    x = torch.randn(2, 3, 32, 64)
    torch.testing.assert_close(EvenSizeConv(conv)(x), conv(x))


def test_a_file_that_differs_is_not_written(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if an exporter had got something wrong: what it ran is not what torch computes."""
    monkeypatch.setattr(export, "Exported", Sums)
    monkeypatch.setattr(export, "plain", lambda model: lambda inputs: Sums(model)(*inputs))
    assert export.export_torch(loaded, tmp_path / "right.pt2").difference < export.TOLERANCE
    (tmp_path / "right.pt2").unlink()
    check = export.check

    def wrong(loaded: LoadedModel, run: Run) -> float:
        return check(loaded, lambda inputs: tuple(y + 0.01 for y in run(inputs)))

    monkeypatch.setattr(export, "check", wrong)
    with pytest.raises(VLFormerError, match=r"differs from torch by 1\.0e-02 in logits.*not written"):
        export.export_torch(loaded, tmp_path / "wrong.pt2")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(VLFormerError, match=r"pip install 'vlformer\[export\]'"):
        export.export_onnx(loaded, tmp_path / "small.onnx")
