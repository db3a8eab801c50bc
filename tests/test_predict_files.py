"""What `predict` writes and prints, and when: results as they are done, and nothing lost whatever ends it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vlformer_cli.data.images import read_image
from vlformer_cli.data.inputs import ImageSource, find_sources
from vlformer_cli.engine.checkpoint import load_weights
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.engine.predict_files import predict_files
from vlformer_cli.engine.result_files import FileResult, ResultFolder
from vlformer_cli.report import progress
from vlformer_cli.report.overlay import save_mask_png


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("one", "two", "three")]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def call(run: Any, small_weights: Path) -> Callable[..., int]:
    return lambda *words: run("predict", *words, "--weights", small_weights, "-o", "out", "--min-score", "0")


@pytest.fixture
def second_ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Something happens while the second image is segmented."""

    def install(happens: Callable[[], object]) -> None:
        calls, predict = [], Predictor.predict

        def interrupted(self: Predictor, *arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 2:
                happens()
            return predict(self, *arguments)

        monkeypatch.setattr(Predictor, "predict", interrupted)

    return install


def images(text: str) -> list[str]:
    return [Path(result["image"]).name for result in json.loads(text)["results"]]


def test_each_result_is_told_before_the_next_image_is_read(
    photos: list[Path], small_weights: Path, tmp_path: Path
) -> None:
    loaded, read = load_weights(small_weights), []

    def noted(source: ImageSource) -> ImageSource:
        def reading() -> NDArray[np.uint8]:
            read.append(source.name)
            return source.read()

        return ImageSource(source.name, source.stem, reading)

    sources = [noted(source) for source in find_sources(list(map(str, photos)))]
    done: list[int] = []
    folder = ResultFolder(tmp_path / "out")
    results = predict_files(Predictor(loaded.model, loaded.config), sources, ["cup"], folder, progress=done.append)
    for number in (1, 2, 3):
        result = next(results)
        assert isinstance(result, FileResult)
        assert Path(result.mask).is_file()
        assert len(read) == number
        assert done == list(range(1, number))
    assert list(results) == []
    assert done == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_finished_is_told_when_a_signal_ends_the_call(
    call: Any, photos: list[Path], second_ends: Any, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    second_ends(lambda: os.kill(os.getpid(), number))
    assert call(*photos, "cup", "--json") == 1
    captured = capsys.readouterr()
    assert images(captured.out) == ["one.png"]
    assert captured.err.splitlines()[-1] == "vlformer: interrupted"
    assert signal.getsignal(number) == before


def test_what_was_finished_is_told_when_an_error_ends_the_call(
    call: Any, photos: list[Path], second_ends: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise MemoryError("no memory is left")

    second_ends(fail)
    assert call(*photos, "cup", "--json") == 1
    captured = capsys.readouterr()
    assert images(captured.out) == ["one.png"]
    assert "memory ran out" in captured.err


def test_lines_are_printed_although_the_call_ends_early(
    call: Any, photos: list[Path], second_ends: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    second_ends(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert call(*photos, "cup") == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "one.png" in line


def test_jsonl_is_a_line_of_json_for_each_result(
    call: Any, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*photos, "cup", "-e", "ball", "--jsonl") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(Path(line["image"]).stem, line["expression"]) for line in lines] == [
        (name, text) for name in ("one", "two", "three") for text in ("cup", "ball")
    ]
    assert call(*photos, "cup", "--overwrite", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["results"] == lines[::2]
    assert call(*photos, "cup", "--json", "--jsonl") == 2


@pytest.mark.parametrize("end", ["mask", "overlay"])
def test_a_folder_in_the_way_is_that_files_failure(
    call: Any, photos: list[Path], end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"out/two-cup.{end}.png").mkdir(parents=True)
    assert call(*photos, "cup", "--json") == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert f"two-cup.{end}.png cannot be written (a folder is in its place)" in line
    results = json.loads(captured.out)["results"]
    assert images(captured.out) == ["one.png", "three.png"] if end == "mask" else ["one.png", "two.png", "three.png"]
    for result in results:
        assert Path(result["mask"]).is_file()
        assert (result["overlay"] is None) == (result["mask"] == "out/two-cup.mask.png")
    assert not list(Path("out").glob(".*"))


def test_a_full_disk_is_each_files_failure(
    call: Any, photos: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, save = [], Image.Image.save

    def until_full(self: Image.Image, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        if len(saved) > 2:  # the first image's mask and overlay
            raise OSError(28, "No space left on device")
        save(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", until_full)
    assert call(*photos, "cup", "--json") == 1
    captured = capsys.readouterr()
    assert images(captured.out) == ["one.png"]
    assert captured.err.count("cannot be written (No space left on device)") == 2
    assert "Errno" not in captured.err
    assert len(list(Path("out").iterdir())) == 2


def test_files_of_earlier_calls_stay_unless_they_are_to_be_replaced(
    call: Any, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = photos[0].parent / "other" / "one.png"
    other.parent.mkdir()
    Image.new("RGB", (20, 10)).save(other)
    masks = []
    for image, *options in ([photos[0]], [other], [other, "--overwrite"]):
        assert call(image, "cup", "--json", *options) == 0
        masks.append(json.loads(capsys.readouterr().out)["results"][0]["mask"])
        if len(masks) == 2:
            assert [read_image(mask).shape for mask in masks] == [(32, 40, 3), (10, 20, 3)]
    assert masks == ["out/one-cup.mask.png", "out/one-cup-2.mask.png", "out/one-cup.mask.png"]
    assert read_image(masks[0]).shape == (10, 20, 3)
    assert len(list(Path("out").iterdir())) == 4


def test_a_name_that_another_process_takes_first_is_left_to_it(tmp_path: Path) -> None:
    path, mask = tmp_path / "a.mask.png", np.ones((2, 3), bool)
    assert save_mask_png(mask, path, overwrite=False)
    before = path.read_bytes()
    assert not save_mask_png(~mask, path, overwrite=False)
    assert path.read_bytes() == before
    assert save_mask_png(~mask, path)
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def test_names_stay_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    test_a_name_that_another_process_takes_first_is_left_to_it(tmp_path)


@pytest.mark.parametrize("output", ["notes.txt", "notes.txt/below", "notes.txt/far/below"])
def test_an_output_that_is_a_file_is_told_before_the_model_loads(
    run: Any, photos: list[Path], output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").touch()
    assert run("predict", photos[0], "cup", "-o", output, "--weights", "missing.safetensors") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"--output notes\.txt.*is a file and no folder: choose another one", line)


def test_an_evaluation_does_not_write_to_a_file(
    run: Any, small_scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").touch()
    assert run("eval", "--data", small_scenes, "-o", "notes.txt", "--weights", "missing.safetensors") == 2
    assert "--output notes.txt" in capsys.readouterr().err


def test_progress_is_shown_for_more_than_a_few_images(
    call: Any, photos: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*photos, "cup") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    assert call(*photos * 2, "cup") == 0
    captured = capsys.readouterr()
    assert [line.split(",")[0] for line in captured.err.splitlines()] == [f"segmenting {n}/6" for n in range(1, 7)]
    assert len(captured.out.splitlines()) == 6


def test_what_has_no_words_is_an_empty_expression(
    call: Any, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(photos[0], "...", "-e", "\u200b", "-e", "12345", "--json") == 1
    captured = capsys.readouterr()
    assert [result["expression"] for result in json.loads(captured.out)["results"]] == ["12345"]
    assert [line.count("an expression is empty") for line in captured.err.splitlines()] == [1, 1]


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".CKPT"])
@pytest.mark.parametrize("command", ["predict", "export"])
def test_weights_of_other_programs_name_init(
    run: Any, photos: list[Path], ending: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"model{ending}").write_bytes(b"PK")
    words = [photos[0], "cup"] if command == "predict" else []
    assert run(command, *words, "--weights", f"model{ending}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"vlformer train --init model{ending}" in line


@pytest.mark.parametrize("device", ["warp", "meta", "cuda:77", "gpu"])
def test_a_device_that_is_not_there_gets_a_short_line(
    run: Any, photos: list[Path], device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", photos[0], "cup", "--device", device) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"there is no device {device!r}: --device takes auto, cpu" in line
    assert len(line) < 120
