"""The words of `predict`: which are images, where they are read from, and what is said of those that are not."""

from __future__ import annotations

import io
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from vlformer_cli.data import images, inputs
from vlformer_cli.data.inputs import find_sources
from vlformer_cli.types import VLFormerError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images in the working directory: a.png, b.JPG, noending, one in a hidden file, one in `shots`; and a text."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "shots").mkdir()
    for name in ("a.png", "b.JPG", ".c.png", "noending", "shots/d.png"):
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image.save(tmp_path / name, format="JPEG" if name.endswith("JPG") else "PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "dog").write_text("a file named as an expression may be")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a.png", "b.JPG"], "no expression"),
        (["a.png"], "no expression"),
        (["a.png", "noending"], "no expression"),
        (["a.png", "gone.jpg"], "no expression"),
        (["a.png", "-"], "no expression"),
        (["a.png", "https://example.com/7"], "no expression"),
        (["a.png", "*.png"], "no expression"),
        (["shots"], "no expression"),
        (["a.png", "./shots"], "no expression"),
        (["red cup", "a.png"], "swapped, 'red cup' is no image and 'a.png' is one: vlformer predict a.png 'red cup'"),
        (["red cup", "noending"], "swapped"),
        (["red cup", "a.png", "b.JPG"], "vlformer predict a.png b.JPG 'red cup'"),
        (["red cup"], "there is no image"),
        (["red cup", "-e", "blue cup"], "there is no image"),
    ],
)  # fmt: skip
def test_words_in_the_wrong_place_are_told_before_the_model_loads(
    run: Any, folder: Path, words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", *words, "--weights", "missing.safetensors") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert part in line


@pytest.mark.parametrize(
    "expression", ["red cup", "dog", "notes.txt", "what is red?", "[red cup]", "cup/glass", "shots"]
)
def test_an_expression_is_an_expression(run: Any, folder: Path, expression: str, capsys: Any) -> None:
    assert run("predict", "a.png", expression, "--weights", "missing.safetensors") == 1
    assert "missing.safetensors" in capsys.readouterr().err


def names(*words: str) -> list[str]:
    return [source.name for source in find_sources(words)]


def test_folders_and_patterns_are_searched_for_images(folder: Path) -> None:
    assert names(".") == ["a.png", "b.JPG"]
    assert names("shots", "a.png") == ["shots/d.png", "a.png"]
    assert names("*") == ["a.png", "b.JPG"]
    assert names(f"{folder}/**/*.png") == [f"{folder}/shots/d.png"]
    assert names("[ab].*") == ["a.png", "b.JPG"]
    shutil.copy("a.png", "x[1].png")
    assert names("x[1].png") == ["x[1].png"]
    assert find_sources(["shots"])[0].read().shape == (6, 8, 3)


@pytest.mark.parametrize("word", ["empty", "*.gif", "ftp://example.com/a.png", "file:///a.png", "http://[x/a.png"])
def test_a_word_without_images_is_an_error_and_the_others_are_read(folder: Path, word: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(VLFormerError, match=word.replace("*", r"\*").replace("[", r"\[")):
        find_sources([word])
    bad, good = find_sources([word, "a.png"])
    assert good.read().shape == (6, 8, 3)
    with pytest.raises(VLFormerError):
        bad.read()


class FakeInput(io.TextIOWrapper):
    terminal = False

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("word", ["-", "/dev/stdin"])
def test_an_image_comes_from_standard_input(folder: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", FakeInput(io.BytesIO(Path("a.png").read_bytes())))
    (source,) = find_sources([word])
    np.testing.assert_array_equal(source.read(), images.read_image("a.png"))
    assert (source.name, source.stem) == (word, "stdin")
    with pytest.raises(VLFormerError, match="empty"):
        source.read()
    monkeypatch.setattr(FakeInput, "terminal", True)
    with pytest.raises(VLFormerError, match=r"cat photo\.jpg"):
        find_sources([word])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(VLFormerError, match=r"cat photo\.jpg"):
        find_sources([word])


def test_an_image_comes_from_a_pipe(folder: Path) -> None:
    os.mkfifo("pipe.png")
    writer = threading.Thread(target=lambda: Path("pipe.png").write_bytes(Path("a.png").read_bytes()))
    writer.start()
    (source,) = find_sources(["pipe.png"])
    np.testing.assert_array_equal(source.read(), images.read_image("a.png"))
    writer.join()


def test_what_a_pipe_gives_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 1 << 20)
    (source,) = find_sources(["/dev/zero"])
    with pytest.raises(VLFormerError, match=r"/dev/zero gives over 1 MiB"):
        source.read()


class Handler(BaseHTTPRequestHandler):
    data: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        moved = {"/moved": "/red%20cup.png", "/away": "file:///etc/passwd"}.get(path)
        self.send_response(302 if moved else 404 if path == "/gone.png" else 200)
        if moved:
            self.send_header("Location", moved)
        self.send_header("Content-Type", "text/html" if path == "/page" else "image/png")
        self.send_header("Content-Length", str(len(self.data) + 9 * (path == "/cut.png")))
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, "data", Path("a.png").read_bytes())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize("path", ["/red%20cup.png", "/red cup.png?size=1", "/moved"])
def test_an_image_comes_from_an_address(server: str, path: str) -> None:
    (source,) = find_sources([server + path])
    np.testing.assert_array_equal(source.read(), images.read_image("a.png"))
    assert source.name == server + path
    assert source.stem in ("red cup", "moved")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/gone.png", "answered 404"),
        ("/page", "is a web page"),
        ("/away", "file:///etc/passwd"),
        ("/cut.png", "ended after"),
    ],
)
def test_what_an_address_does_not_give_is_told(server: str, path: str, part: str) -> None:
    (source,) = find_sources([server + path])
    with pytest.raises(VLFormerError, match=part) as caught:
        source.read()
    assert server + path in str(caught.value)


def test_a_download_has_limits(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = find_sources([f"{server}/a.png"])
    monkeypatch.setattr(inputs, "MAX_SECONDS", -1.0)
    with pytest.raises(VLFormerError, match="takes over"):
        source.read()
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    with pytest.raises(VLFormerError, match="make the image smaller"):
        source.read()


def test_a_server_that_is_not_there_is_told_without_a_number_of_an_error(server: str) -> None:
    (source,) = find_sources(["http://127.0.0.1:1/a.png"])
    with pytest.raises(VLFormerError, match="Connection refused") as caught:
        source.read()
    assert "Errno" not in str(caught.value)


def test_heic_names_the_extra_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._register_heif.cache_clear()
    for brand in (b"heic", b"mif1"):
        (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(64))
        with pytest.raises(VLFormerError, match=r"photo\.heic is a HEIC image: pip install 'vlformer\[heic\]'"):
            images.read_image(tmp_path / "photo.heic")
    images._register_heif.cache_clear()


def test_a_file_that_may_not_be_read_is_told_without_a_number_of_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(VLFormerError, match=r"a\.png cannot be read \(Permission denied\)"):
        images.read_image("a.png")
