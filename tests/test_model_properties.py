"""What must hold of the whole model whatever its weights: padding, neighbours and order change nothing.

Letters: B images, N expressions, Q queries, M mask features, H W pixels, Y X cells of a grid, P = Y * X.
"""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from vlformer_cli.config import BackboneConfig, ModelConfig, TextConfig
from vlformer_cli.data.tokenize import tokenize
from vlformer_cli.model.attention import FeedForward, downsample_valid, per_expression, upsample_valid
from vlformer_cli.model.build import build_model
from vlformer_cli.model.decoder import attention_block
from vlformer_cli.model.pixel_decoder import MaskFeatures
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import VLFormerError, VLFormerOutput

CONFIG = ModelConfig(
    name="small",
    backbone=BackboneConfig(name="tf_efficientnet_lite0"),
    text=TextConfig(name="small", frozen=False, width=32, layers=1, heads=2, embed_dim=16),
    dim=32,
    queries=3,
    blocks=4,
    heads=4,
    ffn_dim=64,
    encoder_layers=2,
    encoder_ffn_dim=64,
    mix_levels=True,
    pointer=True,
    anchors=True,
)
WORDS = [
    "red cup",
    "the dog left of the big house",
    "a",
    "the small thing that is on top of the other thing",
    "red cup",
]
CLOSE = {"atol": 1e-8, "rtol": 1e-8}
"""In float64: in float32, values that rounding puts on the other side of ReLU6's edges or of a mask's threshold make
results differ by 0.01, on some CPUs and not on others."""


def random_model(config: ModelConfig = CONFIG) -> VLFormer:
    """In eval mode, in float64. What starts at zero (offsets, attention, nearness) is drawn too."""
    torch.manual_seed(0)
    model = build_model(config, pretrained=False).eval().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"attention\.offsets|attention\.weights|nearness\.out", name):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def model() -> VLFormer:
    return random_model()


def picture(seed: int, height: int, width: int) -> Tensor:
    """3HW of 0..255: smooth, so that features differ from place to place."""
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0]


