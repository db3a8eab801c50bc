"""From silhouettes to a picture: colours, patterns, light, shadows and the faults of a camera.

Letters: H W pixels of the picture, h w pixels of one sprite at twice the size.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vlformer_cli.data.scenes.backgrounds import Field, Picture, background, rgb_of
from vlformer_cli.data.scenes.objects import COLOURS
from vlformer_cli.data.scenes.render import ZOOM, Sprite, window
from vlformer_cli.data.scenes.shapes import BODY, INK, coin, u

FIXED_TONES = (
    (38, 36, 40),
    (238, 236, 228),
    (172, 176, 182),
    (132, 88, 52),
    (74, 128, 58),
    (168, 206, 226),
    (250, 186, 48),
)
"""RGB of INK, PALE, METAL, WOOD, LEAF, GLASS and FLAME."""


def paint(
    rng: Generator, sprites: list[Sprite], width: int, height: int, backdrop_hw3: Picture | None = None
) -> Picture:
    """The RGB picture: background, objects with shadows, light and the faults of a camera.

    `backdrop_hw3`: a photograph at twice the size; None: a background is drawn.
    """
    if backdrop_hw3 is None:
        drawn = background(rng, width, height)
        canvas = np.asarray(
            cv2.resize(drawn, (width * ZOOM, height * ZOOM), interpolation=cv2.INTER_LINEAR), dtype=np.uint8
        )
    else:
        canvas = backdrop_hw3.copy()
    light = u(rng, 0, 2 * np.pi)
    shadow = u(rng, 0.15, 0.5) if coin(rng, 0.8) else 0.0
    depth = 0.0 if coin(rng, 0.15) else u(rng, 0.05, 0.35)
    tones = (u(rng, 0.55, 0.92), u(rng, 0.1, 0.5))
    for item in sprites:
        if item.fixed:
            continue
        if shadow:
            _cast(canvas, item, shadow, light)
        if item.pixels_hw3 is not None:
            _paste(canvas, item, item.pixels_hw3)
            continue
        on_canvas, in_sprite = window(item, canvas)
        solid = item.tones_hw[in_sprite] > 0
        canvas[on_canvas][solid] = _coloured(rng, item, light, depth, tones)[in_sprite][solid]
    return _expose(rng, cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA))


def _cast(canvas: Picture, item: Sprite, strength: float, light: float) -> None:
    """Darkens the canvas below and away from the light."""
    reach = 0.05 * item.draft.extent * ZOOM + 2
    shifted = Sprite(item.draft, item.tones_hw, item.x - round(reach * np.cos(light)), item.y + round(reach))
    soft = cv2.blur((item.tones_hw > 0).astype(np.float32), (7, 7))
    on_canvas, in_sprite = window(shifted, canvas)
    part = canvas[on_canvas]
    part[:] = (part * (1 - strength * soft[in_sprite])[..., None]).astype(np.uint8)


def _paste(canvas: Picture, item: Sprite, pixels_hw3: Picture) -> None:
    """A cut-out with a soft edge, so that no hard rim tells where it ends."""
    solid = (item.tones_hw > 0).astype(np.float32)
    soft = cv2.GaussianBlur(solid, (0, 0), 0.8 * ZOOM / 2) * solid
    on_canvas, in_sprite = window(item, canvas)
    alpha = soft[in_sprite][..., None]
    part = canvas[on_canvas]
    part[:] = (part * (1 - alpha) + pixels_hw3[in_sprite] * alpha).astype(np.uint8)


def _coloured(rng: Generator, item: Sprite, light: float, depth: float, tones: tuple[float, float]) -> Picture:
    """The sprite in colour: pattern on the body, light from one side, darker rims; `tones` are of TRIM and LIGHT."""
    main = rgb_of(*(u(rng, *span) for span in COLOURS[item.draft.colour]))
    bright = float(main @ np.array([0.3, 0.59, 0.11], dtype=np.float32))
    tint = main + (255 - main) * tones[1] if bright < 225 else main * 0.9
    palette = np.array(
        [(0, 0, 0), main, main * tones[0] + (8 if bright < 45 else 0), tint, *FIXED_TONES], dtype=np.float32
    )
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
    x, y = (
        np.arange(w, dtype=np.float32) + u(rng, 0, period),
        np.arange(h, dtype=np.float32)[:, None] + u(rng, 0, period),
    )
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
    gain = np.float32(u(rng, 0.84, 1.1)) + np.float32(fall) * (
        x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    )
    tint = rng.uniform(0.96, 1.04, 3).astype(np.float32)
    out = picture * (gain[..., None] * tint)
    if coin(rng, 0.7):
        out += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(u(rng, 1.0, 7.0))
    return np.asarray(np.clip(out, 0, 255), dtype=np.uint8)
