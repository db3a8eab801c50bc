"""From drafts to silhouettes at twice the size, and what hides what.

Letters: H W pixels of the picture, h w pixels of one sprite at twice the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vlformer_cli.data.scenes.objects import KINDS, Scene, SceneObject
from vlformer_cli.data.scenes.plan import Draft
from vlformer_cli.data.scenes.shapes import INK, Part, Points, coin, u

Labels: TypeAlias = NDArray[np.uint8]

ZOOM = 2  # pixels are drawn at twice the size and averaged
NOBODY = 255  # in label maps: the background
SUBPIXEL = 4  # bits behind the point in OpenCV coordinates


@dataclass(frozen=True, slots=True)
class Sprite:
    """One object drawn as tones (0 is transparent) at twice the size, and where its corner lies on the canvas."""

    draft: Draft
    tones_hw: Labels
    x: int
    y: int
    pixels_hw3: NDArray[np.uint8] | None = None
    """Of a cut-out, which is pasted as it is; None: the tones are painted in the draft's colour."""
    fixed: bool = False
    """It is part of the photograph in the background, and neither painted nor taken away."""


def sprite(rng: Generator, draft: Draft, outline: int, bent: float = 0.0) -> Sprite:
    """Draws one object; `outline` is the width in pixels of the dark line round every part, or 0.

    `bent`: how far its outline departs from the kind's own, from 0 to 1.
    """
    kind = KINDS[draft.kind]
    parts = kind.draw(rng)
    if bent > 0:
        parts = _bent(rng, parts, bent)
    corners = np.concatenate([part.points for part in parts])
    low, high = corners.min(0), corners.max(0)
    scale = draft.extent * ZOOM / float((high - low).max())
    matrix = _turn(rng, kind.turn) * scale
    placed = [(part.points - (low + high) / 2) @ matrix.T for part in parts]
    stroke = int(np.ceil(scale * max(part.width for part in parts) / 2)) + outline + 1
    reach = np.ceil(np.abs(np.concatenate(placed)).max(0)).astype(int) + stroke
    tones = np.zeros((2 * reach[1], 2 * reach[0]), dtype=np.uint8)
    for part, points in zip(parts, placed, strict=True):
        _draw(tones, part, points + reach, scale, outline)
    return Sprite(draft, tones, round(draft.x * ZOOM) - int(reach[0]), round(draft.y * ZOOM) - int(reach[1]))


def _turn(rng: Generator, most: float) -> Points:
    """A small rotation after a mirroring and a change of aspect."""
    angle, aspect = np.deg2rad(u(rng, -most, most)), u(rng, 0.87, 1.15)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(rotation @ np.diag([(1 if coin(rng) else -1) * min(aspect, 1.0), min(1 / aspect, 1.0)]))


def _bent(rng: Generator, parts: list[Part], bent: float) -> list[Part]:
    """The parts in other proportions, slanted, and with one slow wave along each axis, all together."""
    corners = np.concatenate([part.points for part in parts])
    middle, size = (corners.min(0) + corners.max(0)) / 2, float(np.ptp(corners, axis=0).max())
    stretch = np.exp(np.array([1, -1]) * u(rng, -0.3, 0.3) * bent)
    slant = np.array([[1.0, u(rng, -0.2, 0.2) * bent], [0.0, 1.0]])
    height_2, count_2 = rng.uniform(-0.06, 0.06, 2) * bent * size, rng.uniform(0.5, 1.6, 2)
    begin_2, swell = rng.uniform(0, 2 * np.pi, 2), u(rng, -0.35, 0.35) * bent

    def moved(points: Points) -> Points:
        out = (points - middle) * stretch
        out[:, 0] *= 1 + swell * out[:, 1] / size  # wider above or below
        out += height_2 * np.sin(2 * np.pi * count_2 * out[:, ::-1] / size + begin_2)
        return np.asarray(out @ slant.T)

    width = np.exp(u(rng, -0.4, 0.4) * bent)
    return [Part(part.tone, moved(part.points), part.width * width) for part in parts]


