"""Reading pictures of every sort, sound and damaged, made on the spot."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vlformer_cli.data.images import MAX_PIXELS, image_size, read_image, read_mask
from vlformer_cli.types import VLFormerError


def noise(height: int = 5, width: int = 7, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(picture: Image.Image | NDArray[np.uint8], path: Path, **options: Any) -> Path:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_rgb_is_returned_as_it_is(tmp_path: Path, suffix: str) -> None:
    read = read_image(save(noise(), tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(read, noise())
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert read.flags.writeable


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(noise(), tmp_path / "a.jpg", format="PNG")), noise())


def test_grey_is_spread_to_three_channels(tmp_path: Path) -> None:
    grey = noise()[..., 0]
    np.testing.assert_array_equal(read_image(save(grey, tmp_path / "a.png")), np.stack([grey] * 3, -1))
    two = Image.fromarray(grey).point(lambda v: 255 * (v > 99), "1")
    np.testing.assert_array_equal(read_image(save(two, tmp_path / "b.png"))[..., 1], 255 * (grey > 99))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = noise(channels=4)
    alpha = rgba[..., 3:] / 255
    read = read_image(save(rgba, tmp_path / "a.png"))
    assert np.abs(read - (rgba[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    grey_alpha = Image.fromarray(rgba).convert("LA")
    grey_alpha.putalpha(0)
    assert (read_image(save(grey_alpha, tmp_path / "b.png")) == 255).all()


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    for x in range(3):
        image.putpixel((x, 0), x)
    for name in ("a.png", "a.gif"):
        read = read_image(save(image, tmp_path / name))
        assert read.tolist() == [[[10, 20, 30], [200, 100, 0], [1, 2, 3]]]
    read = read_image(save(image, tmp_path / "b.png", transparency=1))
    assert read.tolist() == [[[10, 20, 30], [255, 255, 255], [1, 2, 3]]]
    read = read_image(save(image, tmp_path / "c.png", transparency=b"\xff\x00\xff"))  # Pillow warns of such a one
    assert read.tolist() == [[[10, 20, 30], [255, 255, 255], [1, 2, 3]]]


def test_sixteen_bit_grey_is_scaled_to_eight(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 12_850, 65_535, 128, 129]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        read = read_image(save(Image.fromarray(deep), tmp_path / name))
        assert read[..., 0].tolist() == [[0, 1, 50, 255, 0, 1]]
        assert read.shape == (1, 6, 3)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    inks = {(0, 0, 0, 0): (255, 255, 255), (0, 0, 0, 255): (0, 0, 0), (0, 255, 255, 0): (255, 0, 0)}
    for ink, light in inks.items():
        path = save(Image.new("CMYK", (16, 16), ink), tmp_path / "a.jpg", quality=95)
        assert np.abs(read_image(path).astype(int) - light).max() <= 3


def test_the_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


# How each EXIF orientation was stored, undone with numpy: EXIF 2.3, tag 0x0112
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif, "lossless": True} if suffix == "webp" else {"exif": exif}
    path = save(noise(), tmp_path / f"a.{suffix}", **options)
    expected = UPRIGHT[orientation](noise())
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]


def test_exif_orientation_of_a_photo_and_damaged_exif(tmp_path: Path) -> None:
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, 32:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_image(save(halves, tmp_path / "a.jpg", exif=exif))
    assert turned.shape == (64, 32, 3)
    assert turned[:30].max() < 20
    assert turned[34:].min() > 235
    assert read_image(save(halves, tmp_path / "b.jpg", exif=b"Exif\0\0not TIFF at all")).shape == (32, 64, 3)
    exif[0x0112] = 99
    assert read_image(save(halves, tmp_path / "c.jpg", exif=exif)).shape == (32, 64, 3)


def refused(path: Path, *words: str) -> None:
    """Reading `path` fails with one line that names it and says `words`."""
    with pytest.raises(VLFormerError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_what_is_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.jpg", "not there", "check the path")
    refused(tmp_path, "a folder", "name a file")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "0 bytes")


def test_what_is_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    refused(tmp_path / "a.jpg", "not a picture of a known format", "PNG or JPEG")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    refused(tmp_path / "a.eps", "not a picture of a known format")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_every_truncation_is_an_error_or_a_whole_picture(tmp_path: Path, suffix: str) -> None:
    whole = save(noise(40, 60), tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for share in (0.02, 0.1, 0.3, 0.5, 0.8):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path)


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix in ("jpg", "png", "gif", "tif", "webp"):
        whole = np.frombuffer(save(noise(20, 30), tmp_path / f"whole.{suffix}").read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 8)] = rng.integers(0, 256, 8)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(VLFormerError):
                assert read_image(path).shape[2] == 3


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    refused(save(Image.new("F", (4, 4), 0.5), tmp_path / "a.tif"), "floating-point", "convert it")
    refused(save(Image.new("I", (4, 4), 70_000), tmp_path / "b.tif"), "32-bit", "convert it")


def test_a_large_picture_is_read_and_a_bomb_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_image(save(Image.new("L", (6000, 4000), 9), tmp_path / "a.png")).shape == (4000, 6000, 3)
    bomb = save(Image.new("1", (14_000, 13_000)), tmp_path / "bomb.png", compress_level=1)
    refused(bomb, f"{MAX_PIXELS:,} pixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    refused(bomb, "14000 x 13000", "make it smaller")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns of pictures between this and twice this
    assert image_size(save(noise(10, 12), tmp_path / "b.png")) == (10, 12)


def test_masks(tmp_path: Path) -> None:
    truth = noise(9, 11)[..., 0] > 127
    grey = np.where(truth, 255, 0).astype(np.uint8)
    palette = Image.fromarray(np.where(truth, 3, 0).astype(np.uint8), "L").copy()
    palette.putpalette([255] * 12)  # the index counts, and not the colour
    forms = {
        "grey": Image.fromarray(grey),
        "labels": Image.fromarray(grey // 255),
        "palette": palette,
        "bits": Image.fromarray(grey).convert("1"),
        "deep": Image.fromarray(grey.astype(np.uint16)),
        "blue": Image.fromarray(np.stack([0 * grey, 0 * grey, grey], -1)),
    }
    for name, image in forms.items():
        np.testing.assert_array_equal(read_mask(save(image, tmp_path / f"{name}.png")), truth, err_msg=name)
    for path in (save(grey, tmp_path / "a.jpg"), save(noise(channels=4), tmp_path / "alpha.png")):
        with pytest.raises(VLFormerError, match="save masks as 8-bit grey PNG"):
            read_mask(path)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (10, 20, 30)).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png")).tolist() == [[[10, 20, 30]] * 4] * 3
    assert image_size(str(tmp_path / "a.png")) == (3, 4)
