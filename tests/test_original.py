"""Checkpoints of the original VLFormer's code, against modules of torch and transformers under the original's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from vlformer_cli.config import Config, ModelConfig, TextConfig, load_config
from vlformer_cli.data.tokenize import tokenize
from vlformer_cli.engine.checkpoint import load_weights
from vlformer_cli.engine.initialise import initial_model
from vlformer_cli.engine.mask2former_names import source_names
from vlformer_cli.model.attention import FeedForward
from vlformer_cli.model.build import build_model
from vlformer_cli.model.position import normalized_word_position
from vlformer_cli.model.text_encoder import Words
from vlformer_cli.types import VLFormerError

DIM, WIDTH, LAYERS, BLOCKS, QUERIES = 64, 64, 2, 3, 5
CLIP = {
    "embed_dim": WIDTH,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
}
CLIP["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 1, "layers": LAYERS}
EXPRESSIONS = ["red cup left of the bottle", "the dog"]


@pytest.fixture(autouse=True)
def _small_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's text tower as small as the tests make it."""
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: CLIP if name.startswith("ViT-B-16") else None)


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(DIM, 8)


class WordAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.multihead_attn_text = nn.MultiheadAttention(DIM, 8)


class OriginalParts(nn.Module):
    """The parts of the original that Mask2Former does not have, under the names that its code gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=1,
                vocab_size=49408, max_position_embeddings=77, hidden_act="quick_gelu", eos_token_id=49407,
            )
        )  # fmt: skip
        self.resizer = nn.Module()
        self.resizer.layers = nn.ModuleList([nn.Linear(WIDTH, DIM)])
        self.fusions = nn.ModuleList([Fusion() for _ in range(3)])
        self.word_attentions = nn.ModuleList([WordAttention() for _ in range(BLOCKS)])

    def named(self) -> dict[str, Tensor]:
        """The state dict with the original's names."""
        state = {}
        for name, tensor in self.state_dict().items():
            if name.startswith("fusions."):
                _, number, rest = name.split(".", 2)
                name = f"sem_seg_head.pixel_decoder.fusion_{int(number) + 1}.{rest}"
            name = name.replace("word_attentions.", "sem_seg_head.predictor.transformer_cross_attention_layers.")
            if name.startswith("text_encoder.") and ".text_model." not in name:  # transformers 5 leaves it out
                name = name.replace("text_encoder.", "text_encoder.text_model.", 1)
            state[name] = tensor
        return state


OURS = ModelConfig(
    name="as-small",
    text=TextConfig(name="ViT-B-16-quickgelu"),
    dim=DIM,
    queries=QUERIES,
    blocks=BLOCKS,
    ffn_dim=48,
    encoder_layers=1,
    encoder_ffn_dim=40,
    position_in_features=False,
    ffn_residual=False,
    word_position="normalized",
)


def original_checkpoint(parts: OriginalParts) -> dict[str, Tensor]:
    """A whole checkpoint: the parts above, and for the rest our own random weights under detectron2's names."""
    torch.manual_seed(1)
    model = build_model(OURS, pretrained=False)
    state = {}
    thirds: dict[str, list[Tensor]] = {}
    for name, tensor in model.state_dict().items():
        tensor = torch.randn_like(tensor) * 0.05 if tensor.is_floating_point() else tensor
        sources = source_names(name, "detectron2")
        if sources and ".in_proj_" in sources[0]:
            thirds.setdefault(sources[0], []).append(tensor)
        elif sources:
            state[sources[0]] = tensor.flip(0) if name == "pixel_decoder.level_embed" else tensor
    state |= {name: torch.cat(parts) for name, parts in thirds.items()}
    return state | parts.named() | {"criterion.empty_weight": torch.ones(2)}


@pytest.fixture(scope="module")
def parts() -> OriginalParts:
    torch.manual_seed(0)
    made = OriginalParts()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture(scope="module")
def checkpoint(parts: OriginalParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "model_final.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_model_config", lambda name: CLIP)
        torch.save({"model": original_checkpoint(parts), "iteration": 99_999}, path)
    return path


