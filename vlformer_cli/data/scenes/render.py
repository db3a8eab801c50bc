"""From drafts to pixels: silhouettes at twice the size, what hides what, and the painted picture.

Letters: H W pixels of the picture, h w pixels of one sprite at twice the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vlformer_cli.data.scenes.backgrounds import Field, Picture, background, rgb_of
from vlformer_cli.data.scenes.objects import COLOURS, KINDS, Scene, SceneObject
from vlformer_cli.data.scenes.plan import Draft
from vlformer_cli.data.scenes.shapes import BODY, INK, Part, Points, coin, u

Labels: TypeAlias = NDArray[np.uint8]

ZOOM = 2  # pixels are drawn at twice the size and averaged
NOBODY = 255  # in label maps: the background
SUBPIXEL = 4  # bits behind the point in OpenCV coordinates
FIXED_TONES = ((38, 36, 40), (238, 236, 228), (172, 176, 182), (132, 88, 52), (74, 128, 58), (168, 206, 226), (250, 186, 48))
"""RGB of INK, PALE, METAL, WOOD, LEAF, GLASS and FLAME."""


@dataclass(frozen=True, slots=True)
class Sprite:
    """One object drawn as tones (0 is transparent) at twice the size, and where its corner lies on the canvas."""

    draft: Draft
    tones_hw: Labels
    x: int
    y: int


def sprite(rng: Generator, draft: Draft, outline: int) -> Sprite:
    """Draws one object; `outline` is the width in pixels of the dark line round every part, or 0."""
    kind = KINDS[draft.kind]
    parts = kind.draw(rng)
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
    angle, aspect = np.deg2rad(u(rng, -most, most)), u(rng, 0.9, 1.1)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(rotation @ np.diag([(1 if coin(rng) else -1) * min(aspect, 1.0), min(1 / aspect, 1.0)]))


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


def _window(item: Sprite, labels: Labels) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a sprite lies on the canvas, and which part of the sprite that is."""
    (h, w), (height, width) = item.tones_hw.shape, labels.shape[:2]
    x0, y0, x1, y1 = max(item.x, 0), max(item.y, 0), min(item.x + w, width), min(item.y + h, height)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - item.y, y1 - item.y), slice(x0 - item.x, x1 - item.x))


def stack(sprites: list[Sprite], width: int, height: int) -> Labels:
    """Which sprite is seen at each pixel of the doubled canvas: later ones hide earlier ones."""
    labels = np.full((height * ZOOM, width * ZOOM), NOBODY, dtype=np.uint8)
    for index, item in enumerate(sprites):
        on_canvas, in_sprite = _window(item, labels)
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
    objects = tuple(_describe_one(i, item, labels, small_HW, len(sprites)) for i, item in enumerate(sprites))
    return Scene(image_id, small_HW.shape[1], small_HW.shape[0], objects)


def _describe_one(index: int, item: Sprite, labels: Labels, small_HW: Labels, count: int) -> SceneObject:
    on_canvas, in_sprite = _window(item, labels)
    solid = item.tones_hw > 0
    full = int(np.count_nonzero(solid))
    seen = np.bincount(labels[on_canvas][solid[in_sprite]], minlength=count)
    hidden = tuple((j, round(float(seen[j]) / full, 4)) for j in range(index + 1, count) if seen[j])
    mask = small_HW == index
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    box = (0, 0, 0, 0)
    if len(columns):
        box = (int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)
    draft = item.draft
    return SceneObject(
        kind=draft.kind,
        colour=draft.colour,
        size=draft.size,
        pattern=draft.pattern,
        extent=round(draft.extent, 2),
        cx=box[0] + box[2] / 2,
        cy=box[1] + box[3] / 2,
        bbox=tuple(float(side) for side in box),  # type: ignore[arg-type]
        depth=index,
        area=int(np.count_nonzero(mask)),
        full_area=round(full / ZOOM**2),
        hidden_by=hidden,
    )


def paint(rng: Generator, sprites: list[Sprite], width: int, height: int) -> Picture:
    """The RGB picture: background, objects with shadows, light and the faults of a camera."""
    backdrop = background(rng, width, height)
    canvas = cv2.resize(backdrop, (width * ZOOM, height * ZOOM), interpolation=cv2.INTER_LINEAR)
    light = u(rng, 0, 2 * np.pi)
    shadow = u(rng, 0.15, 0.5) if coin(rng, 0.8) else 0.0
    depth = u(rng, 0.05, 0.35)
    for item in sprites:
        if shadow:
            _cast(canvas, item, shadow, light)
        on_canvas, in_sprite = _window(item, canvas)
        solid = item.tones_hw[in_sprite] > 0
        canvas[on_canvas][solid] = _coloured(rng, item, light, depth)[in_sprite][solid]
    return _expose(rng, cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA))


