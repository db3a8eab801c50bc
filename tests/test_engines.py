"""Exported files in their engines answer as torch does, whatever the size of the picture; what cannot run says why."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from skimage import data
from small_model import SMALL

from vlformer_cli.data.images import read_image
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.engine import engines, export, quantize
from vlformer_cli.engine.checkpoint import EMBEDDED, LoadedModel, load_weights
from vlformer_cli.engine.engines import open_engine
from vlformer_cli.engine.predict import AT_ONCE, Predictor
from vlformer_cli.metrics import overlap
from vlformer_cli.types import VLFormerError

EXAMPLES = Path(__file__).parents[1] / "examples"
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
NEEDS_OPENVINO = pytest.mark.skipif(not HAS_OPENVINO, reason="OpenVINO is not installed: pip install '.[openvino]'")
KINDS = ["onnx", "pt2", pytest.param("xml", marks=NEEDS_OPENVINO)]
SIZES = ((96, 128), (151, 201), (97, 61), (331, 97), (400, 600))
"""Heights and widths of pictures; the model reads most of them at sizes that are no multiples of 32."""

Onnx = tuple[Path, export.Written]


@pytest.fixture(scope="module")
def loaded(small_weights: Path) -> LoadedModel:
    return load_weights(small_weights)


@pytest.fixture(scope="module")
def torch_predictor(loaded: LoadedModel) -> Predictor:
    return Predictor(loaded.model, loaded.config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def from_onnx(small_onnx: Onnx, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports begin with the ONNX file that is there already, and not with half a minute of making it again."""

    def copied(_: LoadedModel, folder: Path) -> tuple[Path, float]:
        return Path(shutil.copy(small_onnx[0], folder / "float32.onnx")), small_onnx[1].difference

    monkeypatch.setattr(export, "_checked_onnx", copied)


@pytest.fixture
def exported(
    request: pytest.FixtureRequest,
    loaded: LoadedModel,
    small_onnx: Onnx,
    small_pt2: Onnx,
    folder: Path,
    from_onnx: None,
) -> Path:
    """The file of one kind, the parameter."""
    if request.param != "xml":
        return {"onnx": small_onnx, "pt2": small_pt2}[request.param][0]
    path = folder / "small.xml"
    if not path.exists():
        assert 0 < export.export_openvino(loaded, path).difference < export.TOLERANCE
        assert sorted(p.name for p in folder.iterdir()) == ["small.bin", "small.xml"]
    return path


def photo(height: int, width: int) -> NDArray[np.uint8]:
    return cv2.resize(data.coffee(), (width, height))


@pytest.mark.parametrize("exported", KINDS, indirect=True)
def test_masks_are_those_of_torch(exported: Path, torch_predictor: Predictor) -> None:
    found = open_engine(exported)
    assert found.config == SMALL
    predictor = Predictor(found.engine, found.config)
    words = ["cup", "the spoon right of the saucer", "a", *(f"thing number {n}" for n in range(AT_ONCE))]
    shares = []
    for (height, width), count in zip(SIZES, (1, 2, 3, len(words), 5), strict=True):
        image = photo(height, width)
        answers = predictor.predict(image, words[:count]), torch_predictor.predict(image, words[:count])
        for ours, theirs in zip(*answers, strict=True):
            assert ours.mask.shape == (height, width)
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
            assert overlap(ours.mask, theirs.mask).iou > 0.998
            shares.append(theirs.mask.mean())
    assert len(shares) == 11 + len(words)
    assert 0.02 < np.mean(shares) < 0.98  # masks that could differ


