"""The model made for prediction gives what the plain one gives; operators without padding what those with it do.

Letters: B images, C channels, Y X cells.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from vlformer_cli.config import BackboneConfig
from vlformer_cli.data.images import read_image
from vlformer_cli.engine.checkpoint import EMBEDDED, load_weights
from vlformer_cli.engine.fast import OneDnnLinear, fold_batch_norms, for_prediction
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.model.attention import per_expression, upsample_valid
from vlformer_cli.model.build import build_backbone
from vlformer_cli.types import VLFormerError

FOLDER = Path(__file__).parents[1] / "examples"
EXPRESSIONS = json.loads((FOLDER / "expressions.json").read_text(encoding="utf-8"))


def randomised_norms(net: nn.Module) -> int:
    """Statistics and weights as after training, so that folding has something to do; how many norms there are."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for tensor, low, high in ((norm.running_mean, -0.3, 0.3), (norm.running_var, 0.5, 2), (norm.weight, 0.5, 1.5)):
            nn.init.uniform_(tensor, low, high)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
    return len(norms)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "regnetx_002"])
def test_folded_batch_norms(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name=name), pretrained=False).eval()
    assert randomised_norms(backbone.net) > 10
    images, valid = torch.randint(0, 256, (2, 3, 64, 96)), torch.ones(2, 64, 96, dtype=torch.bool)
    folded = copy.deepcopy(backbone)
    assert fold_batch_norms(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.net.modules())
    with torch.no_grad():
        for before, after in zip(backbone(images, valid), folded(images, valid), strict=True):
            assert_close(after, before, atol=1e-4 * float(before.abs().max()), rtol=0)


def test_a_backbone_without_batch_norms_stays() -> None:
    backbone = build_backbone(BackboneConfig(name="convnext_atto"), pretrained=False).eval()
    net = backbone.net
    assert not fold_batch_norms(backbone)
    assert backbone.net is net


def test_both_precisions_give_the_masks_of_the_plain_model() -> None:
    """Mean IoU on the examples, of answers that are masks; 0.9965 was measured in bfloat16."""
    loaded = load_weights(EMBEDDED)
    plain = Predictor(loaded.model, loaded.config, min_score=0.0)
    fast = {p: Predictor(for_prediction(loaded.model, p), loaded.config, min_score=0.0) for p in ("fp32", "bf16")}
    overlaps: dict[str, list[float]] = {name: [] for name in fast}
    assert len(EXPRESSIONS) >= 5
    for name, expressions in EXPRESSIONS.items():
        image = read_image(FOLDER / name)
        expected = [answer.mask for answer in plain.predict(image, expressions)]
        for precision, predictor in fast.items():
            for mask, answer in zip(expected, predictor.predict(image, expressions), strict=True):
                union = np.logical_or(mask, answer.mask).sum()
                overlaps[precision].append(float(np.logical_and(mask, answer.mask).sum() / union) if union else 1.0)
    assert min(overlaps["fp32"]) > 0.999
    assert np.mean(overlaps["bf16"]) >= 0.995
    assert overlaps["bf16"] != overlaps["fp32"]  # it is another precision


def test_the_original_is_left_as_it_was() -> None:
    loaded = load_weights(EMBEDDED)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    for_prediction(loaded.model, "bf16")
    after = loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("relu", [False, True])
def test_a_layer_by_onednn_is_torchs(dtype: torch.dtype, tolerance: float, relu: bool) -> None:
    if not OneDnnLinear.is_there(dtype):
        pytest.skip(f"oneDNN's operator for {dtype} is not there")
    torch.manual_seed(2)
    plain = nn.Linear(48, 20).requires_grad_(False)
    x_NPD = torch.randn(2, 7, 48)
    expected = F.relu(plain(x_NPD)) if relu else plain(x_NPD)
    assert float(expected.min()) < 0 or relu
    found = OneDnnLinear(plain.weight.to(dtype), plain.bias.to(dtype), relu=relu)(x_NPD)
    assert found.dtype == dtype
    assert_close(found.float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("precision", "all_layers"), [("fp32", True), ("bf16", False)])
def test_feed_forward_layers_of_the_encoder_take_one_pass_less(precision: str, all_layers: bool) -> None:
    if not OneDnnLinear.is_there({"fp32": torch.float32, "bf16": torch.bfloat16}[precision]):
        pytest.skip(f"oneDNN does not do it in {precision} on this processor")
    layers = for_prediction(load_weights(EMBEDDED).model, precision).model.pixel_decoder.encoder
    assert len(layers) > 0
    for layer in layers:
        assert isinstance(layer.feed_forward.hidden, OneDnnLinear)
        assert layer.feed_forward.hidden.relu
        assert isinstance(layer.feed_forward.contract, OneDnnLinear) == all_layers


def test_another_precision_is_refused() -> None:
    with pytest.raises(VLFormerError, match="precision is 'fp8'"):
        for_prediction(load_weights(EMBEDDED).model, "fp8")


def test_upsampling_of_a_whole_picture_is_that_of_one_with_padding_around_it() -> None:
    torch.manual_seed(1)
    small_BCYX, valid_BYX = torch.randn(1, 4, 6, 8), torch.ones(1, 6, 8, dtype=torch.bool)
    wide_BCYX, wide_valid = torch.randn(1, 4, 9, 11), torch.zeros(1, 9, 11, dtype=torch.bool)
    wide_BCYX[..., :6, :8], wide_valid[:, :6, :8] = small_BCYX, True
    whole, part = upsample_valid(small_BCYX, valid_BYX, (12, 16)), upsample_valid(wide_BCYX, wide_valid, (18, 22))
    assert_close(part[..., :12, :16], whole, atol=1e-5, rtol=1e-5)


def test_one_image_for_all_expressions_is_not_copied() -> None:
    x_BC, index_N = torch.randn(1, 5), torch.zeros(7, dtype=torch.long)
    assert_close(per_expression(x_BC, index_N), x_BC[index_N])
    assert per_expression(x_BC, index_N).data_ptr() == x_BC.data_ptr()
    two_BC, both_N = torch.randn(2, 5), torch.tensor([1, 0, 1])
    assert_close(per_expression(two_BC, both_N), two_BC[both_N])


def test_a_few_expressions_at_once_are_answered_as_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = for_prediction(load_weights(EMBEDDED).model)
    tokens_NT, index_N = torch.randint(1, 1000, (5, 6)), torch.zeros(5, dtype=torch.long)
    with torch.inference_mode():
        seen = engine.look(torch.rand(1, 3, 64, 96) * 255, torch.ones(1, 64, 96, dtype=torch.bool))
        whole = engine.ask(seen, tokens_NT, index_N)
        monkeypatch.setattr("vlformer_cli.engine.fast.BYTES_AT_ONCE", 2 * 4 * 126 * engine.widest)  # 126 cells
        parts = engine.ask(seen, tokens_NT, index_N)
    assert_close(parts.class_logits, whole.class_logits, atol=1e-4, rtol=1e-4)
    assert_close(parts.mask_logits, whole.mask_logits, atol=1e-3, rtol=1e-4)
