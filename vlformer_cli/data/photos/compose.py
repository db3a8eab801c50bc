"""Views of photographs: cropped, mirrored, side by side, or with cut-outs of others pasted in.

Objects move with their pixels, so that expressions can be derived from what is then seen. Letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vlformer_cli.data.flip import mirrored
from vlformer_cli.data.photos.names import CARRIED_BY_PEOPLE, CLOTHES
from vlformer_cli.data.photos.objects import Image, LabelledImage, Mask, Seen, extent

FEATHER = 1.2
"""Standard deviation in pixels of the soft edge of a cut-out."""
GAIN = (0.88, 1.12)
"""Brightness of a cut-out, relative to its own photograph."""
MENTIONED = 0.8
"""An object keeps its captions while at least this fraction of it is seen."""
NOT_CUT_OUT = frozenset({"dining table", "bed", "couch", "sink", "door", "stairs", "escalator", "lift", "oven", "bowl"})
"""Things that hold others, or have no outline of their own."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a photograph, and how it is shown."""

    left: float
    top: float
    width: float
    height: float
    mirrored: bool


def choose_window(rng: Generator, image: LabelledImage, *, aspect: float | None = None, whole: float = 0.35) -> Window:
    """A random part; `aspect`: its width / height (None: free). The whole photograph with chance `whole`."""
    height, width = image.size
    mirrored = bool(rng.random() < 0.5)
    if aspect is None:
        if rng.random() < whole:
            return Window(0, 0, width, height, mirrored)
        aspect = float(np.clip(width / height * np.exp(rng.uniform(-0.3, 0.3)), 0.6, 1.7))
    scale = float(rng.uniform(0.55, 1.0)) if rng.random() >= whole else 1.0
    fit = min(width, height * aspect) * scale
    w, h = fit, fit / aspect
    x, y = _corner(rng, image, (w, h))
    return Window(x, y, w, h, mirrored)


def _corner(rng: Generator, image: LabelledImage, size: tuple[float, float]) -> tuple[float, float]:
    """Around one of the objects: a window that shows nothing teaches nothing."""
    height, width = image.size
    free = width - size[0], height - size[1]
    if not image.objects:
        return float(rng.uniform(0, free[0] + 1e-9)), float(rng.uniform(0, free[1] + 1e-9))
    seen = extent(image.objects[int(rng.integers(len(image.objects)))].mask_HW)
    assert seen is not None  # annotations without a pixel are not read
    left, top, right, bottom = seen
    middle = (left + right - 1) / 2, (top + bottom - 1) / 2
    spots: list[float] = []
    for center, length, room in zip(middle, size, free, strict=True):
        start = center - length / 2 + float(rng.uniform(-0.35, 0.35)) * length
        spots.append(float(np.clip(start, 0.0, max(room, 0.0))))
    return spots[0], spots[1]


def show(image: LabelledImage, window: Window, size: tuple[int, int]) -> LabelledImage:
    """The window at `size` (height, width). Objects that are out of sight are left out."""
    height, width = image.size
    left, top = int(window.left), int(window.top)
    right, bottom = min(width, round(window.left + window.width)), min(height, round(window.top + window.height))
    cut = (slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1)))
    pixels_HW3 = _resized(image.pixels_HW3[cut], size, window.mirrored)
    ratio = size[0] * size[1] / _area(cut)
    kept: dict[int, Seen] = {}
    for number, one in enumerate(image.objects):
        mask_HW = _resized_mask(one.mask_HW[cut], size, window.mirrored)
        if mask_HW.any():
            captions = _turned(one.captions) if window.mirrored else one.captions
            kept[number] = replace(one, mask_HW=mask_HW, full_area=one.full_area * ratio, captions=captions)
    places = {old: new for new, old in enumerate(kept)}
    objects = [replace(one, owner=places.get(one.owner, -1)) for one in kept.values()]
    return LabelledImage(pixels_HW3, tuple(_without_lost_captions(objects)), image.labelled)


def _turned(captions: tuple[str, ...]) -> tuple[str, ...]:
    """With "left" and "right" swapped; without those of which the mirrored meaning is not sure."""
    return tuple(text for text in map(mirrored, captions) if text is not None)


def _area(cut: tuple[slice, slice]) -> int:
    return int((cut[0].stop - cut[0].start) * (cut[1].stop - cut[1].start))


def _without_lost_captions(objects: Sequence[Seen]) -> list[Seen]:
    """A caption means an object while it is well seen."""
    return [replace(one, captions=()) if one.captions and one.visible < MENTIONED else one for one in objects]


def _resized(pixels: Image, size: tuple[int, int], mirrored: bool) -> Image:
    shrinks = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(pixels), (size[1], size[0]), interpolation=how)
    return np.ascontiguousarray(resized[:, ::-1] if mirrored else resized, dtype=np.uint8)


