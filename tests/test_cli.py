"""The command line as a user meets it: exit codes, messages, JSON, files, and what happens when input is bad."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from vlformer_cli.commands import errors
from vlformer_cli.commands.common import print_json
from vlformer_cli.commands.predict import split_words
from vlformer_cli.engine import evaluate
from vlformer_cli.engine.predict import Predictor


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path), cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (200, 150)))
    return path


def test_help_and_usage_errors_do_not_import_torch() -> None:
    code = (
        "import sys\nfrom vlformer_cli.app import app\nfrom vlformer_cli.commands import errors\n"
        "sys.argv = ['vlformer', *sys.argv[1:]]\nrc = errors.run(app)\n"
        "print(rc, [m for m in ('torch', 'cv2', 'timm', 'numpy') if m in sys.modules])"
    )
    for words, expected in ((["--help"], 0), (["predict"], 2), (["train", "--help"], 0), (["eval", "--nonsense"], 2)):
        out = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert out.stdout.splitlines()[-1] == f"{expected} []", words


def test_predict_json_agrees_with_the_files_it_wrote(
    run: Any, photo: Path, small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", photo, photo, "red cup", "-e", "the ball", "--weights", small_weights, "--json"]
    assert run(*words, "-o", "out") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"]["name"] == "vlformer-small-random"
    assert [r["expression"] for r in document["results"]] == ["red cup", "the ball"] * 2
    assert len({r["mask"] for r in document["results"]}) == 4
    for result in document["results"]:
        mask = cv2.imread(result["mask"], cv2.IMREAD_UNCHANGED)
        assert mask.shape == (150, 200)
        assert set(np.unique(mask)) <= {0, 255}
        assert result["area"] == (mask == 255).sum() == coco_mask.area(result["segmentation"])
        assert result["bbox"] == coco_mask.toBbox(result["segmentation"]).tolist()
        assert (result["width"], result["height"]) == (200, 150)
        assert 0 <= result["score"] <= 1
        assert cv2.imread(result["overlay"]).shape[1] >= 200


def test_bad_pictures_fail_after_the_others_were_done(
    run: Any, photo: Path, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(photo.read_bytes()[:700])
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    bad = [truncated, text, tmp_path / "folder.jpg", tmp_path / "missing.jpg"]
    assert run("predict", *bad, photo, "red cup", "--weights", small_weights, "--json") == 1
    captured = capsys.readouterr()
    assert [r["image"] for r in json.loads(captured.out)["results"]] == [str(photo)]
    lines = captured.err.splitlines()
    assert len(lines) == len(bad)
    for line, path in zip(lines, bad, strict=True):
        assert line.startswith("vlformer: ")
        assert path.name in line


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_a_name_that_is_no_text_ends_nothing(photo: Path, small_weights: Path, tmp_path: Path) -> None:
    odd, broken = tmp_path / os.fsdecode(b"odd\xff.jpg"), tmp_path / os.fsdecode(b"broken\xff.jpg")
    shutil.copy(photo, odd)
    broken.write_text("no picture")
    words = ["predict", odd, broken, photo, "red cup", "--weights", small_weights, "--output", tmp_path / "out"]
    for more in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, "-m", "vlformer_cli", *words, *more], capture_output=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 1
        (line,) = done.stderr.decode().splitlines()
        assert "broken" in line
        assert "bug" not in line
    results = json.loads(done.stdout)["results"]
    assert [os.fsencode(r["image"]) for r in results] == [bytes(odd), bytes(photo)]
    assert all(Path(r["mask"]).is_file() for r in results)


@pytest.mark.parametrize("expression", ["", "   "])
def test_an_empty_expression_is_named_and_the_others_are_done(
    run: Any, photo: Path, small_weights: Path, expression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", photo, expression, "-e", "red cup", "--weights", small_weights, "--json") == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["results"]) == 1
    assert "expression is empty" in captured.err


def test_long_text_small_and_large_pictures(
    run: Any, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shape in (("dot.png", (1, 1)), ("line.png", (1, 3000)), ("large.jpg", (4000, 6000))):
        cv2.imwrite(str(tmp_path / name), np.full((*shape, 3), 90, np.uint8))
        assert run("predict", tmp_path / name, "word " * 300, "--weights", small_weights, "--json") == 0
        captured = capsys.readouterr()
        (result,) = json.loads(captured.out)["results"]
        assert result["segmentation"]["size"] == list(shape)
        assert "only the first 38 tokens were read" in captured.err  # of 40, with CLIP's marks of start and end
    assert run("predict", tmp_path / "dot.png", tmp_path / "line.png", "word " * 300, "--weights", small_weights) == 0
    assert capsys.readouterr().err.count("tokens were read") == 1


@pytest.mark.parametrize(
    ("words", "part", "code"),
    [
        (["predict", "x.jpg", "cup", "--weights", "missing.safetensors"], "missing.safetensors", 1),
        (["predict", "x.jpg", "cup", "--device", "warp"], "'warp'", 1),
        (["predict", "x.jpg", "cup", "--precision", "fp8"], "'fp8'", 2),
        (["train", "--config", "missing.yaml"], "missing.yaml", 1),
        (["eval", "--data", "nowhere"], "nowhere", 1),
        (["eval", "--dataset", "nothing"], "prepare-data", 1),
        (["eval"], "--data DIR or --dataset NAME", 2),
        (["prepare-data", "cats"], "'cats'", 2),
        (["prepare-data", "refcoco", "--split-by", "umd"], "'umd'", 2),
        (["prepare-data", "custom"], "--from DIR", 2),
        (["prepare-data", "scenes", "--images", "many"], "'many'", 2),
    ],
)
def test_every_error_is_one_line_with_the_value(
    run: Any, words: list[str], part: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("vlformer: ")
    assert part in line


def test_a_missing_system_library_is_explained(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("vlformer_cli.config.load_config", broken)
    assert run("train") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "apt-get install libgl1" in line
    assert "opencv-python-headless" in line


def test_a_server_without_libgl_gets_the_line_from_a_real_import(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    out = subprocess.run(
        [sys.executable, "-m", "vlformer_cli", "prepare-data", "scenes", "--images", "1", "--root", str(tmp_path)],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert out.returncode == 1
    assert "apt-get install libgl1" in out.stderr
    assert "Traceback" not in out.stderr


def test_eval_writes_metrics_that_follow_from_the_predictions(
    run: Any, small_weights: Path, small_scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("eval", "--data", small_scenes, "--weights", small_weights, "-o", "out", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert json.loads(Path("out/metrics.json").read_text())["chosen_query"] == document["chosen_query"]
    refs = [json.loads(line) for line in (small_scenes / "val.jsonl").read_text().splitlines()]
    truth = {sent: ref["segmentation"] for ref in refs for sent in ref["sent_ids"]}
    assert sorted(truth) == sorted(row["sent_id"] for row in rows)
    for row in rows:
        assert row["iou"] == pytest.approx(
            coco_mask.iou([row["segmentation"]], [truth[row["sent_id"]]], [0])[0][0], abs=1e-9
        )
        assert row["best_of_q_iou"] >= row["iou"]
    assert document["chosen_query"]["miou"] == pytest.approx(np.mean([row["iou"] for row in rows]))
    assert set(document["by_kind"]) == {"attribute", "location", "relation"}
    assert document["data"] == "scenes-seed7/val"
    assert document["cut_expressions"] == 0
    assert document["weights"]["model"] == "vlformer-small-random"


def test_eval_prints_a_table_that_fits_a_terminal(
    run: Any, small_weights: Path, small_scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("eval", "--data", small_scenes, "--weights", small_weights, "-o", "out", "--precision", "fp32") == 0
    document = json.loads(Path("out/metrics.json").read_text())
    first, _, head, *rows = capsys.readouterr().out.splitlines()
    assert first == f"scenes-seed7/val, vlformer-small-random ({small_weights}, fp32)"
    assert max(map(len, [head, *rows])) < 80
    assert [row.split()[0] for row in rows] == ["all", "attribute", "location", "relation"]
    cells = rows[0].split()
    assert cells[1] == str(document["chosen_query"]["count"])
    assert cells[2] == f"{100 * document['chosen_query']['miou']:.2f}"
    assert cells[-2] == f"{100 * document['best_of_q']['miou']:.2f}"
    assert rows[2].split()[3] == f"{100 * document['by_kind']['location']['oiou']:.2f}"


def test_eval_of_expressions_that_mean_nothing_has_dashes(
    run: Any, small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare-data", "custom", "--from", Path(__file__).parents[1] / "examples/custom") == 0
    assert run("eval", "--dataset", "custom", "--weights", small_weights) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["all", "attribute", "location", "nothing", "N-acc"]
    assert [row.count("-") for row in rows[:4]] == [0, 0, 0, 6]
    assert {len(row) for row in rows[:4]} == {11}


def test_eval_keeps_long_names_of_kinds_apart(
    run: Any, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Path(__file__).parents[1] / "examples/custom"
    names = ["one_of_several_alike_by_colour", "one_of_several_alike"]
    shutil.copytree(example, tmp_path / "mine")
    table = (example / "expressions.csv").read_text()
    for kind, name in zip(["attribute", "location"], names, strict=True):
        table = table.replace(kind, name)
    (tmp_path / "mine/expressions.csv").write_text(table)
    assert run("prepare-data", "custom", "--from", tmp_path / "mine") == 0
    assert run("eval", "--dataset", "custom", "--weights", small_weights) == 0
    head, *rows = capsys.readouterr().out.splitlines()[2:]
    assert {row.split()[0] for row in rows} == {"all", *names, "nothing", "N-acc"}
    ends = [row.index(f" {row.split()[2]} ") + 1 + len(row.split()[2]) for row in rows[:-1]]
    assert set(ends) == {head.index("mIoU") + len("mIoU")}  # numbers stay below their heading


def test_eval_leaves_out_a_picture_that_cannot_be_read(
    run: Any, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlformer_cli.data.scenes.generate import Recipe, generate_scenes

    generate_scenes(tmp_path / "scenes-seed9", images=40, seed=9, recipe=Recipe(size=96), workers=1)
    pictures = sorted((tmp_path / "scenes-seed9/images/val").iterdir())
    pictures[0].write_bytes(b"broken")
    assert run("eval", "--data", tmp_path / "scenes-seed9", "--weights", small_weights) == 1
    captured = capsys.readouterr()
    assert "mIoU" in captured.out
    assert pictures[0].name in captured.err


def test_an_evaluation_that_ends_early_leaves_the_earlier_one_whole(
    run: Any, small_weights: Path, small_scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("eval", "--data", small_scenes, "--split", "train", "--limit", "20", "--weights", small_weights)
    assert run(*words) == 0
    before = {path.name: path.read_bytes() for path in Path("outputs/eval").iterdir()}
    assert set(before) == {"metrics.json", "predictions.jsonl"}
    calls = []

    def interrupted(self: Predictor, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return ask(self, *arguments)

    ask = Predictor.ask
    monkeypatch.setattr(Predictor, "ask", interrupted)
    assert run(*words) == 1
    assert len(calls) == 2
    assert {path.name: path.read_bytes() for path in Path("outputs/eval").iterdir()} == before


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError("array"),
     RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_no_memory_is_not_called_a_bug(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise error

    assert errors.run(fails) == 1
    said = capsys.readouterr().err
    assert "vlformer: memory ran out (" in said
    assert "data.images_per_step" in said
    assert "bug" not in said


def test_a_package_that_is_half_removed_ends_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert run("info", "--json") == 0
    assert "torch" in json.loads(capsys.readouterr().out)["packages"]


def test_two_evaluations_at_a_time_write_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with evaluate._lines(path) as first:
        first.write("1\n" * 5000)
        with evaluate._lines(path) as second:
            second.write("2\n" * 3000)
        assert path.read_text() == "2\n" * 3000
        first.write("1\n")
    assert path.read_text() == "1\n" * 5001
    assert list(tmp_path.iterdir()) == [path]


def test_two_ways_to_say_which_data_set_are_one_too_many(run: Any, tmp_path: Path, capsys: Any) -> None:
    assert run("eval", "--data", tmp_path, "--dataset", "scenes") == 2
    assert "both say which data set: give one of them" in capsys.readouterr().err


def test_a_folder_of_the_expressions_name_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog").mkdir()
    assert split_words(["a.jpg", "dog"], ["cat"]) == (["a.jpg"], ["dog", "cat"])


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp932", "utf-8"])
def test_json_is_json_whatever_the_terminal_can_show(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"café 😀": ["\udcff", 1.5]}
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    print_json(document if encoding != "utf-8" else {"café 😀": 1})
    stream.flush()
    written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert json.loads(written) == (document if encoding != "utf-8" else {"café 😀": 1})
    assert ("😀" in written) == (encoding == "utf-8")


def test_a_path_where_a_name_belongs_is_explained(run: Any, tmp_path: Path, capsys: Any) -> None:
    assert run("eval", "--dataset", tmp_path) == 2
    assert f"--dataset {str(tmp_path)!r} is a path, not a name: give --data {tmp_path}" in capsys.readouterr().err


def test_the_checkout_around_an_installation_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed into somebody's repository has no revision; that repository's is not its own."""
    from vlformer_cli.engine import manifest

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    installed = tmp_path / ".venv/lib/manifest.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    git("init")
    git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(manifest, "__file__", str(installed))
    assert manifest.git_revision() is None
    git("add", "--force", ".")
    git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-m", "ours")
    found = manifest.git_revision()
    assert found is not None
    assert (len(found["revision"]), found["dirty"]) == (40, False)


def test_info_names_what_a_bug_report_needs(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {"vlformer", "python", "packages", "devices", "cores", "data_root", "embedded_weights"} <= set(document)
    assert "torch" in document["packages"]