def canvas(pictures: list[Tensor], height: int, width: int, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """BCHW and BHW valid: each picture at the top left."""
    images, valid = torch.full((len(pictures), 3, height, width), fill), torch.zeros(len(pictures), height, width)
    for number, one in enumerate(pictures):
        images[number, :, : one.shape[1], : one.shape[2]] = one
        valid[number, : one.shape[1], : one.shape[2]] = 1
    return images, valid.bool()


@torch.no_grad()
def ask(model: VLFormer, images: tuple[Tensor, Tensor], words: list[str], index: list[int]) -> VLFormerOutput:
    output: VLFormerOutput = model(*images, tokenize(words, 77)[0], torch.tensor(index))
    return output


def check_same(found: VLFormerOutput, expected: VLFormerOutput, rows: list[int], size: tuple[int, int]) -> None:
    """`rows` of `found` are `expected` on the cells of a picture of `size` pixels; the answers are worth comparing."""
    y, x = -(-size[0] // 4), -(-size[1] // 4)
    wanted = expected.mask_logits[..., :y, :x]
    assert float(wanted.std()) > 0.05
    assert_close(found.mask_logits[rows][..., :y, :x], wanted, **CLOSE)
    assert_close(found.class_logits[rows], expected.class_logits, **CLOSE)


BACKBONES = ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_and_neighbours_change_nothing(backbone: str) -> None:
    """80 x 112 pixels fill 96 x 128; then a wider canvas, garbage in the padding, bigger pictures beside it."""
    model = random_model(dataclasses.replace(CONFIG, backbone=BackboneConfig(name=backbone)))
    one, size = picture(1, 80, 112), (80, 112)
    alone = ask(model, canvas([one], 96, 128), WORDS[:2], [0, 0])
    check_same(ask(model, canvas([one], 160, 192), WORDS[:2], [0, 0]), alone, [0, 1], size)
    check_same(ask(model, canvas([one], 128, 160, fill=213.0), WORDS[:2], [0, 0]), alone, [0, 1], size)
    among = canvas([picture(2, 160, 96), one, picture(3, 150, 190)], 160, 192)
    check_same(ask(model, among, [WORDS[2], *WORDS[:2], WORDS[0]], [0, 1, 1, 2]), alone, [1, 2], size)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_draws_nothing_in_the_backbone(backbone: str) -> None:
    """A process draws for its own pictures: 1 and 2 processes would compute different steps."""
    net = random_model(dataclasses.replace(CONFIG, backbone=BackboneConfig(name=backbone))).backbone.train()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    first, second = (net(images, torch.ones(2, 64, 64, dtype=torch.bool)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_all_sizes_at_once_are_one_size_after_the_other() -> None:
    """Exactly what each picture's own extent gives, and so its gradients; a net that pools over the picture cannot."""
    ours, theirs = random_model().backbone, random_model().backbone
    ours.run_at_once()
    images = canvas([picture(0, 96, 64), picture(1, 70, 128), picture(2, 50, 40)], 96, 128)
    found, expected = ours(*images), theirs(*images)
    assert_close(found, expected, **CLOSE)
    for maps in (found, expected):
        sum((level.square().mean() for level in maps), torch.zeros(())).backward()
    checked = 0
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            assert mine.grad is not None
            assert_close(mine.grad, other.grad, **CLOSE)
            checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    "backbone", [BackboneConfig(name="efficientnet_b0"), dataclasses.replace(CONFIG.backbone, freeze_norm=False)]
)
def test_what_sees_the_whole_canvas_cannot_run_at_once(backbone: BackboneConfig) -> None:
    with pytest.raises(VLFormerError, match="cannot run at once"):
        random_model(dataclasses.replace(CONFIG, backbone=backbone)).backbone.run_at_once()


def test_a_picture_that_fills_its_canvas(model: VLFormer) -> None:
    """Its right and bottom borders are as in a canvas that ends there."""
    one, size = picture(1, 96, 128), (96, 128)
    alone = ask(model, canvas([one], 96, 128), WORDS[:2], [0, 0])
    check_same(ask(model, canvas([one], 160, 192), WORDS[:2], [0, 0]), alone, [0, 1], size)


def test_the_picture_and_the_words_do_matter(model: VLFormer) -> None:
    """Or all invariances here would be those of a constant."""
    images = canvas([picture(1, 96, 128), picture(2, 96, 128)], 96, 128)
    output = ask(model, images, [WORDS[0], WORDS[1], WORDS[0]], [0, 0, 1])
    assert (output.mask_logits[0] - output.mask_logits[1]).abs().max() > 0.05
    assert (output.mask_logits[0] - output.mask_logits[2]).abs().max() > 0.05


def test_many_expressions_are_many_single_calls(model: VLFormer) -> None:
    """Also the padding of short expressions beside long ones does not matter."""
    images = canvas([picture(1, 96, 128)], 96, 128)
    together = ask(model, images, WORDS, [0] * len(WORDS))
    for row, expression in enumerate(WORDS):
        check_same(together, ask(model, images, [expression], [0]), [row], (96, 128))


def test_order_of_expressions_and_pictures(model: VLFormer) -> None:
    pictures = [picture(1, 80, 112), picture(2, 128, 64)]
    index, order = [0, 1, 0, 1, 1], [3, 0, 4, 2, 1]
    first = ask(model, canvas(pictures, 128, 128), WORDS, index)
    second = ask(
        model, canvas(pictures[::-1], 128, 128), [WORDS[row] for row in order], [1 - index[row] for row in order]
    )
    assert_close(second.mask_logits, first.mask_logits[order], **CLOSE)
    assert_close(second.class_logits, first.class_logits[order], **CLOSE)


def test_what_follows_the_end_of_text_does_not_matter(model: VLFormer) -> None:
    images, index = canvas([picture(1, 96, 128)], 96, 128), torch.tensor([0])
    tokens = tokenize(["red cup"], 77)[0]
    with torch.no_grad():
        expected = model(*images, tokens, index)
        found = model(*images, torch.cat([tokens, torch.tensor([[0, 736, 0, 1937, 5]])], 1), index)
    check_same(found, expected, [0], (96, 128))


def test_the_backbone_runs_once_for_eight_expressions() -> None:
    """With the default model on a picture of the usual size."""
    model = build_model(ModelConfig(name="vlformer-r50"), pretrained=False).eval()
    batches: list[int] = []
    tower_rows: list[int] = []
    model.backbone.net.register_forward_hook(lambda _module, inputs, _output: batches.append(len(inputs[0])))
    model.text_encoder.tower.token_embedding.register_forward_hook(  # type: ignore[union-attr]
        lambda _module, inputs, _output: tower_rows.append(len(inputs[0]))
    )
    output = ask(model, canvas([picture(1, 480, 640)], 480, 640), ["red cup", "dog", "a", "red cup"] * 2, [0] * 8)
    assert batches == [1]
    assert tower_rows == [3]
    assert output.mask_logits.shape == (8, 5, 120, 160)
    assert torch.isfinite(output.mask_logits).all()


def as_they_are(feat_NMYX: Tensor) -> MaskFeatures:
    """Mask features whose last layer changes nothing."""
    return MaskFeatures(feat_NMYX, torch.eye(feat_NMYX.shape[1]), torch.zeros(feat_NMYX.shape[1]))


def test_attention_block() -> None:
    """Query 0 sees where its logit is positive, query 1 has an empty mask, query 2's mask lies in the padding alone."""
    feat_NMYX = torch.zeros(1, 2, 2, 3)
    feat_NMYX[0, 0] = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])
    feat_NMYX[0, 1] = torch.tensor([[-1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    embed_NQM = torch.tensor([[[1.0, 0.0], [-0.1, -1.0], [0.0, 1.0]]])
    embed_NQM[0, 1] = torch.tensor([0.5, 0.5]) * -3  # -3 (a + b) / 2: 0 or more where a + b <= 0
    pad_NYX = torch.tensor([[[False, False, True], [False, False, True]]])
    found = attention_block(embed_NQM, as_they_are(feat_NMYX), pad_NYX)[0].unflatten(1, (2, 3))
    assert found[0].tolist() == [[False, True, True], [True, False, True]]
    assert found[1].tolist() == [[False, False, True], [False, False, True]]  # logits 0, 3: not below zero
    assert found[2].tolist() == [[False, False, True], [False, False, True]]  # all of it, but the padding
    nothing = attention_block(-embed_NQM[:, :1] * 0 - 1, as_they_are(feat_NMYX.abs()), pad_NYX)
    assert nothing[0, 0].tolist() == pad_NYX.flatten().tolist()


def test_no_query_is_ever_blind_and_padding_is_never_seen() -> None:
    torch.manual_seed(1)
    for bias in (-6.0, -2.0, 0.0, 5.0):
        pad_NYX = torch.rand(4, 5, 6) < 0.5
        pad_NYX[:, 0, 0] = False
        feat_NMYX, embed_NQM = torch.randn(4, 8, 5, 6), torch.randn(4, 3, 8)
        feat_NMYX[:, 0], embed_NQM[..., 0] = 1.0, bias
        found_NQP = attention_block(embed_NQM, as_they_are(feat_NMYX), pad_NYX)
        visible_NQP = (torch.einsum("nqm,nmyx->nqyx", embed_NQM, feat_NMYX) >= 0).flatten(2) & ~pad_NYX.flatten(1)[
            :, None
        ]
        empty_NQ1 = ~visible_NQP.any(-1, keepdim=True)
        assert torch.equal(~found_NQP, visible_NQP | (empty_NQ1 & ~pad_NYX.flatten(1)[:, None]))
        assert not found_NQP.all(-1).any()


def test_resizing_mask_features_commutes_with_the_dot_product() -> None:
    torch.manual_seed(2)
    embed_NQM, feat_NMYX = torch.randn(2, 3, 8), torch.randn(2, 8, 16, 24)
    masks = MaskFeatures(feat_NMYX, torch.randn(8, 8), torch.randn(8))
    for size in ((8, 12), (4, 6), (2, 3)):
        expected = F.interpolate(masks.dot(embed_NQM), size=size, mode="bilinear", align_corners=False)
        assert_close(masks.resized(size).dot(embed_NQM), expected, atol=1e-5, rtol=1e-5)


def test_the_last_layer_of_the_mask_features_may_be_applied_to_the_embeddings() -> None:
    torch.manual_seed(3)
    layer, embed_NQM, feat_NMYX = nn.Conv2d(8, 8, kernel_size=1), torch.randn(2, 3, 8), torch.randn(2, 8, 5, 6)
    assert layer.bias is not None
    expected = torch.einsum("nqm,nmyx->nqyx", embed_NQM, layer(feat_NMYX))
    found = MaskFeatures(feat_NMYX, layer.weight.flatten(1), layer.bias).dot(embed_NQM)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_earlier_predictions_are_there_in_training_alone(train: bool) -> None:
    model = random_model().train(train)
    output = ask(model, canvas([picture(1, 64, 64)], 64, 64), WORDS[:2], [0, 0])
    assert len(output.earlier) == (CONFIG.blocks - 1 if train else 0)
    for prediction in output.earlier:
        assert prediction.mask_logits.shape == output.mask_logits.shape
        assert not torch.equal(prediction.mask_logits, output.mask_logits)


def test_training_and_evaluation_compute_the_same(model: VLFormer) -> None:
    """No dropout, and frozen norms: only the way that deformable attention samples differs."""
    images = canvas([picture(1, 80, 112)], 96, 128)
    expected = ask(model, images, WORDS[:2], [0, 0])
    try:
        found = ask(model.train(), images, WORDS[:2], [0, 0])
    finally:
        model.eval()
    check_same(found, expected, [0, 1], (80, 112))


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 6)])
def test_what_belongs_to_each_expressions_image(shape: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    x_B, index_N = torch.randn(shape, requires_grad=True), torch.tensor([2, 0, 2, 2])
    found = per_expression(x_B, index_N)
    expected = torch.stack([x_B[int(number)] for number in index_N])
    assert torch.equal(found, expected)
    weight = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x_B)[0] for y in (found, expected))
    assert_close(ours, theirs)