def _resized_mask(mask_HW: Mask, size: tuple[int, int], mirrored: bool) -> Mask:
    if not mask_HW.any():
        return np.zeros(size, dtype=np.bool_)
    return np.asarray(_resized(mask_HW.astype(np.uint8) * np.uint8(255), size, mirrored) >= 128)


def side_by_side(tiles: Sequence[LabelledImage], columns: int) -> LabelledImage:
    """Pictures of one size in a grid, row by row (NeMo, arXiv 2411.01494, trains on such mosaics)."""
    height, width = tiles[0].size
    rows = len(tiles) // columns
    pixels_HW3 = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    objects: list[Seen] = []
    for number, tile in enumerate(tiles):
        top, left = number // columns * height, number % columns * width
        pixels_HW3[top : top + height, left : left + width] = tile.pixels_HW3
        first = len(objects)
        for one in tile.objects:
            mask_HW = np.zeros(pixels_HW3.shape[:2], dtype=np.bool_)
            mask_HW[top : top + height, left : left + width] = one.mask_HW
            owner = one.owner + first if one.owner >= 0 else -1
            objects.append(replace(one, mask_HW=mask_HW, owner=owner))
    labelled = frozenset.intersection(*[tile.labelled for tile in tiles])
    return LabelledImage(pixels_HW3, tuple(objects), labelled)


@dataclass(frozen=True, slots=True)
class CutOut:
    """An object that was cut out of its photograph."""

    seen: Seen
    """With the mask within the box."""
    pixels_hw3: Image


def cut_out(image: LabelledImage, number: int) -> CutOut:
    """Object `number` of an image."""
    one = image.objects[number]
    found = extent(one.mask_HW)
    assert found is not None
    left, top, right, bottom = found
    box = (slice(top, bottom), slice(left, right))
    seen = replace(one, mask_HW=one.mask_HW[box], owner=-1, captions=())
    return CutOut(seen, image.pixels_HW3[box])


def paste(
    rng: Generator, image: LabelledImage, cut: CutOut, *, share: float, spot: tuple[float, float]
) -> LabelledImage:
    """The cut-out in front of the image. `share`: of the image's area that its mask is to cover.

    `spot`: its center as fractions of the width and height. What it hides of other objects is taken off their masks.
    """
    height, width = image.size
    zoom = float(np.sqrt(share * height * width / max(int(np.count_nonzero(cut.seen.mask_HW)), 1)))
    size = max(2, round(cut.pixels_hw3.shape[0] * zoom)), max(2, round(cut.pixels_hw3.shape[1] * zoom))
    mirrored = bool(rng.random() < 0.5)
    pixels = np.clip(_resized(cut.pixels_hw3, size, mirrored) * float(rng.uniform(*GAIN)), 0, 255)
    small_mask = _resized_mask(cut.seen.mask_HW, size, mirrored)
    top, left = round(spot[1] * height - size[0] / 2), round(spot[0] * width - size[1] / 2)
    on_canvas, on_cut = _overlap(top, size[0], height), _overlap(left, size[1], width)
    if on_canvas is None or on_cut is None:
        return image
    (rows, from_rows), (columns, from_columns) = on_canvas, on_cut
    alpha = _soft_edge(small_mask)[from_rows, from_columns, None]
    blended = image.pixels_HW3[rows, columns] * (1 - alpha) + pixels[from_rows, from_columns] * alpha
    pixels_HW3 = image.pixels_HW3.copy()
    pixels_HW3[rows, columns] = np.clip(blended + 0.5, 0, 255).astype(np.uint8)
    mask_HW = np.zeros((height, width), dtype=np.bool_)
    mask_HW[rows, columns] = small_mask[from_rows, from_columns]
    behind = [replace(one, mask_HW=one.mask_HW & ~mask_HW) for one in image.objects]
    new = replace(cut.seen, mask_HW=mask_HW, full_area=cut.seen.full_area * zoom**2)
    unknown = CLOTHES | CARRIED_BY_PEOPLE if new.category == "person" else frozenset[str]()
    return LabelledImage(pixels_HW3, tuple(_without_lost_captions([*behind, new])), image.labelled - unknown)


def _soft_edge(mask_HW: Mask) -> NDArray[np.float32]:
    """How much of each pixel the cut-out covers: no pixel farther than one from its outline."""
    near_HW = cv2.dilate(mask_HW.view(np.uint8), np.ones((3, 3), np.uint8))
    soft_HW: NDArray[np.float32] = np.asarray(cv2.GaussianBlur(mask_HW.astype(np.float32), (0, 0), FEATHER) * near_HW)
    return soft_HW


def _overlap(start: int, length: int, room: int) -> tuple[slice, slice] | None:
    """The part of `room` that a piece covers, and the part of the piece; None where they do not meet."""
    first, last = max(start, 0), min(start + length, room)
    return (slice(first, last), slice(first - start, last - start)) if first < last else None
