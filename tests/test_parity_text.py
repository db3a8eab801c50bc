"""The text branch against open_clip's own tokenisation, text towers and pooled text features.

Letters: N expressions, T word tokens, C the tower's width.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn
from torch.testing import assert_close

from vlformer_cli.config import TextConfig
from vlformer_cli.data.tokenize import tokenize
from vlformer_cli.model.build import build_text_encoder
from vlformer_cli.model.text_encoder import TextEncoder, clip_hidden_states, word_padding
from vlformer_cli.types import VLFormerError

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49_408, "width": 64, "heads": 4, "layers": 3}
EXPRESSIONS = [
    "red cup left of the bottle",
    "red! cup",
    "!?",
    "!!! !! !",
    "",
    "   A Dog\twith \n  spaces  ",
    "der große rote Würfel über dem café",
    "犬の左にある赤いコップ 🐶🎉",
    "l&#39;homme &amp; le chien",
    "don't, it's 3.5cm half-hidden @ x=12",
    "word " * 300,
    "unbelievably-long-hyphenated" * 40,
]


def random_clip(kind: type[nn.Module], quick_gelu: bool) -> nn.Module:
    """Weights large enough that neither the activation nor the position of a word can be mistaken."""
    torch.manual_seed(0)
    model = kind(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=quick_gelu)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("visual"):
                parameter.normal_(std=0.2)
    return model.eval()


def open_clip_tokens() -> Tensor:
    tokens: Tensor = open_clip.tokenize(EXPRESSIONS)
    return tokens


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
@torch.no_grad()
def test_hidden_state_at_the_end_gives_open_clips_text_feature(kind: type[nn.Module], quick_gelu: bool) -> None:
    model = random_clip(kind, quick_gelu)
    tower: Any = model.text if kind is CustomTextCLIP else model
    full_NT = open_clip_tokens()
    expected = model.encode_text(full_NT, normalize=False)  # type: ignore[operator]
    end_N = full_NT.argmax(1)
    rows = torch.arange(len(full_NT))
    hidden_NTC = clip_hidden_states(tower, full_NT)
    assert_close(hidden_NTC[rows, end_N] @ tower.text_projection, expected, atol=1e-5, rtol=1e-5)
    for row, end in enumerate(end_N.tolist()):
        trimmed = clip_hidden_states(tower, full_NT[row : row + 1, : end + 1])
        assert_close(trimmed[0], hidden_NTC[row, : end + 1], atol=1e-5, rtol=1e-5)
        assert_close(trimmed[0, -1] @ tower.text_projection, expected[row], atol=1e-5, rtol=1e-5)


def test_the_two_activations_differ() -> None:
    """Or the test above could not tell them apart."""
    tokens = open_clip_tokens()[:2]
    features = [random_clip(CLIP, quick).encode_text(tokens) for quick in (False, True)]  # type: ignore[operator]
    assert (features[0] - features[1]).abs().max() > 1e-3


@pytest.fixture
def small_open_clip(tmp_path: Path) -> str:
    """The name of a model that open_clip now knows."""
    name = "vlformer-test-quickgelu"
    settings = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(settings))
    open_clip.add_model_config(path)
    return name


def test_encoder_from_a_weights_file(small_open_clip: str, tmp_path: Path) -> None:
    """Names, activation and weights go through `build_text_encoder` unharmed."""
    model = random_clip(CustomTextCLIP, quick_gelu=True)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    config = TextConfig(name=small_open_clip, weights=str(tmp_path / "clip.pt"))
    encoder = build_text_encoder(config, dim=32, pretrained=True).eval()
    tokens, _ = tokenize(EXPRESSIONS[:4], 77)
    words = encoder(tokens)
    pooled = open_clip_tokens()[:4]
    model.text.text_projection = None  # type: ignore[union-attr,assignment]
    expected = model.encode_text(pooled)  # type: ignore[operator]
    rows = torch.arange(4)
    assert_close(words.feat[rows, tokens.argmax(1)], encoder.proj(expected), atol=1e-5, rtol=1e-5)
    unweighted = build_text_encoder(config, dim=32, pretrained=False)
    assert not torch.equal(unweighted.tower.ln_final.weight, encoder.tower.ln_final.weight)  # type: ignore[union-attr,arg-type]


def test_unknown_models_and_weights_are_named(small_open_clip: str) -> None:
    with pytest.raises(VLFormerError, match=re.escape("no model 'ViT-Q-16'")):
        build_text_encoder(TextConfig(name="ViT-Q-16"), dim=32, pretrained=False)
    with pytest.raises(VLFormerError, match=re.escape("no weights 'nowhere'")):
        build_text_encoder(TextConfig(name=small_open_clip, weights="nowhere"), dim=32, pretrained=True)
    with pytest.raises(VLFormerError, match="causal"):
        build_text_encoder(TextConfig(name="coca_ViT-B-32"), dim=32, pretrained=False)


@pytest.mark.parametrize("max_tokens", [77, 12])
def test_tokens_are_open_clips(max_tokens: int) -> None:
    found_NT, is_cut = tokenize(EXPRESSIONS, max_tokens)
    expected_NT = open_clip.tokenize(EXPRESSIONS, context_length=max_tokens)
    length = found_NT.shape[1]
    assert torch.equal(found_NT, expected_NT[:, :length])
    assert not expected_NT[:, length:].any()
    longest = open_clip.tokenize(EXPRESSIONS, context_length=2000).argmax(1) + 1
    assert is_cut == (longest > max_tokens).tolist()
    assert any(is_cut)
    assert not all(is_cut)


@pytest.mark.parametrize("text", ["red cup.", "red cup!", "red cup ?", "red cup , ", "red cup...;:"])
def test_punctuation_at_the_end_is_left_out(text: str) -> None:
    assert torch.equal(tokenize([text], 77)[0], tokenize(["red cup"], 77)[0])
    assert tokenize(["cup, red"], 77)[0].tolist() == open_clip.tokenize(["cup, red"], context_length=5).tolist()


def test_tokens_are_no_longer_than_the_longest_expression_needs() -> None:
    tokens, _ = tokenize(["red cup", "a"], 77)
    assert tokens.tolist() == [[49_406, 736, 1937, 49_407], [49_406, 320, 49_407, 0]]


@pytest.mark.parametrize("max_tokens", [77, 12])
def test_word_padding_begins_after_the_end_of_text(max_tokens: int) -> None:
    """Also where a word's id is 0, which is "!" inside a word and what the rows are padded with."""
    tokens, _ = tokenize(EXPRESSIONS, max_tokens)
    tokenizer = open_clip.SimpleTokenizer()
    for row, expression in zip(word_padding(tokens), EXPRESSIONS, strict=True):
        words = min(len(tokenizer.encode(expression)) + 2, max_tokens)
        assert row.tolist() == [False] * words + [True] * (len(row) - words)
    inside = torch.tensor([[49_406, 0, 0, 49_407, 0], [49_406, 736, 0, 0, 49_407]])
    assert word_padding(inside).tolist() == [[False, False, False, False, True], [False] * 5]


