"""What `init` may name: Mask2Former checkpoints against transformers' own at random weights, timm's, open_clip's, ours.

The small models of both sides are alike, so that all of Mask2Former is mapped; ours is then made deaf to the words.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file
from small_model import SMALL
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

from vlformer_cli.config import BackboneConfig, Config, ModelConfig, TextConfig
from vlformer_cli.data.tokenize import tokenize
from vlformer_cli.engine.checkpoint import EMBEDDED, load_weights, save_weights
from vlformer_cli.engine.foreign_weights import read_tensors
from vlformer_cli.engine.initialise import initial_model
from vlformer_cli.engine.mask2former import BOOKKEEPING, PIXEL_MEAN, PIXEL_STD, fit, plain_names
from vlformer_cli.engine.mask2former_names import source_names
from vlformer_cli.engine.weights_table import Initialisation
from vlformer_cli.model.build import build_model
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import VLFormerError

DEPTHS = (2, 1, 2, 2)
SIZES: dict[str, dict[str, Any]] = {
    "resnet26": {"layers": DEPTHS, "channels": (8, 16, 24, 32)},
    "swin_tiny_patch4_window7_224": {"depths": DEPTHS, "embed_dim": 16, "num_heads": (2, 2, 4, 4), "window_size": 2},
}
"""timm's models as small as the tests make them."""
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "resnet26": ResNetConfig(hidden_sizes=[32, 64, 96, 128], depths=list(DEPTHS), out_features=STAGES),
    "swin_tiny_patch4_window7_224": SwinConfig(
        embed_dim=16, depths=list(DEPTHS), num_heads=[2, 2, 4, 4], window_size=2, out_features=STAGES
    ),
}
OURS = ModelConfig(
    name="as-small-as-theirs",
    backbone=BackboneConfig(name="resnet26"),
    text=SMALL.text,
    dim=64,
    queries=7,
    blocks=4,
    ffn_dim=48,
    encoder_layers=2,
    encoder_ffn_dim=40,
    position_in_features=False,
)
CANVAS = (128, 192)  # of whole windows at every stride, and more than one: timm rolls before it pads, Mask2Former after
TOKENS = torch.tensor([[49406, 320, 49407], [49406, 1125, 49407]])


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was downloaded of timm's: tests get small models, all of whose downloaded weights are 0.5."""
    names: list[str] = []
    create = timm.create_model

    def create_small(name: str, *, pretrained: bool, **settings: Any) -> nn.Module:
        net: nn.Module = create(name, pretrained=False, **settings, **SIZES.get(name, {}))
        if pretrained:
            names.append(name)
            for parameter in net.parameters():
                nn.init.constant_(parameter, 0.5)
        return net

    monkeypatch.setattr(timm, "create_model", create_small)
    return names


def random_mask2former(backbone: str) -> Any:
    """Its every parameter and statistic drawn anew, so that nothing that starts as zero or one hides a mistake."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone], feature_size=64, mask_feature_size=64, hidden_dim=64, num_queries=7,
        encoder_feedforward_dim=40, dim_feedforward=48, encoder_layers=2, decoder_layers=5, num_labels=1,
    )  # fmt: skip
    theirs = Mask2FormerForUniversalSegmentation(config)
    for name, tensor in theirs.state_dict().items():
        if tensor.dim() > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif name.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and "empty_weight" not in name:
            tensor.normal_(std=0.3)
    return theirs.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By backbone, a folder that transformers wrote."""
    folders = {}
    for backbone in BACKBONES:
        folders[backbone] = tmp_path_factory.mktemp(backbone)
        random_mask2former(backbone).save_pretrained(folders[backbone])
    return folders


@pytest.fixture(scope="module")
def folder(saved: dict[str, Path]) -> Path:
    """That with a ResNet."""
    return saved["resnet26"]


def initialised(path: Path | str, model: ModelConfig = OURS, *excepted: str) -> tuple[VLFormer, Initialisation]:
    model_and_table = initial_model(Config(model=model, init=str(path), init_except=excepted))
    model_and_table[0].eval()
    return model_and_table


