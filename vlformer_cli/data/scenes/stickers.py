"""Pictures of things on transparent ground, in place of our own drawings: what others draw differently.

Letters: h w pixels of one sticker.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vlformer_cli.data.scenes.backgrounds import Field, Picture, rgb_of
from vlformer_cli.data.scenes.objects import COLOURS, KINDS
from vlformer_cli.data.scenes.photos import name_colour
from vlformer_cli.data.scenes.plan import Draft, pick
from vlformer_cli.data.scenes.render import ZOOM, Labels, Sprite, sprite
from vlformer_cli.data.scenes.shapes import BODY, coin, u
from vlformer_cli.types import VLFormerError

TINTED = 0.75  # of the stickers: they get the draft's colour in place of their own
DARK = 40.0  # brightness below which a sticker is a silhouette, without shades to keep
TURN = 12.0  # degrees to either side


@dataclass(frozen=True, slots=True)
class Sticker:
    """One picture, cut to what is not transparent."""

    pixels_hw3: Picture
    solid_hw: NDArray[np.uint8]
    """255 where it is opaque."""
    colour: str
    """That it comes with; empty where no one name fits."""


class Stickers:
    """The PNG files of a folder, in one folder for each kind that they show."""

    def __init__(self, folder: Path, share: float) -> None:
        """`share`: of the objects of the kinds that they show.

        Raises VLFormerError where there are none, a folder is not called as a kind is, or a file is no picture.
        """
        self.share = share
        self.of_kind: dict[str, list[Sticker]] = {}
        for path in sticker_files(folder):
            if path.parent.name not in KINDS:
                raise VLFormerError(f"{path.parent}: no kind of that name is drawn; there are: {', '.join(KINDS)}")
            self.of_kind.setdefault(path.parent.name, []).append(_read(path))
        if not self.of_kind:
            raise VLFormerError(f"{folder} holds no stickers: put PNG files into folders such as {folder / 'cup'}")


def sticker_files(folder: Path) -> list[Path]:
    """The PNG files in its folders, in order."""
    return sorted(path for path in folder.glob("*/*") if path.suffix.lower() == ".png")


def _read(path: Path) -> Sticker:
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if found is None or found.ndim != 3 or found.shape[2] != 4 or found.dtype != np.uint8:
        raise VLFormerError(
            f"{path} is no 8-bit picture with transparency: save it as a PNG file with an alpha channel"
        )
    solid = found[..., 3] > 127
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    if not len(rows):
        raise VLFormerError(f"{path} is transparent everywhere: take it out")
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    pixels = np.ascontiguousarray(found[window][..., 2::-1])
    return Sticker(pixels, solid[window].astype(np.uint8) * 255, name_colour(pixels[solid[window]]))


def drawn(rng: Generator, draft: Draft, outline: int, bent: float, stickers: Stickers | None) -> Sprite:
    """A sticker, or the kind's own drawing."""
    if stickers is None or draft.kind not in stickers.of_kind or not coin(rng, stickers.share):
        return sprite(rng, draft, outline, bent)
    chosen = pick(rng, stickers.of_kind[draft.kind])
    pixels, colour = chosen.pixels_hw3, chosen.colour
    if coin(rng, TINTED):
        colour = draft.colour
        pixels = _tinted(chosen, rgb_of(*(u(rng, *span) for span in COLOURS[colour])))
    pixels, tones = _turned(rng, pixels, chosen.solid_hw, draft.extent * ZOOM)
    spot = round(draft.x * ZOOM - tones.shape[1] / 2), round(draft.y * ZOOM - tones.shape[0] / 2)
    looks = Draft(draft.kind, colour, draft.size, "", draft.extent, draft.x, draft.y)
    return Sprite(looks, tones, *spot, pixels_hw3=pixels)


def _tinted(sticker: Sticker, main: Field) -> Picture:
    """The median brightness becomes the colour, what is darker or lighter a shade of it."""
    bright_hw = sticker.pixels_hw3.astype(np.float32) @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
    median = float(np.median(bright_hw[sticker.solid_hw > 0]))
    if median < DARK:
        return np.broadcast_to(main, sticker.pixels_hw3.shape).astype(np.uint8)
    part_hw1 = (bright_hw / median)[..., None]
    shade, glow = np.clip(part_hw1, 0.15, 1.0), np.clip((part_hw1 - 1) * 0.6, 0.0, 0.7)
    return np.asarray(np.clip(main * shade + (255 - main) * glow, 0, 255), dtype=np.uint8)


def _turned(rng: Generator, pixels: Picture, solid: NDArray[np.uint8], extent: float) -> tuple[Picture, Labels]:
    """Mirrored or not, turned a little, in slightly other proportions, its longer side `extent` pixels."""
    height, width = solid.shape
    zoom, aspect = extent / max(height, width), np.exp(u(rng, -0.14, 0.14))
    angle, flip = np.deg2rad(u(rng, -TURN, TURN)), -1 if coin(rng) else 1
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag([flip * min(aspect, 1.0), min(1 / aspect, 1.0)]) * zoom
    reach = np.abs(matrix) @ np.array([width, height]) / 2 + 1
    size = (2 * int(np.ceil(reach[0])), 2 * int(np.ceil(reach[1])))
    shift = np.array(size) / 2 - matrix @ np.array([width, height]) / 2
    matrix_23 = np.hstack([matrix, shift[:, None]])
    if zoom < 1:  # a warp skips pixels where it shrinks
        small = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        pixels, solid = (cv2.resize(one, small, interpolation=cv2.INTER_AREA) for one in (pixels, solid))
        matrix_23[:, 0] *= width / small[0]
        matrix_23[:, 1] *= height / small[1]
    turned = cv2.warpAffine(pixels, matrix_23, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.warpAffine(solid, matrix_23, size, flags=cv2.INTER_LINEAR)
    return np.asarray(turned, dtype=np.uint8), np.asarray((cover > 127) * np.uint8(BODY), dtype=np.uint8)
