"""A contact sheet: expression, picture and mask in rows, for the README and the demo. Letters: H W pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vlformer_cli.report.overlay import (
    INK,
    PAPER,
    check_sizes,
    draw_overlay,
    line_height,
    load_font,
    wrap_text,
)
from vlformer_cli.types import VLFormerError

Row = tuple[str, NDArray[np.uint8], NDArray[np.bool_]]
"""Text, picture (HW3), mask (HW)."""

MARGIN, GAP = 36, 24
TEXT_WIDTH, CELL_WIDTH, CELL_HEIGHT = 280, 400, 300
TEXT_SIZE, HEAD_SIZE = 22, 15
GRID_WIDTH, GRID_HEIGHT, GRID_GAP, GRID_TEXT, GRID_LINES = 300, 225, 14, 17, 2
"""Pixels of a cell of the grid and its text, the space between cells, and lines of text."""
RULE, FAINT, NIGHT, MOON = (226, 228, 232), (120, 125, 133), (24, 27, 33), (250, 250, 250)


def contact_sheet(rows: Sequence[Row], *, panel: Literal["mask", "overlay"] = "mask") -> NDArray[np.uint8]:
    """The rows below each other, as one HW3 picture 1200 pixels wide: text, picture, and the mask alone or drawn over.

    Raises VLFormerError where there are no rows, or where a mask and its picture differ in size.
    """
    if not rows:
        raise VLFormerError("a contact sheet needs one row or more: give it a text, a picture and a mask")
    for _, image, mask in rows:
        check_sizes(image, mask)
    drawn = [_row(row, panel) for row in rows]
    top = MARGIN + line_height(HEAD_SIZE) + GAP // 2
    height = top + sum(cells.height + GAP for cells in drawn) + MARGIN - GAP // 2
    sheet = Image.new("RGB", (2 * MARGIN + _inner_width(), height), PAPER)
    _head(ImageDraw.Draw(sheet), panel)
    for cells in drawn:
        ImageDraw.Draw(sheet).line((MARGIN, top, sheet.width - MARGIN, top), fill=RULE)
        sheet.paste(cells, (MARGIN, top + GAP // 2))
        top += cells.height + GAP
    return np.array(sheet)


def overlay_grid(rows: Sequence[Row], *, columns: int = 5) -> NDArray[np.uint8]:
    """Each mask over its image with the expression below, `columns` in a row: one HW3 image that fits a screen.

    Raises VLFormerError where there are no rows, or where a mask and its image differ in size.
    """
    if not rows:
        raise VLFormerError("a grid needs one row or more: give it a text, an image and a mask")
    for _, image, mask in rows:
        check_sizes(image, mask)
    cells = [_grid_cell(row) for row in rows]
    width, height = cells[0].size
    lines = -(-len(cells) // columns)
    sheet = Image.new("RGB", (GRID_GAP + columns * (width + GRID_GAP), GRID_GAP + lines * (height + GRID_GAP)), PAPER)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (GRID_GAP + column * (width + GRID_GAP), GRID_GAP + row * (height + GRID_GAP)))
    return np.array(sheet)


def _grid_cell(row: Row) -> Image.Image:
    """The overlay, centered, and up to two lines of text."""
    text, image, mask = row
    font = load_font(GRID_TEXT)
    cell = Image.new("RGB", (GRID_WIDTH, GRID_HEIGHT + GRID_LINES * line_height(GRID_TEXT) + 6), PAPER)
    overlay = _overlay(image, mask, (GRID_WIDTH, GRID_HEIGHT))
    cell.paste(Image.fromarray(overlay), ((GRID_WIDTH - overlay.shape[1]) // 2, GRID_HEIGHT - overlay.shape[0]))
    pen = ImageDraw.Draw(cell)
    lines = [line for part in text.split("\n") for line in wrap_text(part, font, GRID_WIDTH, GRID_LINES)][:GRID_LINES]
    for number, line in enumerate(lines):
        left = (GRID_WIDTH - int(font.getlength(line))) // 2
        pen.text((max(0, left), GRID_HEIGHT + 6 + number * line_height(GRID_TEXT)), line, fill=INK, font=font)
    return cell


def _inner_width() -> int:
    return TEXT_WIDTH + 2 * (GAP + CELL_WIDTH)


def _columns() -> tuple[int, int, int]:
    return 0, TEXT_WIDTH + GAP, TEXT_WIDTH + 2 * GAP + CELL_WIDTH


def _head(pen: ImageDraw.ImageDraw, panel: str) -> None:
    font = load_font(HEAD_SIZE)
    for left, title in zip(_columns(), ("Expression", "Picture", panel.capitalize()), strict=True):
        pen.text((MARGIN + left, MARGIN), title, fill=FAINT, font=font)


def _row(row: Row, panel: str) -> Image.Image:
    text, image, mask = row
    pictures = [_fitted(image), _overlay(image, mask) if panel == "overlay" else _night(mask)]
    font = load_font(TEXT_SIZE)
    most = CELL_HEIGHT // line_height(TEXT_SIZE)
    lines = [line for part in text.split("\n") for line in wrap_text(part, font, TEXT_WIDTH, most)][:most]
    text_height = len(lines) * line_height(TEXT_SIZE)
    height = max(text_height, *(len(picture) for picture in pictures))
    cells = Image.new("RGB", (_inner_width(), height), PAPER)
    pen = ImageDraw.Draw(cells)
    for i, line in enumerate(lines):
        pen.text((0, (height - text_height) // 2 + i * line_height(TEXT_SIZE)), line, fill=INK, font=font)
    for left, picture in zip(_columns()[1:], pictures, strict=True):
        spare_y, spare_x = height - picture.shape[0], CELL_WIDTH - picture.shape[1]
        cells.paste(Image.fromarray(picture), (left + spare_x // 2, spare_y // 2))
    return cells


def _fitted(image_HW3: NDArray[np.uint8], cell: tuple[int, int] = (CELL_WIDTH, CELL_HEIGHT)) -> NDArray[np.uint8]:
    """The image at the largest size that fits into a cell (width, height), its shape kept."""
    height, width = image_HW3.shape[:2]
    scale = min(cell[0] / width, cell[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(image_HW3), size, interpolation=how), dtype=np.uint8)


def _night(mask_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The mask alone, light on dark, its edge softened by the scaling."""
    share_HW3 = _fitted(_grey(mask_HW)).astype(np.float32) / 255
    night, moon = np.array(NIGHT, np.float32), np.array(MOON, np.float32)
    return np.round(night + (moon - night) * share_HW3).astype(np.uint8)


def _overlay(
    image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_], cell: tuple[int, int] = (CELL_WIDTH, CELL_HEIGHT)
) -> NDArray[np.uint8]:
    """Scaled before it is drawn, so that the outline is equally crisp on every image."""
    return draw_overlay(_fitted(image_HW3, cell), _fitted(_grey(mask_HW), cell)[..., 0] > 127, caption=None)


def _grey(mask_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.repeat(np.where(mask_HW, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