def rows(table: Initialisation, weights: str) -> dict[str, str]:
    """Part -> note."""
    return {part: note for part, fate, _, _, note in table.table() if fate == weights}


def deafen(model: VLFormer) -> None:
    """The words say nothing: the early fusion multiplies with one, the blocks add zero."""
    for attention in model.pixel_decoder.fusion.attentions:
        nn.init.zeros_(attention.out_proj.weight)  # type: ignore[union-attr, arg-type]
        nn.init.ones_(attention.out_proj.bias)  # type: ignore[union-attr, arg-type]
    for block in model.decoder.blocks:
        for parameter in block.to_words.out_proj.parameters():  # type: ignore[union-attr]
            nn.init.zeros_(parameter)


def let_the_first_layer_see_all(theirs: Any) -> None:
    """As our first block does, which no mask comes before."""
    predictor = theirs.model.transformer_module.decoder.mask_predictor
    predict, calls = predictor.forward, []

    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        calls.append(inputs)
        masks, blocked = predict(*inputs)
        return masks, blocked if len(calls) > 1 else torch.zeros_like(blocked)

    predictor.forward = forward


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_mapped_model_that_is_deaf_to_the_words_computes_what_mask2former_does(
    saved: dict[str, Path], backbone: str
) -> None:
    model, _ = initialised(saved[backbone], replace(OURS, backbone=BackboneConfig(name=backbone)))
    theirs = random_mask2former(backbone).double()
    model.double()
    deafen(model)
    let_the_first_layer_see_all(theirs)
    images, valid = torch.randint(0, 256, (2, 3, *CANVAS)).double(), torch.ones(2, *CANVAS, dtype=torch.bool)
    mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
    with torch.no_grad():
        maps = model.backbone(images, valid)
        if "swin" in backbone:  # Mask2Former norms what a Swin's stages give, which is not mapped
            norms = theirs.model.pixel_level_module.encoder.hidden_states_norms
            maps = tuple(norms[s](m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for s, m in zip(STAGES, maps, strict=True))
        found = model.ask(model.pixel_decoder.look(maps, valid), TOKENS, torch.arange(2))
        expected = theirs((images - mean) / std)
    for own, their in zip(
        maps, theirs.model.pixel_level_module.encoder((images - mean) / std).feature_maps, strict=True
    ):
        assert_close(own, their, atol=1e-5, rtol=1e-5)
    assert_close(found.mask_logits, expected.masks_queries_logits, atol=1e-4, rtol=1e-4)
    assert_close(found.class_logits, expected.class_queries_logits, atol=1e-4, rtol=1e-4)
    assert found.mask_logits.std() > 0.1


RENAMED = (  # from transformers' names to detectron2's, in this order
    (r"^model\.", ""),
    (r"^pixel_level_module\.encoder\.(encoder\.layers|embeddings)\.", r"backbone.\1."),
    (r"^pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)", lambda m: f"backbone.norm{int(m[1]) - 1}"),
    (r"^pixel_level_module\.encoder\.embedder\.embedder\.", "backbone.stem.conv1."),
    (r"^pixel_level_module\.encoder\.encoder\.stages\.(\d)\.layers\.", lambda m: f"backbone.res{int(m[1]) + 2}."),
    (r"^(backbone.*)\.layer\.(\d)\.", lambda m: f"{m[1]}.conv{int(m[2]) + 1}."),
    (r"^(backbone.*)\.convolution\.", r"\1."),
    (r"^(backbone.*)\.normalization\.", r"\1.norm."),
    (r"^backbone\.embeddings\.(patch_embeddings\.projection|norm)\.", r"backbone.patch_embed.\1."),
    (r"\.patch_embeddings\.projection\.", ".proj."),
    (r"^backbone\.encoder\.", "backbone."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(backbone.*)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^pixel_level_module\.decoder\.", "sem_seg_head.pixel_decoder."),
    (r"pixel_decoder\.(encoder|level_embed)", r"pixel_decoder.transformer.\1"),
    (r"(transformer\.encoder.*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(transformer\.encoder.*)\.final_layer_norm\.", r"\1.norm2."),
    (r"\.fc1\.", ".linear1."),
    (r"\.fc2\.", ".linear2."),
    (r"\.mlp\.linear", ".mlp.fc"),
    (r"\.input_projections\.", ".input_proj."),
    (r"\.(adapter|layer)_1\.0\.", r".\1_1."),
    (r"\.(adapter|layer)_1\.1\.", r".\1_1.norm."),
    (r"\.mask_projection\.", ".mask_features."),
    (r"^transformer_module\.decoder\.layers\.(\d)\.cross_attn_layer_norm", r"@_cross_attention_layers.\1.norm"),
    (r"^transformer_module\.decoder\.layers\.(\d)\.cross_attn", r"@_cross_attention_layers.\1.multihead_attn"),
    (r"^transformer_module\.decoder\.layers\.(\d)\.self_attn_layer_norm", r"@_self_attention_layers.\1.norm"),
    (r"^transformer_module\.decoder\.layers\.(\d)\.self_attn", r"@_self_attention_layers.\1.self_attn"),
    (r"^transformer_module\.decoder\.layers\.(\d)\.final_layer_norm", r"@_ffn_layers.\1.norm"),
    (r"^transformer_module\.decoder\.layers\.(\d)\.linear", r"@_ffn_layers.\1.linear"),
    (r"^@", "sem_seg_head.predictor.transformer"),
    (r"^transformer_module\.decoder\.layernorm", "sem_seg_head.predictor.decoder_norm"),
    (r".*\.mask_embedder\.(\d)\.0\.", r"sem_seg_head.predictor.mask_embed.layers.\1."),
    (r"^transformer_module\.queries_embedder", "sem_seg_head.predictor.query_embed"),
    (r"^transformer_module\.queries_features", "sem_seg_head.predictor.query_feat"),
    (r"^transformer_module\.level_embed", "sem_seg_head.predictor.level_embed"),
    (r"^class_predictor\.", "sem_seg_head.predictor.class_embed."),
)
JOINED = (
    (".q_proj.", (".q_proj.", ".k_proj.", ".v_proj."), ".in_proj_"),
    (".attn.query.", (".attn.query.", ".attn.key.", ".attn.value."), ".attn.qkv."),
)
"""The first of three tensors, all of them, and the one that detectron2 has for them."""


def as_detectron2(folder: Path) -> dict[str, Tensor]:
    """What transformers wrote, as the original code would have."""
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)  # type: ignore[call-overload]
        if "num_batches_tracked" not in name and ".swin." not in name:
            renamed[name] = tensor
    for first, parts, joined in JOINED:
        for name in [name for name in renamed if first in name]:
            tensors = [renamed.pop(name.replace(first, part)) for part in parts]
            renamed[name.replace(first, joined)] = torch.cat(tensors)
    return renamed


def write_pickle(path: Path, tensors: dict[str, Tensor], protocol: int = 4) -> Path:
    """As detectron2's model zoo has them."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Bowen Cheng"}, protocol))
    return path


def write_torch(path: Path, tensors: dict[str, Tensor]) -> Path:
    """As detectron2's trainer writes them, and many others with `module.` of DistributedDataParallel."""
    torch.save({"model": {f"module.{n}": t for n, t in tensors.items()}, "iteration": 7, "optimizer": {}}, path)
    return path


def write_bin(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, path)
    return path


def assert_same_weights(found: VLFormer, expected: VLFormer) -> None:
    """In all that Mask2Former has."""
    others = ("text_encoder", "pixel_decoder.fusion")
    state = found.state_dict()
    compared = [name for name in state if not name.startswith(others) and ".to_words." not in name]
    for name in compared:
        if not name.endswith(BOOKKEEPING):
            assert torch.equal(state[name], expected.state_dict()[name]), name
    assert len(compared) > 200


@pytest.mark.parametrize("backbone", BACKBONES)
def test_detectron2s_files_give_the_very_same_weights_as_transformers(
    saved: dict[str, Path], backbone: str, tmp_path: Path
) -> None:
    config = replace(OURS, backbone=BackboneConfig(name=backbone))
    expected, _ = initialised(saved[backbone], config)
    tensors = as_detectron2(saved[backbone])
    files = (write_pickle(tmp_path / "model_final.pkl", tensors), write_torch(tmp_path / "model_0000007.pth", tensors))
    for path in files:
        model, table = initialised(path, config)
        assert table.kind == "Mask2Former of detectron2"
        assert_same_weights(model, expected)
        assert rows(table, "taken").keys() >= {"backbone.net", "decoder.query_feat", "decoder.blocks.*.to_queries"}


def test_the_file_itself_and_torchs_format_are_read_as_the_folder(folder: Path, tmp_path: Path) -> None:
    expected, _ = initialised(folder)
    assert_same_weights(initialised(folder / "model.safetensors")[0], expected)
    write_bin(tmp_path / "pytorch_model.bin", load_file(folder / "model.safetensors"))
    model, table = initialised(tmp_path)
    assert_same_weights(model, expected)
    assert [Path(path).name for path in table.to_json()["files"]] == ["pytorch_model.bin"]


def test_every_weight_of_the_published_backbones_has_a_name_in_both_layouts() -> None:
    with torch.device("meta"):
        for name in ("resnet50", "resnet101", "swin_base_patch4_window12_384"):
            net = timm.create_model(name, pretrained=False, features_only=True)
            names = [n for n in net.state_dict() if not n.endswith(BOOKKEEPING)]
            for layout in ("detectron2", "transformers"):
                theirs = [source for n in names for source in source_names(f"backbone.net.{n}", layout)]
                assert len(set(theirs)) == len(theirs) >= len(names) > 200


def test_the_table_accounts_for_every_parameter_of_both_sides(folder: Path) -> None:
    model, table = initialised(folder, replace(OURS, queries=5, blocks=3, encoder_layers=1))
    numbers = {
        fate: sum(r.parameters for r in table.rows if r.weights == fate) for fate in ("taken", "new", "not used")
    }
    ours = {n: t.numel() for n, t in model.state_dict().items() if not n.endswith(BOOKKEEPING)}
    theirs = {n: t.numel() for n, t in load_file(folder / "model.safetensors").items() if not n.endswith(BOOKKEEPING)}
    assert numbers["taken"] + numbers["new"] == sum(ours.values())
    assert numbers["taken"] + numbers["not used"] == sum(theirs.values())
    assert sum(int(cells[3].replace(",", "")) for cells in table.table()) == sum(numbers.values())
    assert f"{numbers['taken'] / 1e6:.1f} M of {sum(ours.values()) / 1e6:.1f} M" in table.summary


def test_what_does_not_fit_is_named_with_the_reason(folder: Path) -> None:
    fewer = replace(OURS, queries=5, blocks=3, encoder_layers=1)
    _, table = initialised(folder, fewer)
    assert rows(table, "not used")["transformer_module.decoder.layers.*"] == "ours has fewer layers"
    assert rows(table, "not used")["pixel_level_module.decoder.encoder.layers"] == "ours has fewer layers"
    _, table = initialised(folder, replace(fewer, heads=4))
    new, unused = rows(table, "new"), rows(table, "not used")
    assert new["decoder.query_feat"] == "(7, 64) there, (5, 64) here"
    assert unused["transformer_module.queries_features"] == new["decoder.query_feat"]
    assert new["decoder.blocks.*.to_pixels"] == "8 attention heads there, 4 here"
    assert new["decoder.blocks.*.to_words"] == "Mask2Former has no such layer"
    assert unused["criterion.empty_weight"] == "ours has no such layer"
    assert "pixel_decoder.inputs.*.conv" in rows(table, "taken")


def test_heads_are_those_of_the_config_beside_the_weights(folder: Path, tmp_path: Path) -> None:
    write_bin(tmp_path / "pytorch_model.bin", load_file(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 16}))
    assert rows(initialised(tmp_path)[1], "new")["decoder.blocks.*.to_queries"] == "16 attention heads there, 8 here"