def _cast(canvas: Picture, item: Sprite, strength: float, light: float) -> None:
    """Darkens the canvas below and away from the light."""
    reach = 0.05 * item.draft.extent * ZOOM + 2
    shifted = Sprite(item.draft, item.tones_hw, item.x - round(reach * np.cos(light)), item.y + round(reach))
    soft = cv2.blur((item.tones_hw > 0).astype(np.float32), (7, 7))
    on_canvas, in_sprite = _window(shifted, canvas)
    part = canvas[on_canvas]
    part[:] = (part * (1 - strength * soft[in_sprite])[..., None]).astype(np.uint8)


def _coloured(rng: Generator, item: Sprite, light: float, depth: float) -> Picture:
    """The sprite in colour: pattern on the body, light from one side, darker rims."""
    main = rgb_of(*(u(rng, *span) for span in COLOURS[item.draft.colour]))
    bright = float(main @ np.array([0.3, 0.59, 0.11], dtype=np.float32))
    tint = main + (255 - main) * 0.35 if bright < 225 else main * 0.9
    palette = np.array([(0, 0, 0), main, main * 0.72 + (8 if bright < 45 else 0), tint, *FIXED_TONES], dtype=np.float32)
    palette[INK:] *= rng.uniform(0.9, 1.07, (len(palette) - INK, 1))
    colour = palette[item.tones_hw]
    if item.draft.pattern != "plain":
        marks = _pattern(rng, item) & (item.tones_hw == BODY)
        colour[marks] = _contrast(rng, main, bright)
    h, w = item.tones_hw.shape
    x, y = np.linspace(-1, 1, w, dtype=np.float32), np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    shade = 1.0 + depth * (x * np.float32(np.cos(light)) - np.abs(y * np.float32(np.sin(light))) * np.sign(y)) * 0.6
    shade *= 1.0 - depth * 0.6 * (1.0 - cv2.blur((item.tones_hw > 0).astype(np.float32), (9, 9)))
    return np.asarray(np.clip(colour * shade[..., None], 0, 255), dtype=np.uint8)


def _contrast(rng: Generator, main: Field, bright: float) -> Field:
    """The second colour of a pattern: nearly white on dark colours, dark on light ones."""
    if bright > 150 or (bright > 100 and coin(rng, 0.4)):
        return np.asarray(main * u(rng, 0.3, 0.45), dtype=np.float32)
    return np.asarray(main + (250 - main) * u(rng, 0.72, 0.92), dtype=np.float32)


def _pattern(rng: Generator, item: Sprite) -> NDArray[np.bool_]:
    """True where the pattern's second colour goes."""
    h, w = item.tones_hw.shape
    period = max(5.5, item.draft.extent * u(rng, 0.15, 0.24)) * ZOOM
    angle = u(rng, 0, np.pi) if coin(rng, 0.4) else (0.0, np.pi / 2)[int(rng.integers(2))]
    x, y = np.arange(w, dtype=np.float32) + u(rng, 0, period), np.arange(h, dtype=np.float32)[:, None] + u(rng, 0, period)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    a, b = (x * cos + y * sin) / period, (y * cos - x * sin) / period
    if item.draft.pattern == "striped":
        return np.asarray(a % 1 < u(rng, 0.35, 0.5))
    if item.draft.pattern == "checked":
        return np.asarray((np.floor(a * 1.6) + np.floor(b * 1.6)) % 2 == 0)
    b = b + 0.5 * (np.floor(a) % 2)
    return np.asarray((a % 1 - 0.5) ** 2 + (b % 1 - 0.5) ** 2 < u(rng, 0.27, 0.34) ** 2)


def _expose(rng: Generator, picture: Picture) -> Picture:
    """Lighting over the whole picture, a soft lens, a tint and noise."""
    height, width = picture.shape[:2]
    if coin(rng, 0.25):
        factor = u(rng, 0.6, 0.9)
        small = cv2.resize(picture, (int(width * factor), int(height * factor)), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    elif coin(rng, 0.4):
        picture = cv2.GaussianBlur(picture, (0, 0), u(rng, 0.3, 0.8))
    angle, fall = u(rng, 0, 2 * np.pi), u(rng, 0, 0.14)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    gain = np.float32(u(rng, 0.84, 1.1)) + np.float32(fall) * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))
    tint = rng.uniform(0.96, 1.04, 3).astype(np.float32)
    out = picture * (gain[..., None] * tint)
    if coin(rng, 0.7):
        out += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(u(rng, 1.0, 7.0))
    return np.asarray(np.clip(out, 0, 255), dtype=np.uint8)