def positions_by_hand(length: int, count: int) -> Tensor:
    """Float64: word i of `count` at i / (count + 1e-6) * 2 pi, sine and cosine in turn."""
    place = torch.arange(1, length + 1, dtype=torch.float64) / (count + 1e-6) * 2 * torch.pi
    wave = 10_000 ** (torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    return torch.stack([(place[:, None] / wave).sin(), (place[:, None] / wave).cos()], -1).flatten(1)


def test_word_positions_are_the_originals() -> None:
    pad_NT = torch.arange(9) >= torch.tensor([[9], [4]])
    found = normalized_word_position(pad_NT, DIM)
    for row, count in enumerate((9, 4)):
        assert_close(found[row, :count].double(), positions_by_hand(count, count), atol=1e-5, rtol=0)


def test_words_are_those_of_transformers_clip(parts: OriginalParts, checkpoint: Path) -> None:
    """Text tower, projection and positions: what the blocks and the early fusion attend to."""
    loaded = load_weights(checkpoint)
    tokens, _ = tokenize(EXPRESSIONS, 77)
    tokens = tokens[:, : int((tokens != 0).sum(1).max())]
    words = loaded.model.text_encoder(tokens)
    for row in range(len(EXPRESSIONS)):
        count = int((tokens[row] != 0).sum())
        hidden = parts.text_encoder(tokens[row : row + 1, :count]).last_hidden_state
        feat = parts.resizer.layers[0](hidden)[0]
        assert_close(words.feat[row, :count], feat, atol=1e-5, rtol=1e-5)
        key = feat + positions_by_hand(count, count).float()
        assert_close(words.key[row, :count], key, atol=1e-5, rtol=1e-5)


def test_early_fusions_meet_their_own_levels(parts: OriginalParts, checkpoint: Path) -> None:
    """The original's first fusion works at stride 32, our first at stride 8."""
    fusion = load_weights(checkpoint).model.pixel_decoder.fusion
    torch.manual_seed(2)
    feat, key = torch.randn(1, 6, DIM), torch.randn(1, 6, DIM)
    words = Words(feat, key, torch.zeros(1, 6, dtype=torch.bool))
    levels = [torch.randn(1, cells, DIM) for cells in (12, 6, 2)]
    found = fusion(levels, fusion.queries(levels), words, torch.tensor([0])).split([12, 6, 2], 1)
    for level, (x, ours) in enumerate(zip(levels, found, strict=True)):
        attention = parts.fusions[2 - level].multihead_attn
        theirs = attention(x.transpose(0, 1), key.transpose(0, 1), feat.transpose(0, 1))[0].transpose(0, 1)
        assert_close(ours, x * theirs, atol=1e-5, rtol=1e-5)


def test_blocks_read_words_with_the_originals_attention(parts: OriginalParts, checkpoint: Path) -> None:
    model = load_weights(checkpoint).model
    torch.manual_seed(3)
    query, feat, key = torch.randn(1, QUERIES, DIM), torch.randn(1, 6, DIM), torch.randn(1, 6, DIM)
    for block, layer in zip(model.decoder.blocks, parts.word_attentions, strict=True):
        theirs = layer.multihead_attn_text(*(x.transpose(0, 1) for x in (query, key, feat)))[0].transpose(0, 1)
        assert_close(block.to_words(query, key, feat, None), theirs, atol=1e-5, rtol=1e-5)  # type: ignore[operator]


def test_the_missing_residual() -> None:
    torch.manual_seed(4)
    with_it = FeedForward(dim=8, hidden_dim=16)
    without = FeedForward(dim=8, hidden_dim=16, residual=False)
    without.load_state_dict(with_it.state_dict())
    x = torch.randn(2, 8)
    hidden = with_it.contract(with_it.expand(x).relu())
    assert_close(without(x), with_it.norm(hidden))
    assert_close(with_it(x), with_it.norm(x + hidden))


def test_the_config_is_read_off_the_tensors(checkpoint: Path) -> None:
    config = load_weights(checkpoint).config
    assert config.name == "vlformer-original-r50"
    assert (config.queries, config.blocks, config.dim, config.ffn_dim) == (QUERIES, BLOCKS, DIM, 48)
    assert (config.word_position, config.position_in_features, config.ffn_residual) == ("normalized", False, False)


def test_training_can_start_from_it(checkpoint: Path) -> None:
    model, table = initial_model(Config(model=OURS, init=str(checkpoint)))
    assert {row.part for row in table.rows if row.weights == "new"} == set()
    assert table.leak == "leaky"
    unused = [row for row in table.rows if row.weights == "not used"]
    assert [row.part for row in unused] == ["criterion.empty_weight"]
    assert_close(model.text_encoder.proj.weight, torch.load(checkpoint)["model"]["resizer.layers.0.weight"])


def test_its_text_tower_is_not_downloaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    def download(*args: object, **kwargs: object) -> None:
        raise AssertionError("the checkpoint holds the text tower")

    monkeypatch.setattr(open_clip, "create_model", download)
    wants_openai = replace(OURS, text=TextConfig(name="ViT-B-16-quickgelu", weights="openai"))
    model, _ = initial_model(Config(model=wants_openai, init=str(checkpoint)))
    name = "text_encoder.text_model.final_layer_norm.weight"
    assert_close(model.text_encoder.tower.ln_final.weight, torch.load(checkpoint)["model"][name])  # type: ignore[union-attr]


def test_the_table_names_what_the_residual_means(checkpoint: Path) -> None:
    from dataclasses import replace

    _, table = initial_model(Config(model=replace(OURS, ffn_residual=True), init=str(checkpoint)))
    assert any("without residual" in row.note for row in table.rows)


def test_a_tower_with_another_activation_is_not_filled(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    gelu: dict[str, Any] = {**CLIP, "quick_gelu": False}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: gelu)
    _, table = initial_model(Config(model=replace(OURS, text=TextConfig(name="ViT-B-16")), init=str(checkpoint)))
    notes = [row.note for row in table.rows if row.part == "text_encoder.tower"]
    assert any("QuickGELU" in note for note in notes)


def test_other_files_are_refused_with_the_way_to_use_them(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(VLFormerError, match="--init"):
        load_weights(path)


@pytest.mark.parametrize("name", ["vlformer-r50", "vlformer-r101", "refcoco-r50", "refcoco-r50-leaky"])
def test_the_originals_sizes_have_its_word_positions(name: str) -> None:
    assert load_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml").model.word_position == "normalized"