def test_norms_after_a_swins_stages_are_said_not_to_be_used(saved: dict[str, Path], tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "swin.pkl", as_detectron2(saved["swin_tiny_patch4_window7_224"]))
    _, table = initialised(path, replace(OURS, backbone=BackboneConfig(name="swin_tiny_patch4_window7_224")))
    assert rows(table, "not used")["backbone"] == (
        "ours has no norms after the backbone's stages: the features differ by them"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("backbone.res5.0.shortcut.weight"), "the file has no backbone.res5.0.shortcut.weight"),
        (lambda t: t.update({"backbone.res4.5.conv1.weight": torch.ones(1)}), "conv1.weight would be left over"),
    ],
)
def test_of_another_backbone_nothing_is_taken(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], reason: str, downloads: list[str]
) -> None:
    tensors = as_detectron2(folder)
    change(tensors)
    path = write_torch(tmp_path / "other.pth", tensors)
    _, table = initialised(path)
    assert reason in rows(table, "new")["backbone.net"]
    pretrained = replace(OURS, backbone=BackboneConfig(name="resnet26", weights="timm"))
    model, table = initialised(path, pretrained)
    assert downloads == ["resnet26"]
    assert rows(table, "taken")["backbone.net"] == "resnet26, weights 'timm'"
    assert reason in rows(table, "not used")["backbone"]
    assert float(model.backbone.net.state_dict()["conv1.weight"].mean()) == 0.5