def test_the_feed_forward_layer_has_its_residual() -> None:
    torch.manual_seed(3)
    layer, x = FeedForward(dim=8, hidden_dim=16), torch.randn(2, 5, 8)
    torch.nn.init.zeros_(layer.contract.weight)
    torch.nn.init.zeros_(layer.contract.bias)
    assert_close(layer(x), F.layer_norm(x, (8,)))


def test_grids_of_valid_cells() -> None:
    valid = canvas([torch.ones(3, 5, 9)], 8, 16)[1]
    assert downsample_valid(valid, 4)[0].tolist() == [[True, True, True, False]] * 2
    assert downsample_valid(valid, 8)[0].tolist() == [[True, True]]
    assert downsample_valid(torch.ones(2, 8, 16, dtype=torch.bool), 4).tolist() == [[[True] * 4] * 2] * 2
    cells = torch.zeros(1, 4, 6, dtype=torch.bool)
    cells[:, :3, :4] = True
    x = torch.randn(1, 2, 4, 6)
    expected = F.interpolate(x[..., :3, :4], size=(6, 8), mode="bilinear", align_corners=False)
    assert_close(upsample_valid(x, cells, (8, 12))[..., :6, :8], expected, atol=1e-5, rtol=1e-5)


def test_a_shared_fusion_is_one_per_level_with_equal_weights() -> None:
    shared = random_model(dataclasses.replace(CONFIG, fusion_per_level=False))
    apart = random_model()
    state = shared.state_dict()
    for name in apart.state_dict():
        state.setdefault(name, state.get(re.sub(r"fusion\.attentions\.[12]", "fusion.attentions.0", name)))
    apart.load_state_dict(state)
    images = canvas([picture(1, 80, 112)], 96, 128)
    check_same(ask(apart, images, WORDS[:2], [0, 0]), ask(shared, images, WORDS[:2], [0, 0]), [0, 1], (80, 112))