def _draw(tones: Labels, part: Part, points: Points, scale: float, outline: int) -> None:
    corners = [np.round(points * (1 << SUBPIXEL)).astype(np.int32)]
    if part.width > 0:
        width = max(ZOOM, round(part.width * scale))
        if outline and width > 2 * ZOOM:
            cv2.polylines(tones, corners, False, INK, width + outline, cv2.LINE_8, SUBPIXEL)
        cv2.polylines(tones, corners, False, part.tone, width, cv2.LINE_8, SUBPIXEL)
        return
    cv2.fillPoly(tones, corners, part.tone, cv2.LINE_8, SUBPIXEL)
    if outline:
        cv2.polylines(tones, corners, True, INK, outline, cv2.LINE_8, SUBPIXEL)


def window(item: Sprite, labels: Labels) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a sprite lies on the canvas, and which part of the sprite that is."""
    (h, w), (height, width) = item.tones_hw.shape, labels.shape[:2]
    x0, y0, x1, y1 = max(item.x, 0), max(item.y, 0), min(item.x + w, width), min(item.y + h, height)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - item.y, y1 - item.y), slice(x0 - item.x, x1 - item.x))


def stack(sprites: list[Sprite], width: int, height: int) -> Labels:
    """Which sprite is seen at each pixel of the doubled canvas: later ones hide earlier ones."""
    labels = np.full((height * ZOOM, width * ZOOM), NOBODY, dtype=np.uint8)
    for index, item in enumerate(sprites):
        on_canvas, in_sprite = window(item, labels)
        labels[on_canvas][item.tones_hw[in_sprite] > 0] = index
    return labels


def shrink(labels: Labels, count: int) -> Labels:
    """The label map of the picture: a pixel belongs to the nearest object that covers at least half of it."""
    height, width = labels.shape[0] // ZOOM, labels.shape[1] // ZOOM
    quarters = [labels[dy::ZOOM, dx::ZOOM] for dy in range(ZOOM) for dx in range(ZOOM)]
    small = np.full((height, width), NOBODY, dtype=np.uint8)
    for index in range(count):
        cover = sum((quarter == index).view(np.uint8) for quarter in quarters)
        small[cover >= ZOOM * ZOOM // 2] = index
    return small


def describe(sprites: list[Sprite], labels: Labels, small_HW: Labels, image_id: int) -> Scene:
    """The scene that was stacked; an object of which nothing is seen has an area of 0."""
    objects = tuple(_describe_one(i, sprites, labels, small_HW) for i in range(len(sprites)))
    return Scene(image_id, small_HW.shape[1], small_HW.shape[0], objects)


def _describe_one(index: int, sprites: list[Sprite], labels: Labels, small_HW: Labels) -> SceneObject:
    item = sprites[index]
    on_canvas, in_sprite = window(item, labels)
    solid = item.tones_hw > 0
    full = int(np.count_nonzero(solid))
    seen = np.bincount(labels[on_canvas][solid[in_sprite]], minlength=len(sprites))
    hidden = tuple((j, round(float(seen[j]) / full, 4)) for j in range(index + 1, len(sprites)) if seen[j])
    if item.fixed:  # which of two things of a photograph is in front is not annotated
        hidden = tuple((j, part) for j, part in hidden if not sprites[j].fixed)
    mask = small_HW == index
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    box = (0.0, 0.0, 0.0, 0.0)
    if len(columns):
        x, y = float(columns[0]), float(rows[0])
        box = (x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y)
    draft = item.draft
    return SceneObject(
        kind=draft.kind,
        colour=draft.colour,
        size=draft.size,
        pattern=draft.pattern,
        extent=round(draft.extent, 2),
        cx=box[0] + box[2] / 2,
        cy=box[1] + box[3] / 2,
        bbox=box,
        depth=index,
        area=int(np.count_nonzero(mask)),
        full_area=round(full / ZOOM**2),
        hidden_by=hidden,
    )
