"""Pictures for people: a mask drawn over its picture, with a caption below, and safe writing of both.

Letters: H W pixels. Pictures are HW3 uint8 RGB.
"""

from __future__ import annotations

import contextlib
import unicodedata
import uuid
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vlformer_cli.types import VLFormerError, one_line

TINT = (20, 120, 255)
"""A strong blue: most of what expressions are about (people, animals, food, wood) is of a warm colour."""
TINT_SHARE = 0.4
RIM, EDGE = (255, 255, 255), (20, 20, 24)
"""Outline: a white rim around the mask, and a dark edge around the rim, so that one of them shows on any background."""
INK, PAPER = (28, 30, 34), (255, 255, 255)
MIN_CAPTION_WIDTH = 200
MAX_CAPTION_LINES = 6

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_overlay(image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_], *, caption: str | None) -> NDArray[np.uint8]:
    """The picture with the mask tinted and outlined; with a caption, a strip below it makes the result higher.

    A picture narrower than `MIN_CAPTION_WIDTH` is set on white of that width if it has a caption. A caption of over
    `MAX_CAPTION_LINES` lines is cut with an ellipsis. Raises VLFormerError where mask and picture differ in size.
    """
    check_sizes(image_HW3, mask_HW)
    drawn_HW3 = np.array(image_HW3, dtype=np.uint8)
    if mask_HW.any():
        _tint(drawn_HW3, mask_HW)
    return drawn_HW3 if caption is None else _with_caption(drawn_HW3, caption)


def check_sizes(image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_]) -> None:
    """Raises VLFormerError unless the picture is HW3 and the mask HW of the same H and W, neither 0."""
    if image_HW3.shape != (*mask_HW.shape, 3) or image_HW3.size == 0:
        raise VLFormerError(
            f"a picture of shape {image_HW3.shape} and a mask of shape {mask_HW.shape} do not fit: give HW3 and HW"
        )


def save_mask_png(mask_HW: NDArray[np.bool_], path: Path, *, overwrite: bool = True) -> bool:
    """Writes an 8-bit grey PNG, 255 where the mask is; atomic. Raises VLFormerError where it cannot be written.

    Without `overwrite` a file that exists stays, and False is returned.
    """
    image = Image.fromarray(np.where(mask_HW, np.uint8(255), np.uint8(0)))
    return _save(image, path, format="PNG", overwrite=overwrite)


def save_image(image_HW3: NDArray[np.uint8], path: Path) -> None:
    """Writes the picture as the suffix of `path` says (png, jpg, jpeg, webp); atomic. Raises VLFormerError."""
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    chosen = formats.get(path.suffix.lower())
    if chosen is None:
        raise VLFormerError(f"{path} ends in {path.suffix or 'no suffix'!r}: use one of {', '.join(formats)}")
    _save(Image.fromarray(image_HW3), path, format=chosen)


def load_font(size: int) -> Font:
    """Pillow's bundled font, `size` pixels high: nothing to install, and the same on every machine."""
    return ImageFont.load_default(size=size)


def wrap_text(text: str, font: Font, width: int, max_lines: int) -> list[str]:
    """Lines of at most `width` pixels (or of one character); the last ends in an ellipsis where text is left over.

    White space of any kind parts words, and a word wider than a line is broken. `readable` goes first.
    """
    words = [part for word in readable(text, font).split() for part in _broken(word, font, width)]
    lines: list[str] = []
    for word in words:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        while lines[-1] and font.getlength(lines[-1] + "...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = lines[-1].rstrip() + "..."
    return lines or [""]


def readable(text: str, font: Font) -> str:
    """The text with every character that the font lacks replaced: by its plain letters, a hyphen, or its code point.

    >>> readable("the café — by\\n猫", load_font(12))
    'the cafe - by\\n[U+732B]'
    """
    missing = _glyph("\uffff", font)
    replaced = {
        c: c if c.isspace() or (c.isprintable() and _glyph(c, font) != missing) else _plain(c) for c in set(text)
    }
    return "".join(replaced[c] for c in text)


def line_height(size: int) -> int:
    """Pixels from one baseline to the next for text of `size` pixels."""
    return round(size * 1.35)


def _tint(image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_]) -> None:
    """Draws into `image_HW3`, working only on the part around the mask."""
    thickness = max(1.5, min(mask_HW.shape) / 260)
    reach = int(2 * thickness) + 2
    window = _window(mask_HW, reach)
    part, inside = image_HW3[window], mask_HW[window]
    tinted = cv2.addWeighted(part, 1 - TINT_SHARE, np.full_like(part, TINT), TINT_SHARE, 0)
    np.copyto(part, tinted, where=inside[..., None])
    # Distance to the mask's border, a half pixel outside its outermost pixels: a soft step of one pixel at each line
    distance = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5)
    band = (distance > 0) & (distance < reach)
    away = distance[band] - 0.5
    colours = part[band].astype(np.float32)
    for colour, end in ((EDGE, 1.6 * thickness), (RIM, thickness)):
        share = np.clip(end - away + 0.5, 0, 1)[:, None]
        colours += (np.array(colour, np.float32) - colours) * share
    part[band] = np.round(colours).astype(np.uint8)


def _window(mask_HW: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    slices = []
    for axis in (1, 0):
        used = np.flatnonzero(mask_HW.any(axis=axis))
        slices.append(slice(max(int(used[0]) - margin, 0), int(used[-1]) + margin + 1))
    return slices[0], slices[1]


def _with_caption(image_HW3: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    height, width = image_HW3.shape[:2]
    full = max(width, MIN_CAPTION_WIDTH)
    size = max(13, min(round(full / 26), 230))
    font, pad = load_font(size), round(size * 0.7)
    lines = wrap_text(caption, font, full - 2 * pad, MAX_CAPTION_LINES)
    canvas = Image.new("RGB", (full, height + 2 * pad + line_height(size) * len(lines)), PAPER)
    canvas.paste(Image.fromarray(image_HW3), ((full - width) // 2, 0))
    pen = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        pen.text((pad, height + pad + row * line_height(size)), line, fill=INK, font=font)
    return np.array(canvas)


def _broken(word: str, font: Font, width: int) -> list[str]:
    """The word in parts of at most `width` pixels or one character."""
    parts = [""]
    for character in word:
        if parts[-1] and font.getlength(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _plain(character: str) -> str:
    if unicodedata.category(character) == "Pd":
        return "-"
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return letters if letters.isprintable() and letters else f"[U+{ord(character):04X}]"


def _glyph(character: str, font: Font) -> tuple[object, bytes]:
    drawn = font.getmask(character)
    return drawn.size, bytes(drawn)


def _save(image: Image.Image, path: Path, *, format: str, overwrite: bool = True) -> bool:
    partial = path.parent / f".partial-{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            image.save(file, format=format, **({"quality": 92} if format != "PNG" else {}))
        return _publish(partial, path, overwrite)
    except OSError as error:
        why = "a folder is in its place" if path.is_dir() else error.strerror or one_line(error)
        raise VLFormerError(f"{path} cannot be written ({why}): choose another output folder") from error
    finally:
        with contextlib.suppress(OSError):  # gone by its renaming, or never made
            partial.unlink()


def _publish(partial: Path, path: Path, overwrite: bool) -> bool:
    """Gives a whole file its name; False where that is taken and must stay."""
    if overwrite or path.is_dir():
        partial.replace(path)
        return True
    try:
        path.hardlink_to(partial)  # unlike a renaming, it never replaces
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        partial.replace(path)
    return True