def test_a_backbone_that_reads_other_pixels_is_another_backbone(folder: Path) -> None:
    config = replace(OURS, backbone=BackboneConfig(name="tf_efficientnet_lite0"))
    _, table = initialised(folder, config)
    assert "backbone.net" in rows(table, "new")
    model = build_model(OURS)
    model.backbone.pixel_mean.fill_(127.5)
    found = fit(plain_names(load_file(folder / "model.safetensors")), model, heads=8, their_heads=8)
    assert found.lacking["backbone.net.conv1.weight"].endswith("it reads pixels of another mean and standard deviation")


def test_pretrained_weights_that_the_checkpoint_replaces_are_not_downloaded(folder: Path, downloads: list[str]) -> None:
    config = replace(OURS, backbone=BackboneConfig(name="resnet26", weights="timm"))
    expected, _ = initialised(folder)
    assert_same_weights(initialised(folder, config)[0], expected)
    assert downloads == []
    model, table = initialised(folder, config, "backbone.net.layer4", "decoder.query_feat")
    assert downloads == ["resnet26"]
    assert rows(table, "new")["decoder.query_feat"] == "named in init_except"
    state, other = model.state_dict(), expected.state_dict()
    assert bool((state["backbone.net.layer4.0.conv1.weight"] == 0.5).all())
    assert not torch.equal(state["decoder.query_feat"], other["decoder.query_feat"])
    assert torch.equal(state["backbone.net.layer3.0.conv1.weight"], other["backbone.net.layer3.0.conv1.weight"])
    assert torch.equal(state["decoder.query_position"], other["decoder.query_position"])


