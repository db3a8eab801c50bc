"""Attention, norms and positions against transformers' Mask2Former and torch's own layers, with copied random weights.

Letters: N expressions, S cells of all levels, A heads, d head dim, L levels, K points, B images, C channels, Y X cells.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as reference

from vlformer_cli.model.attention import Attention, FeedForward, MaskedGroupNorm
from vlformer_cli.model.deform_attn import DeformableAttention, cell_places, sample_by_bag, sample_by_grid
from vlformer_cli.model.pixel_decoder import EncoderLayer
from vlformer_cli.model.position import sine_position_1d, sine_position_2d
from vlformer_cli.model.text_encoder import Words
from vlformer_cli.model.vl_block import VLBlock

DIM, HEADS, FFN = 32, 4, 48
SHAPES = ((8, 12), (4, 6), (2, 3))  # strides 8, 16, 32 of a canvas of 64 x 96
STRIDES = (8, 16, 32)
CELLS = sum(h * w for h, w in SHAPES)


def randomised(module: nn.Module) -> nn.Module:
    """In eval mode, every parameter drawn anew, so that nothing that starts as zero or one hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


def copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def padding(valid_width: tuple[int, ...], valid_height: tuple[int, ...]) -> Tensor:
    """NS, True on padding: picture n covers so many cells of stride 32."""
    levels = []
    for (height, width), stride in zip(SHAPES, STRIDES, strict=True):
        rows = torch.tensor(valid_height)[:, None] * (32 // stride) > torch.arange(height)
        columns = torch.tensor(valid_width)[:, None] * (32 // stride) > torch.arange(width)
        levels.append(~(rows[:, :, None] & columns[:, None]).flatten(1))
    return torch.cat(levels, 1)


def reference_points(pad_NS: Tensor) -> Tensor:
    """What Mask2Former's encoder computes from the share of each level that is valid."""
    ratios = []
    for pad, (height, width) in zip(pad_NS.split([h * w for h, w in SHAPES], 1), SHAPES, strict=True):
        valid = ~pad.unflatten(1, (height, width))
        ratios.append(torch.stack([valid[:, 0].sum(1) / width, valid[:, :, 0].sum(1) / height], -1))
    points: Tensor = reference.Mask2FormerPixelDecoderEncoderOnly.get_reference_points(
        list(SHAPES), torch.stack(ratios, 1), "cpu"
    )
    return points


def copy_deformable(theirs: nn.Module, ours: DeformableAttention) -> None:
    pairs = {
        "sampling_offsets": "offsets",
        "attention_weights": "weights",
        "value_proj": "value_proj",
        "output_proj": "out_proj",
    }
    for their_name, our_name in pairs.items():
        copy(getattr(theirs, their_name), getattr(ours, our_name))


PADDINGS = {"none": padding((3, 3), (2, 2)), "some": padding((3, 2), (1, 2)), "most": padding((1, 1), (1, 2))}


@pytest.mark.parametrize("by_grid", [False, True], ids=["bag", "grid"])
@pytest.mark.parametrize("pad_NS", PADDINGS.values(), ids=PADDINGS)
def test_deformable_attention(pad_NS: Tensor, by_grid: bool) -> None:
    torch.manual_seed(0)
    theirs = reference.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(DIM, HEADS, 3, 4)
    randomised(theirs)
    ours = DeformableAttention(dim=DIM, num_heads=HEADS, num_levels=3, num_points=4).eval()
    copy_deformable(theirs, ours)
    ours.by_grid = by_grid
    query, value = torch.randn(2, CELLS, DIM), torch.randn(2, CELLS, DIM)
    expected, _ = theirs(
        query,
        attention_mask=pad_NS,
        encoder_hidden_states=value,
        reference_points=reference_points(pad_NS),
        spatial_shapes_list=list(SHAPES),
    )
    found = ours(query, value, cell_places(SHAPES, STRIDES, query.device), SHAPES, pad_NS)
    assert ours.offsets(query).std() > 1  # the points are spread over several cells
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pad_NS", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_encoder_layer(pad_NS: Tensor, train: bool) -> None:
    torch.manual_seed(1)
    config = Mask2FormerConfig(feature_size=DIM, num_attention_heads=HEADS, encoder_feedforward_dim=FFN, dropout=0.0)
    theirs = randomised(reference.Mask2FormerPixelDecoderEncoderLayer(config))
    attention = DeformableAttention(dim=DIM, num_heads=HEADS, num_levels=3, num_points=4)
    ours = EncoderLayer(attention=attention, feed_forward=FeedForward(dim=DIM, hidden_dim=FFN), dim=DIM).train(train)
    copy_deformable(theirs.self_attn, attention)
    copy(theirs.self_attn_layer_norm, ours.norm)
    copy(theirs.fc1, ours.feed_forward.expand)
    copy(theirs.fc2, ours.feed_forward.contract)
    copy(theirs.final_layer_norm, ours.feed_forward.norm)
    x, position = torch.randn(2, CELLS, DIM), torch.randn(2, CELLS, DIM)
    expected = theirs(
        x,
        pad_NS,
        position_embeddings=position,
        reference_points=reference_points(pad_NS),
        spatial_shapes_list=list(SHAPES),
    )[0]
    found = ours(x, position, cell_places(SHAPES, STRIDES, x.device), SHAPES, pad_NS)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


def sampling_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Values, points in cells, weights; float64, some points far outside every level."""
    torch.manual_seed(2)
    value_NSAd = torch.randn(2, CELLS, HEADS, 8, dtype=torch.float64, requires_grad=True)
    point_NSAk2 = torch.rand(2, 7, HEADS, 12, 2, dtype=torch.float64) * 16 - 3
    weight_NSAk = torch.randn(2, 7, HEADS, 12, dtype=torch.float64, requires_grad=True)
    return value_NSAd, point_NSAk2.requires_grad_(), weight_NSAk


def test_sampling_by_hand() -> None:
    """A point between four cells, one at a corner cell, one half outside, one far outside."""
    value_NSAd = torch.arange(6.0).reshape(1, 6, 1, 1)  # rows 0 1 2 / 3 4 5
    points = torch.tensor([[0.5, 0.5], [2.0, 1.0], [-0.5, 0.0], [1.25, 0.0], [9.0, 0.0]])
    expected = [2.0, 5.0, 0.0, 1.25, 0.0]
    for sample in (sample_by_bag, sample_by_grid):
        found = sample(value_NSAd, points.reshape(1, 5, 1, 1, 2).unbind(-1), torch.ones(1, 5, 1, 1), ((2, 3),))
        assert_close(found.flatten(), torch.tensor(expected))


def test_a_point_that_is_not_a_number_spoils_its_own_sum_and_nothing_else() -> None:
    value, point, weight = sampling_inputs()
    with torch.no_grad():
        expected = sample_by_bag(value, point.unbind(-1), weight, SHAPES)
        for bad in (float("nan"), float("inf")):
            spoilt = point.clone()
            spoilt[0, 2] = bad
            found = sample_by_bag(value, spoilt.unbind(-1), weight, SHAPES)
            assert found[0, 2].isnan().all() if bad != bad else found[0, 2].eq(0).all()  # far away: zero
            found[0, 2] = expected[0, 2]
            assert_close(found, expected)


def test_gradients_of_bag_grid_and_reference_agree() -> None:
    value, point, weight = sampling_inputs()
    share = torch.tensor([[w, h] for h, w in SHAPES], dtype=torch.float64)[:, None]
    by_level = (len(SHAPES), -1)

    def from_reference() -> Tensor:
        place_NSALK2 = (point.unflatten(3, by_level) + 0.5) / share
        return reference.multi_scale_deformable_attention(
            value, list(SHAPES), place_NSALK2, weight.unflatten(3, by_level)
        )

    functions = (
        lambda: sample_by_bag(value, point.unbind(-1), weight, SHAPES),
        lambda: sample_by_grid(value, point.unbind(-1), weight, SHAPES),
        from_reference,
    )
    outputs = [function() for function in functions]
    direction = torch.randn_like(outputs[0])
    grads = [torch.autograd.grad(output, (value, point, weight), direction) for output in outputs]
    for output, grad in zip(outputs, grads, strict=True):
        assert_close(output, outputs[2], atol=1e-10, rtol=1e-10)
        assert_close(grad, grads[2], atol=1e-10, rtol=1e-10)
    assert all(float(g.abs().max()) > 0.1 for g in grads[2])


def test_sine_position_of_a_padded_picture() -> None:
    valid_BYX = torch.zeros(2, 6, 9, dtype=torch.bool)
    valid_BYX[0, :4, :7] = True
    valid_BYX[1] = True
    theirs = reference.Mask2FormerSinePositionEmbedding(num_position_features=DIM // 2, normalize=True)
    expected = theirs(torch.Size((2, DIM, 6, 9)), "cpu", torch.float32, valid_BYX)  # its mask is True on the picture
    found = sine_position_2d(valid_BYX, DIM)
    assert_close(found, expected, atol=1e-6, rtol=0)
    cropped = sine_position_2d(torch.ones(1, 4, 7, dtype=torch.bool), DIM)
    assert_close(found[:1, :, :4, :7], cropped, atol=1e-6, rtol=0)
    assert (found[0, :, :4, :7] - found[1, :, :4, :7]).abs().max() > 0.1  # the polarity: the whole canvas differs


def test_sine_position_1d_by_hand() -> None:
    found = sine_position_1d(3, 4, torch.device("cpu"))
    at = torch.arange(3.0)
    assert_close(found, torch.stack([at.sin(), at.cos(), (at / 100).sin(), (at / 100).cos()], 1))


def copy_attention(theirs: nn.MultiheadAttention, ours: Attention) -> None:
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for proj, weight, bias in zip((ours.query_proj, ours.key_proj, ours.value_proj), weights, biases, strict=True):
        proj.load_state_dict({"weight": weight, "bias": bias})
    copy(theirs.out_proj, ours.out_proj)


@pytest.mark.parametrize("mask", ["none", "per query", "per key"])
def test_attention(mask: str) -> None:
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    randomised(theirs)
    ours = Attention(dim=DIM, num_heads=HEADS).eval()
    copy_attention(theirs, ours)
    query, key, value = torch.randn(2, 5, DIM), torch.randn(2, 11, DIM), torch.randn(2, 11, DIM)
    blocked_NQP = {"none": None, "per query": torch.rand(2, 5, 11) < 0.5, "per key": torch.rand(2, 1, 11) < 0.5}[mask]
    theirs_mask = None
    if blocked_NQP is not None:
        blocked_NQP[..., 0] = False
        theirs_mask = blocked_NQP.expand(2, 5, 11).repeat_interleave(HEADS, 0)
    expected, _ = theirs(query, key, value, attn_mask=theirs_mask)
    assert_close(ours(query, key, value, blocked_NQP), expected, atol=1e-5, rtol=1e-5)


def test_block_deaf_to_words_is_a_mask2former_layer() -> None:
    torch.manual_seed(4)
    config = Mask2FormerConfig(hidden_dim=DIM, num_attention_heads=HEADS, dim_feedforward=FFN, dropout=0.0)
    theirs = randomised(reference.Mask2FormerMaskedAttentionDecoderLayer(config))
    ours = VLBlock(
        to_pixels=Attention(dim=DIM, num_heads=HEADS),
        to_words=Attention(dim=DIM, num_heads=HEADS),
        to_queries=Attention(dim=DIM, num_heads=HEADS),
        feed_forward=FeedForward(dim=DIM, hidden_dim=FFN),
        dim=DIM,
    ).eval()
    copy_attention(theirs.cross_attn, ours.to_pixels)
    for letter, proj in (("q", "query_proj"), ("k", "key_proj"), ("v", "value_proj")):
        copy(getattr(theirs.self_attn, f"{letter}_proj"), getattr(ours.to_queries, proj))
    copy(theirs.self_attn.out_proj, ours.to_queries.out_proj)
    copy(theirs.cross_attn_layer_norm, ours.cross_norm)
    copy(theirs.self_attn_layer_norm, ours.self_norm)
    copy(theirs.fc1, ours.feed_forward.expand)
    copy(theirs.fc2, ours.feed_forward.contract)
    copy(theirs.final_layer_norm, ours.feed_forward.norm)
    query, place = torch.randn(2, 5, DIM), torch.randn(5, DIM)
    cells, position = torch.randn(2, 24, DIM), torch.randn(2, 24, DIM)
    words = Words(torch.randn(2, 6, DIM), torch.randn(2, 6, DIM), torch.zeros(2, 6, dtype=torch.bool))
    blocked_NQP = torch.rand(2, 5, 24) < 0.6
    blocked_NQP[..., 3] = False
    expected = theirs(
        query.transpose(0, 1),
        level_index=0,
        position_embeddings=[position.transpose(0, 1)],
        query_position_embeddings=place[:, None].expand(5, 2, DIM),
        encoder_hidden_states=[cells.transpose(0, 1)],
        encoder_attention_mask=blocked_NQP.repeat_interleave(HEADS, 0),
    )[0].transpose(0, 1)
    heard = ours(query, place, cells + position, cells, words, blocked_NQP)
    nn.init.zeros_(ours.to_words.out_proj.weight)
    nn.init.zeros_(ours.to_words.out_proj.bias)
    assert_close(ours(query, place, cells + position, cells, words, blocked_NQP), expected, atol=1e-5, rtol=1e-5)
    assert (heard - expected).abs().max() > 1e-2


def test_masked_group_norm_is_group_norm_of_the_valid_part() -> None:
    torch.manual_seed(5)
    ours, theirs = MaskedGroupNorm(4, 12), nn.GroupNorm(4, 12)
    randomised(theirs)
    copy(theirs, ours)
    x = torch.randn(2, 12, 6, 9) * 3 + 1
    valid = torch.ones(2, 6, 9, dtype=torch.bool)
    assert_close(ours(x, valid), theirs(x), atol=1e-5, rtol=1e-5)
    valid[0, 4:], valid[0, :, 7:] = False, False
    found = ours(x, valid)
    assert_close(found[:1, :, :4, :7], theirs(x[:1, :, :4, :7]), atol=1e-5, rtol=1e-5)
    assert_close(found[1:], theirs(x[1:]), atol=1e-5, rtol=1e-5)
    assert not found[0, :, 4:].any()
    assert not found[0, :, :, 7:].any()