def small_encoder(*, frozen: bool) -> TextEncoder:
    torch.manual_seed(1)
    return build_text_encoder(
        TextConfig(name="small", frozen=frozen, width=32, layers=2, heads=2, embed_dim=8), dim=32, pretrained=False
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_tower_gets_no_gradient_and_stays_in_eval(frozen: bool) -> None:
    encoder = small_encoder(frozen=frozen)
    encoder.train()
    assert encoder.tower.training is not frozen
    words = encoder(tokenize(EXPRESSIONS[:3], 77)[0])
    (words.feat.square().sum() + words.key.square().sum()).backward()
    gradients = [parameter.grad is not None for parameter in encoder.tower.parameters()]
    assert any(gradients) is not frozen
    assert encoder.proj.weight.grad is not None
    assert encoder.proj.weight.grad.abs().max() > 0
    assert all(p.requires_grad is not frozen for p in encoder.tower.parameters())


def test_the_tower_runs_once_per_distinct_expression() -> None:
    encoder = small_encoder(frozen=True).eval().double()  # in float32, a CPU's rounding depends on the batch's size
    rows: list[int] = []
    encoder.tower.token_embedding.register_forward_hook(  # type: ignore[union-attr]
        lambda _module, inputs, _output: rows.append(len(inputs[0]))
    )
    tokens, _ = tokenize(["red cup", "the dog", "red cup", "a", "the dog", "red cup"], 77)
    merged = encoder(tokens)
    assert rows == [3]
    rows.clear()
    encoder.merge_repeats = False
    apart = encoder(tokens)
    assert rows == [6]
    assert_close(merged.feat, apart.feat, atol=1e-6, rtol=1e-6)
    single = [encoder(tokenize([e], 77)[0]).feat[0] for e in ("red cup", "the dog", "a")]
    for row, which in enumerate((0, 1, 0, 2, 1, 0)):
        assert_close(merged.feat[row, : len(single[which])], single[which], atol=1e-6, rtol=1e-6)


def test_keys_are_features_plus_positions_and_values_are_not() -> None:
    words = small_encoder(frozen=True).eval()(tokenize(["red cup", "the small dog"], 77)[0])
    position_TD = (words.key - words.feat).detach()
    at = torch.arange(position_TD.shape[1], dtype=torch.float32)
    for row in position_TD:
        assert_close(row[:, 0], at.sin(), atol=1e-5, rtol=0)
        assert_close(row[:, 1], at.cos(), atol=1e-5, rtol=0)
        assert_close(row[:, 2], (at / 10_000 ** (2 / 32)).sin(), atol=1e-5, rtol=0)