def test_init_except_without_init_or_with_an_unknown_name_is_refused(folder: Path) -> None:
    with pytest.raises(VLFormerError, match="no parameter's name begins with 'decodr'"):
        initialised(folder, OURS, "decodr")
    with pytest.raises(VLFormerError, match="init_except says what not to take from init, which is not given"):
        initial_model(Config(model=OURS, init_except=("decoder",)))


class Hostile:
    """A pickle of it runs a command when it is loaded carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "it-ran"
    content = {"model": {"sem_seg_head.predictor.query_feat.weight": Hostile(mark)}}
    for name in ("a.pkl", "a.pth", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(
            VLFormerError, match=f"{name} (would run posix.system when loaded|is damaged or no weights)"
        ):
            initialised(tmp_path / name)
    for name in ("b.pth", "b.pkl"):
        torch.save(content, tmp_path / name)
        with pytest.raises(VLFormerError, match=f"{name} would run posix.system when loaded.*do not use it"):
            initialised(tmp_path / name)
    assert not mark.exists()
    pickle.loads(pickle.dumps(content, protocol))
    assert mark.exists()  # the files are what they seem


def test_whatever_a_pickle_names_beside_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for what in (print, np.load, torch.ones(2), np.array([{}]), np.zeros(2, dtype=[("a", "f4")])):
        path.write_bytes(pickle.dumps({"model": {"a": what}}))
        with pytest.raises(VLFormerError, match=r"a\.pkl (would run|holds an array of)"):
            read_tensors(path)
    for content in ([torch.ones(2)], 5):
        torch.save(content, tmp_path / "b.pth")
        with pytest.raises(VLFormerError, match=r"b\.pth holds a (list|int) and no weights by name"):
            read_tensors(tmp_path / "b.pth")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_a_pickle_are_what_numpy_reads(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "plain": np.arange(6, dtype="<f4").reshape(2, 3),
        "half": np.arange(3, dtype="<f2"),
        "big-endian": np.arange(4, dtype=">f8"),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(12)[::2],
        "none": np.zeros((0, 3), dtype="i1"),
        "one": np.array(7, dtype="i8"),
        "bool": np.array([True, False]),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {**arrays, "scalar": np.float32(1.5)}}, protocol))
    found = read_tensors(tmp_path / "a.pkl")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_a_truncated_file_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    tensors = as_detectron2(folder)
    whole = (
        folder / "model.safetensors",
        write_pickle(tmp_path / "whole.pkl", tensors),
        write_torch(tmp_path / "whole.pth", tensors),
    )
    for path in whole:
        content, cut = path.read_bytes(), tmp_path / f"cut{path.suffix}"
        for length in (0, 10, len(content) // 2, len(content) - 1):
            cut.write_bytes(content[:length])
            with pytest.raises(VLFormerError, match=rf"{re.escape(str(cut))} (is damaged|.*fetch it again)"):
                initialised(cut)


def test_files_of_which_nothing_fits_are_refused(folder: Path, tmp_path: Path) -> None:
    one = {"sem_seg_head.predictor.query_feat.weight": torch.ones(100, 256)}
    with pytest.raises(
        VLFormerError,
        match=r"nothing in .*one.pth fits the model 'as-small-as-theirs': .*query_feat.weight: \(100, 256\)",
    ):
        initialised(write_torch(tmp_path / "one.pth", one))
    with pytest.raises(VLFormerError, match=r"classifier.pth holds no Mask2Former, .* its tensors are: fc.weight"):
        initialised(write_torch(tmp_path / "classifier.pth", {"fc.weight": torch.ones(2)}))
    with pytest.raises(VLFormerError, match=r"holds no model\*.safetensors or pytorch_model\*.bin"):
        initialised(tmp_path)
    with pytest.raises(VLFormerError, match=r"init 'nowhere.pth' is no file, nor embedded, timm:NAME"):
        initialised("nowhere.pth")


def test_older_checkpoints_call_the_query_features_static(folder: Path, tmp_path: Path) -> None:
    tensors = {name.replace("query_feat", "static_query"): tensor for name, tensor in as_detectron2(folder).items()}
    assert_same_weights(initialised(write_torch(tmp_path / "old.pth", tensors))[0], initialised(folder)[0])


@pytest.mark.parametrize(
    ("classes", "leak", "reason"),
    [
        (80, "leaky", "trained on COCO instances, RefCOCO's evaluation pictures among it"),
        (133, "leaky", "trained on COCO panoptic"),
        (40, "leaky", "YouTube-VIS, itself from COCO"),
        (150, "unknown", "its head tells 150 classes apart, of which data is not said"),
    ],
)
def test_a_checkpoint_leaks_by_the_classes_that_it_knows(
    folder: Path, tmp_path: Path, classes: int, leak: str, reason: str
) -> None:
    head = {"weight": torch.ones(classes + 1, 64), "bias": torch.ones(classes + 1)}
    tensors = as_detectron2(folder) | {f"sem_seg_head.predictor.class_embed.{n}": t for n, t in head.items()}
    _, table = initialised(write_torch(tmp_path / "model.pth", tensors))
    assert (table.leak, reason in table.leak_reason) == (leak, True)
    assert f"{leak}: " in table.summary
    assert f"({classes + 1}, 64) there, (2, 64) here" in rows(table, "new")["decoder.heads.classes"]


@pytest.mark.parametrize(
    ("initialisation", "data", "leak"),
    [
        ({"leak": "leaky"}, ["refcoco-unc"], "leaky"),
        ({"leak": "leaky"}, ["scenes-seed0"], "leaky"),
        ({"leak": "clean"}, ["refcoco-unc"], "unknown"),
        ({"leak": "clean"}, ["scenes-seed0", "refcoco-unc"], "unknown"),
        ({"leak": "clean"}, ["scenes-seed0", "scenes-directions-seed0"], "clean"),
        ({"leak": "clean"}, ["scenes-seed0", "scenes-photos-seed1"], "unknown"),
        ({"leak": "clean"}, [], "unknown"),
        (None, ["scenes-seed0"], "unknown"),
    ],
)
def test_a_vlformer_file_leaks_by_what_it_started_from_and_was_trained_on(
    tmp_path: Path, initialisation: dict[str, str] | None, data: list[str], leak: str
) -> None:
    path = tmp_path / "ours.safetensors"
    manifest = {"initialisation": initialisation, "data": [{"name": name} for name in data]}
    save_weights(path, build_model(SMALL), SMALL, manifest)
    _, table = initialised(path, SMALL)
    assert (table.kind, table.leak) == ("vlformer", leak)


def test_the_embedded_model_is_a_start_however_its_parts_are_to_be_trained() -> None:
    config = load_weights(EMBEDDED).config
    tuned = replace(
        config,
        name="mine",
        short_side=320,
        backbone=replace(config.backbone, weights="none", frozen=(), freeze_norm=False),
    )
    model, table = initialised("embedded", tuned)
    assert (table.leak, rows(table, "new"), rows(table, "not used")) == ("unknown", {}, {})  # photographs of COCO
    for name, tensor in load_weights(EMBEDDED).model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with pytest.raises(VLFormerError, match="init embedded is another model: queries was 5, is 6"):
        initialised("embedded", replace(config, queries=6))


def test_anchors_are_added_to_a_model_without_them_and_change_nothing(small_weights: Path) -> None:
    loaded = load_weights(small_weights)
    grown = replace(loaded.config, pointer=True, anchors=True)
    with pytest.raises(VLFormerError, match=r"is another model: .*pointer was False, is True"):
        initialised(small_weights, grown)
    torch.manual_seed(0)
    pointing = build_model(replace(loaded.config, pointer=True), pretrained=False)
    path = small_weights.parent / "pointing.safetensors"
    save_weights(path, pointing, replace(loaded.config, pointer=True), {})
    model, table = initialised(path, grown)
    new = rows(table, "new")
    assert {name.rpartition(".")[0] for name in new} == {"pixel_decoder.anchors", "pixel_decoder.nearness"}
    assert set(new.values()) == {"the file's model has no such part"}
    images, valid = torch.rand(1, 3, 64, 96) * 255, torch.ones(1, 64, 96, dtype=torch.bool)
    asked = (images, valid, tokenize(["red cup nearest the key"], 20)[0], torch.tensor([0]))
    with torch.no_grad():
        found, expected = model.eval()(*asked), load_weights(path).model.eval()(*asked)
    assert_close(found.mask_logits, expected.mask_logits)
    assert_close(found.class_logits, expected.class_logits)
    with pytest.raises(VLFormerError, match=r"is another model: .*queries was"):
        initialised(path, replace(grown, queries=loaded.config.queries + 1))


def test_timms_weights_fill_the_backbone(downloads: list[str]) -> None:
    model, table = initialised("timm:resnet26")
    assert downloads == ["resnet26"]
    assert all(bool((p == 0.5).all()) for p in model.backbone.net.parameters())
    assert (table.leak, list(rows(table, "taken"))) == ("clean", ["backbone.net"])
    assert rows(table, "new")["decoder.query_feat"] == "at random"
    config = replace(OURS, backbone=BackboneConfig(name="resnet26", weights="timm"))
    assert list(rows(initial_model(Config(model=config))[1], "taken")) == ["backbone.net"]


def test_timms_weights_of_other_pictures_than_imagenets_are_not_called_clean() -> None:
    for name, leak in (("resnet18.a1_in1k", "clean"), ("resnet18.fb_swsl_ig1b_ft_in1k", "unknown")):
        config = replace(OURS, backbone=BackboneConfig(name="resnet18"))
        assert initialised(f"timm:{name}", config)[1].leak == leak


def test_timms_weights_that_do_not_fit_or_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        VLFormerError, match=r"timm:resnet18 does not fit the backbone 'resnet26': .* set model.backbone"
    ):
        initialised("timm:resnet18")
    pixels = replace(OURS, backbone=BackboneConfig(name="tf_efficientnet_lite0"))
    with pytest.raises(VLFormerError, match=r"2 tensors differ, the first is pixel_mean"):
        initialised("timm:efficientnet_lite0", pixels)
    with pytest.raises(VLFormerError, match="timm gave no backbone 'resnet'"):
        initialised("timm:resnet")
    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **settings: Any) -> nn.Module:
        if pretrained:
            raise FileNotFoundError("cannot locate the file on the Hub")
        return create(name, pretrained=False, **settings)  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(VLFormerError, match=r"timm gave no backbone 'resnet26' \(cannot locate the file on the Hub\)"):
        initialised("timm:resnet26")


CLIP = "ViT-S-32-alt"  # open_clip's smallest text tower


def test_open_clips_weights_fill_the_text_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    create = open_clip.create_model

    def downloaded(name: str, pretrained: str, **settings: Any) -> nn.Module:
        assert (name, pretrained) == (CLIP, "some_tag")
        model: nn.Module = create(name, **settings)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.25)
        return model

    monkeypatch.setattr(open_clip, "create_model", downloaded)
    model, table = initialised(f"open_clip:{CLIP}/some_tag", replace(OURS, text=TextConfig(name=CLIP)))
    assert all(bool((p == 0.25).all()) for p in model.text_encoder.tower.parameters())
    assert (table.leak, list(rows(table, "taken"))) == ("clean", ["text_encoder.tower"])


def test_open_clips_weights_that_do_not_fit_or_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (replace(OURS, text=TextConfig(name=name)) for name in (CLIP, "ViT-B-16"))
    with pytest.raises(VLFormerError, match=r"open_clip:ViT-B-16 has no tag: say open_clip:MODEL/TAG"):
        initialised("open_clip:ViT-B-16", large)
    with pytest.raises(
        VLFormerError, match=r"does not fit the text tower 'ViT-S-32-alt': set model.text.name to 'ViT-B-16'"
    ):
        initialised("open_clip:ViT-B-16/laion2b_s34b_b88k", small)
    with pytest.raises(
        VLFormerError, match=r"QuickGELU.*say ViT-B-16-quickgelu for it, in model.text.name and in init"
    ):
        initialised("open_clip:ViT-B-16/openai", large)
    with pytest.raises(VLFormerError, match=r"ViT-B-16/openai was trained with QuickGELU"):  # by the config's own way
        build_model(replace(large, text=TextConfig(name="ViT-B-16", weights="openai")))
    with pytest.raises(VLFormerError, match="open_clip has no model 'ViT-Z'"):
        initialised("open_clip:ViT-Z/openai", small)

    def offline(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to download weights")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(VLFormerError, match=r"no weights 'tag' for open_clip's 'ViT-S-32-alt' \(Failed to download"):
        initialised(f"open_clip:{CLIP}/tag", small)


def test_calibrated_weights_are_a_start_as_others(small_weights: Path, tmp_path: Path) -> None:
    loaded = load_weights(small_weights)
    calibrated = replace(loaded.config, temperature=1.7, min_score=0.3)
    save_weights(tmp_path / "w.safetensors", loaded.model, calibrated, loaded.manifest)
    model, _ = initial_model(Config(model=loaded.config, init=str(tmp_path / "w.safetensors")))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, loaded.model.state_dict()[name], rtol=0, atol=0)