@pytest.mark.parametrize("exported", KINDS, indirect=True)
def test_the_least_pictures_and_the_longest_expressions(exported: Path, torch_predictor: Predictor) -> None:
    """Sides of 32 pixels, where a grid has one row or column, and CLIP's whole context of 77 tokens."""
    found = open_engine(exported)
    predictor = Predictor(found.engine, dataclasses.replace(found.config, max_tokens=77))
    reference = Predictor(torch_predictor.engine, dataclasses.replace(torch_predictor.config, max_tokens=77))
    words = ["cup", "the very " + "big " * 100 + "cup"]
    for height, width in ((30, 400), (400, 31), (8, 8)):
        image = photo(height, width)
        for ours, theirs in zip(predictor.predict(image, words), reference.predict(image, words), strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
            assert (ours.mask == theirs.mask).mean() > 0.998


@pytest.mark.parametrize("exported", [KINDS[0], KINDS[2]], indirect=True)  # a .pt2 takes seconds to load each time
def test_the_commands_answer_the_same(
    exported: Path, run: Any, small_weights: Path, small_scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite("photo.png", photo(131, 173))
    documents: list[Any] = []
    for weights in (exported, small_weights):
        same = ("--weights", weights, "--precision", "fp32", "--json")  # auto would be bf16 on CPUs with AMX
        assert run("predict", "photo.png", "red cup", "-e", "the ball", *same) == 0
        predicted = json.loads(capsys.readouterr().out)
        own = {} if weights == exported else {"precision": "fp32"}  # an exported file has a precision of its own
        assert predicted["model"] == {"name": SMALL.name, "weights": str(weights), **own}
        assert run("eval", "--data", small_scenes, *same) == 0
        evaluated = json.loads(capsys.readouterr().out)
        assert evaluated["weights"]["path"] == str(weights)
        assert ("sha256_bin" in evaluated["weights"]) == (weights.suffix == ".xml")
        documents.append((predicted["results"], evaluated))
    (ours, our_metrics), (theirs, their_metrics) = documents
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert one["area"] == pytest.approx(other["area"], rel=0.002)
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    for group in ("chosen_query", "best_of_q"):
        assert our_metrics[group] == pytest.approx(their_metrics[group], abs=0.002)
    assert our_metrics["best_of_q"]["miou"] > 0.01


def assert_stated_iou_holds(path: Path, questions: quantize.Questions, reference: Predictor) -> dict[str, Any]:
    """What the file says of itself, after measuring it again."""
    found = open_engine(path)
    assert found.config == SMALL
    assert found.int8 is not None
    again = quantize.agreement(reference, Predictor(found.engine, found.config), questions.halves[1])
    assert found.int8["mask_miou"] == pytest.approx(again.miou, abs=1e-6)
    assert found.int8["mask_iou_lowest"] == pytest.approx(again.lowest, abs=1e-6)
    assert found.int8["masks"] == again.masks > 0
    assert found.int8["data"] == questions.source
    assert 0.3 < again.miou < 1
    return dict(found.int8)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(str(path)).graph.node}


def test_int8_calibrated_on_a_prepared_split(
    run: Any, small_weights: Path, small_scenes: Path, small_onnx: Onnx, torch_predictor: Predictor, from_onnx: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(quantize, "KEPT", 0.0)  # so that the first scheme is taken
    assert run("export", "--int8", "--data", small_scenes, "--weights", small_weights, "-o", "out/int8.onnx") == 0
    path, said = Path("out/int8.onnx"), capsys.readouterr().err
    questions = quantize.split_questions(PreparedSplit(small_scenes, "val"))
    int8 = assert_stated_iou_holds(path, questions, torch_predictor)
    assert int8["scheme"] == quantize.FOR_ONNX_RUNTIME[0].name
    assert int8["data"] == "1 of the first 2 pictures of scenes-seed7/val"
    assert f"mask IoU with float32 {100 * int8['mask_miou']:.2f} %" in said
    assert int8["data"] in said
    assert {"QuantizeLinear", "DynamicQuantizeLinear"} <= operators(path)
    assert path.stat().st_size < 0.8 * small_onnx[0].stat().st_size
    assert list(path.parent.iterdir()) == [path]


def test_convolutions_stay_float_where_int8_would_lose_masks(
    loaded: LoadedModel, torch_predictor: Predictor, from_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "KEPT", 1.1)  # as if every scheme lost masks
    monkeypatch.setattr(export, "FOR_ONNX_RUNTIME", quantize.FOR_ONNX_RUNTIME[1:])
    path, questions = tmp_path / "int8.onnx", quantize.drawn_questions(SMALL, pictures=4)
    written = export.export_onnx(loaded, path, questions)
    assert assert_stated_iou_holds(path, questions, torch_predictor) == written.int8
    assert written.int8["scheme"] == quantize.FOR_ONNX_RUNTIME[-1].name
    assert "QuantizeLinear" not in operators(path)
    assert "DynamicQuantizeLinear" in operators(path)


@NEEDS_OPENVINO
def test_int8_in_openvino(
    loaded: LoadedModel, torch_predictor: Predictor, from_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "KEPT", 0.0)
    path, questions = tmp_path / "int8.xml", quantize.drawn_questions(SMALL, pictures=4)
    written = export.export_openvino(loaded, path, questions)
    assert assert_stated_iou_holds(path, questions, torch_predictor) == written.int8
    assert written.int8["scheme"] == quantize.FOR_OPENVINO[0].name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.bin", "int8.xml"]


def test_onnx_runtime_gets_the_cores_that_may_be_used(small_onnx: Onnx, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, session = [], onnxruntime.InferenceSession

    def noted(path: str, options: Any, **rest: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return session(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    open_engine(small_onnx[0])
    open_engine(small_onnx[0], threads=2)
    assert seen == [3, 2]


@NEEDS_OPENVINO
@pytest.mark.parametrize("exported", ["xml"], indirect=True)
def test_openvino_gets_the_cores_and_computes_in_float32(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = engines.import_openvino()
    seen, compile_model = [], openvino.Core.compile_model

    def noted(self: Any, *words: Any) -> Any:
        compiled = compile_model(self, *words)
        seen.append([str(compiled.get_property(p)) for p in ("INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT")])
        return compiled

    monkeypatch.setattr(openvino.Core, "compile_model", noted)
    open_engine(exported, threads=1)
    assert seen == [["1", "<Type: 'float32'>"]]
    assert "openvino_telemetry.main" not in sys.modules


@pytest.fixture
def broken(tmp_path: Path, small_onnx: Onnx, small_pt2: Onnx) -> Path:
    """A folder of files that are not what their names say."""
    for name in ("text.onnx", "text.pt2", "text.xml", "text.bin"):
        (tmp_path / name).write_text("not a model")
    (tmp_path / "page.xml").write_text(
        "<?xml version='1.0'?><annotation><object><name>cup</name></object></annotation>"
    )
    for name in ("alone.xml", "broken.xml", "broken.bin"):
        (tmp_path / name).write_text('<?xml version="1.0"?><net name="model" version="11"><layers>')
    for path in (small_onnx[0], small_pt2[0]):
        (tmp_path / f"truncated{path.suffix}").write_bytes(path.read_bytes()[:-20_000])
    double = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([double], "double", [x], [y])
    foreign = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    torch.export.save(torch.export.export(torch.nn.Identity(), (torch.zeros(1),)), tmp_path / "foreign.pt2")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("text.onnx", "is not a whole ONNX file"),
        ("text.pt2", "is not a whole .pt2 file"),
        ("text.xml", "is not a model of OpenVINO"),
        ("page.xml", "is not a model of OpenVINO"),
        pytest.param("broken.xml", "is not a whole OpenVINO file", marks=NEEDS_OPENVINO),
        pytest.param("alone.xml", "alone.bin is missing", marks=NEEDS_OPENVINO),
        ("truncated.onnx", "is not a whole ONNX file"),
        ("truncated.pt2", "is not a whole .pt2 file"),
        ("foreign.onnx", "was not made by vlformer"),
        ("foreign.pt2", "was not made by vlformer"),
        ("missing.onnx", "vlformer export"),
    ],
)
def test_what_cannot_run_says_why_in_one_line(
    name: str, part: str, run: Any, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite("photo.png", photo(50, 50))
    assert run("predict", "photo.png", "cup", "--weights", broken / name) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert line.startswith("vlformer: ")
    assert str(broken) in line
    assert name.split(".")[0] in line
    assert part in line


@pytest.mark.parametrize(
    ("ending", "package", "remedy"),
    [
        ("onnx", "onnxruntime", "pip install 'vlformer[export]'"),
        ("xml", "openvino", "pip install 'vlformer[openvino]'"),
    ],
)
def test_a_missing_extra_is_named(
    ending: str, package: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"small.{ending}"
    with pytest.raises(VLFormerError, match=re.escape(remedy)):
        (export.export_onnx if ending == "onnx" else export.export_openvino)(loaded, path)
    path.write_text("<net")
    with pytest.raises(VLFormerError, match=re.escape(remedy)):
        open_engine(path)


@pytest.mark.slow  # two minutes: run it whenever other weights are embedded
def test_the_embedded_model_is_exported_and_gives_the_same_masks(tmp_path: Path) -> None:
    """Its logits are ten times those of random weights, and so are the differences between runtimes."""
    loaded, picture = load_weights(EMBEDDED), read_image(EXAMPLES / "teapots.jpg")
    export.export_onnx(loaded, tmp_path / "m.onnx")
    asked = ["the orange teapot", "the bottom butterfly", "spoon above the yellow teapot"]
    torch_s = Predictor(loaded.model, loaded.config).predict(picture, asked)
    theirs = Predictor(open_engine(tmp_path / "m.onnx").engine, loaded.config).predict(picture, asked)
    for one, other in zip(torch_s, theirs, strict=True):
        assert overlap(one.mask, other.mask).iou > 0.999
        assert one.score == pytest.approx(other.score, abs=1e-4)
    assert torch_s[0].mask.sum() > 1000


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--format", "torch", "--int8"], 2, "--int8 is for"),
        (["--data", "somewhere"], 2, "are for --int8"),
        (["--weights", "model.onnx"], 1, "is an exported file already"),
        (["--format", "openvino", "-o", "model.onnx"], 2, "--format openvino is a .xml"),
        (["--format", "tflite"], 2, "'tflite'"),
    ],
)
def test_exports_that_make_no_sense(
    words: list[str], code: int, part: str, run: Any, small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", *([] if "--weights" in words else ["--weights", small_weights]), *words) == code
    assert part in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_predict_with_a_pt2(
    run: Any, small_pt2: Onnx, torch_predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite("photo.png", photo(131, 173))
    assert run("predict", "photo.png", "red cup", "--weights", small_pt2[0], "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    (expected,) = torch_predictor.predict(photo(131, 173)[..., ::-1], ["red cup"])  # OpenCV wrote it as BGR
    assert result["area"] == pytest.approx(expected.mask.sum(), rel=0.002)
    assert result["score"] == pytest.approx(expected.score, abs=1e-4)


def test_exported_files_run_on_the_cpu_only(small_onnx: Onnx) -> None:
    assert open_engine(small_onnx[0], "auto").path == small_onnx[0]
    with pytest.raises(VLFormerError, match="runs on the cpu, not on 'cuda'"):
        open_engine(small_onnx[0], "cuda")


class Touch:
    """Pickled, it makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickle_of_a_pt2_is_run(small_pt2: Onnx, tmp_path: Path) -> None:
    mark, evil = tmp_path / "was-here", tmp_path / "evil.pt2"
    torch.save(Touch(mark), tmp_path / "inputs")
    with zipfile.ZipFile(small_pt2[0]) as source, zipfile.ZipFile(evil, "w") as target:
        names = [name for name in source.namelist() if "/sample_inputs/" in name]
        assert names
        for name in source.namelist():
            target.writestr(name, (tmp_path / "inputs").read_bytes() if name in names else source.read(name))
    with pytest.raises(VLFormerError, match=r"is not a whole \.pt2 file"):
        open_engine(evil)
    assert not mark.exists()
    torch.load(tmp_path / "inputs", weights_only=False)
    assert mark.exists()  # it would have been
