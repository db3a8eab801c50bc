"""Drawn masks, captions, saved files and contact sheets, by what their pixels must show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vlformer_cli.report.overlay import (
    MAX_CAPTION_LINES,
    MIN_CAPTION_WIDTH,
    PAPER,
    TINT,
    TINT_SHARE,
    draw_overlay,
    load_font,
    readable,
    save_image,
    save_mask_png,
    wrap_text,
)
from vlformer_cli.report.sheet import contact_sheet, overlay_grid
from vlformer_cli.types import VLFormerError


def plain(value: int, height: int = 120, width: int = 160) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def box(height: int = 120, width: int = 160) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    mask[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = True
    return mask


@pytest.mark.parametrize("value", [0, 128, 255])
def test_the_mask_is_tinted_outlined_and_the_rest_untouched(value: int) -> None:
    image, mask = plain(value), box()
    drawn = draw_overlay(image, mask, caption=None)
    expected = value * (1 - TINT_SHARE) + np.array(TINT) * TINT_SHARE
    assert np.abs(drawn[mask] - expected).max() <= 1
    assert (drawn[:30] == value).all()
    assert (image == value).all()  # the caller's picture is not drawn into
    outline = drawn[~mask & (drawn != value).any(axis=2)].astype(int).mean(axis=1)
    assert len(outline) >= 2 * (40 + 53)  # all around
    assert np.abs(outline - value).max() >= 127  # seen on any background


def test_an_empty_mask_changes_nothing_and_a_full_one_has_no_outline() -> None:
    image = plain(77)
    np.testing.assert_array_equal(draw_overlay(image, np.zeros((120, 160), bool), caption=None), image)
    full = draw_overlay(image, np.ones((120, 160), bool), caption=None)
    assert len(np.unique(full.reshape(-1, 3), axis=0)) == 1


def test_masks_at_the_corners_and_of_one_pixel() -> None:
    for y, x in ((0, 0), (119, 159), (60, 0), (0, 80)):
        mask = np.zeros((120, 160), bool)
        mask[y, x] = True
        drawn = draw_overlay(plain(0), mask, caption=None)
        assert drawn[y, x, 2] > 90
        assert 3 <= (drawn.sum(axis=2) > 400).sum() <= 40  # a white rim, and only around it


def test_sizes_from_one_pixel_to_twenty_four_million() -> None:
    assert draw_overlay(plain(9, 1, 1), np.ones((1, 1), bool), caption=None).shape == (1, 1, 3)
    assert draw_overlay(plain(9, 1, 1), np.ones((1, 1), bool), caption="dot").shape[1] == MIN_CAPTION_WIDTH
    mask = np.zeros((4000, 6000), bool)
    mask[1000:3000, 1000:5000] = True
    drawn = draw_overlay(np.zeros((4000, 6000, 3), np.uint8), mask, caption=None)
    rim = (drawn[2000, :1000].min(axis=1) > 200).sum()
    assert 10 <= rim <= 30  # the outline grows with the picture


def test_read_only_pictures_and_slices_are_drawn() -> None:
    image = plain(9)[:, ::-1]
    image.flags.writeable = False
    assert draw_overlay(image, box(), caption="x").shape[1] == MIN_CAPTION_WIDTH


def test_a_caption_is_a_strip_below() -> None:
    image = plain(77, 300, 400)
    drawn = draw_overlay(image, np.zeros((300, 400), bool), caption="the left cup")
    np.testing.assert_array_equal(drawn[:300], image)
    strip = drawn[300:]
    assert (strip[0] == PAPER).all()
    assert (strip[-1] == PAPER).all()
    assert strip.min() < 60  # ink
    longer = draw_overlay(image, np.zeros((300, 400), bool), caption="the left cup " * 8)
    assert len(longer) > len(drawn)
    assert len(draw_overlay(image, box(300, 400), caption="word " * 5000)) < 300 + 300
    assert draw_overlay(image, box(300, 400), caption="").shape[1] == 400


def test_wrapped_lines_fit_and_keep_every_word() -> None:
    font, text = (
        load_font(16),
        "the man in the middle with a very-very-long-hyphenated-and-unbreakable-word and\ta hat\n",
    )
    lines = wrap_text(text, font, 150, 99)
    assert all(font.getlength(line) <= 150 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    cut = wrap_text("word " * 500, font, 150, MAX_CAPTION_LINES)
    assert len(cut) == MAX_CAPTION_LINES
    assert cut[-1].endswith("...")
    assert font.getlength(cut[-1]) <= 150
    assert wrap_text("wide", font, 1, 9) == ["w", "i", "d", "e"]
    assert wrap_text(" \n", font, 100, 9) == [""]


def test_characters_that_the_font_lacks() -> None:
    font = load_font(16)
    assert readable("naïve – “x”", font) == "naive - “x”"
    assert readable("猫 \u200b\x00 🐱", font) == "[U+732B] [U+200B][U+0000] [U+1F431]"


def test_saved_masks_and_pictures_read_back(tmp_path: Path) -> None:
    save_mask_png(box(), tmp_path / "new" / "mask.png")
    with Image.open(tmp_path / "new" / "mask.png") as read:
        assert read.mode == "L"
        np.testing.assert_array_equal(np.asarray(read), np.where(box(), 255, 0))
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    save_image(noise, tmp_path / "new" / "a.PNG")
    with Image.open(tmp_path / "new" / "a.PNG") as read:
        np.testing.assert_array_equal(np.asarray(read), noise)
    for name, kind in (("a.jpg", "JPEG"), ("a.webp", "WEBP")):
        save_image(plain(99), tmp_path / "new" / name)
        with Image.open(tmp_path / "new" / name) as read:
            assert read.format == kind
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.PNG", "a.jpg", "a.webp", "mask.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    save_image(plain(1), path)
    before = path.read_bytes()

    def half_then_full_disk(self: Image.Image, file: object, **options: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half_then_full_disk)
    with pytest.raises(VLFormerError, match=r"a\.png cannot be written .*No space left"):
        save_image(plain(2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_drawn_or_saved(tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match="do not fit"):
        draw_overlay(plain(1), box(10, 10), caption=None)
    with pytest.raises(VLFormerError, match=r"'\.tiff': use one of"):
        save_image(plain(1), tmp_path / "a.tiff")
    (tmp_path / "file").touch()
    with pytest.raises(VLFormerError, match="cannot be written"):
        save_mask_png(box(), tmp_path / "file" / "a.png")


@pytest.mark.parametrize("panel", ["mask", "overlay"])
def test_contact_sheet(panel: str) -> None:
    rows = [
        ("the left cup", plain(0, 300, 400), box(300, 400)),
        ("a very long expression " * 40, plain(128, 40, 900), box(40, 900)),
        ("tiny", plain(200, 1, 1), np.zeros((1, 1), bool)),
    ]
    sheet = contact_sheet(rows, panel=panel)  # type: ignore[arg-type]
    assert sheet.shape[1] == 1200
    assert (sheet[:20] == 255).all()
    assert (sheet[-20:] == 255).all()
    assert (sheet[:, :30] == 255).all()
    assert (sheet[:, -30:] == 255).all()
    black = (sheet == 0).all(axis=2)[:, 340:740]
    assert black.sum() == 300 * 400  # the first picture, at its own size
    one = contact_sheet(rows[:1], panel=panel)  # type: ignore[arg-type]
    cell = one[one.shape[0] // 2 - 60 : one.shape[0] // 2 + 60, 764:1164]
    middle, corner = cell[60, 200], cell[0, 5]
    assert int(middle.max()) > int(corner.max()) + 60


def test_a_contact_sheet_of_nothing_or_of_what_does_not_fit() -> None:
    with pytest.raises(VLFormerError, match="one row or more"):
        contact_sheet([])
    with pytest.raises(VLFormerError, match="do not fit"):
        contact_sheet([("x", plain(1), box(5, 5))])


def test_a_grid_shows_each_mask_over_its_image() -> None:
    rows = [("the box", plain(200), box()), ("nothing", plain(100), np.zeros_like(box()))]
    grid = overlay_grid(rows, columns=2)
    assert grid.shape[1] == 2 * 300 + 3 * 14
    halves = grid[:225, 14:314], grid[:225, 328:628]
    tinted = [(half.max(axis=2).astype(int) - half.min(axis=2) > 40).any() for half in halves]
    assert tinted == [True, False]  # plain images are gray, and the tint is blue
    with pytest.raises(VLFormerError):
        overlay_grid([])
