"""Backgrounds: muted textures, a floor and a wall, and clutter that is no named object."""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vlformer_cli.data.scenes.shapes import coin, u

Field: TypeAlias = NDArray[np.float32]
Picture: TypeAlias = NDArray[np.uint8]


def rgb_of(hue: float, saturation: float, value: float) -> Field:
    """RGB in 0..255 of a hue in degrees."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    shade = value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)
    return np.asarray(255.0 * shade, dtype=np.float32)


def background(rng: Generator, width: int, height: int) -> Picture:
    """An H x W x 3 background."""
    tone = _muted(rng)
    picture = _surface(rng, width, height, tone)
    if coin(rng, 0.45):
        horizon = int(height * u(rng, 0.3, 0.75))
        picture[horizon:] = _surface(rng, width, height, _muted(rng))[horizon:]
        if coin(rng):
            cv2.line(
                picture, (0, horizon), (width, horizon), tuple(float(c) * 0.6 for c in tone), int(rng.integers(1, 4))
            )
    if coin(rng, 0.5):
        _clutter(rng, picture)
    return picture


def _muted(rng: Generator) -> Field:
    saturation = u(rng, 0.25, 0.5) if coin(rng, 0.15) else u(rng, 0.0, 0.28)
    return rgb_of(u(rng, 0, 360), saturation, u(rng, 0.28, 0.95))


def _surface(rng: Generator, width: int, height: int, tone: Field) -> Picture:
    """One texture between a tone and a darker or lighter neighbour of it."""
    makers = (_flat, _gradient, _clouds, _stripes, _tiles, _planks)
    field = makers[int(rng.integers(len(makers)))](rng, width, height)
    other = tone * u(rng, 0.72, 1.25) + rng.uniform(-12, 12, 3).astype(np.float32)
    mixed = tone + field[..., None] * (other - tone)
    return np.asarray(np.clip(mixed, 0, 255), dtype=np.uint8)


def _flat(rng: Generator, width: int, height: int) -> Field:
    return np.zeros((height, width), dtype=np.float32)


def _ramp(rng: Generator, width: int, height: int, angle: float) -> Field:
    """Distance in pixels along a direction."""
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    return np.asarray(x[None] * np.float32(np.cos(angle)) + y[:, None] * np.float32(np.sin(angle)))


def _gradient(rng: Generator, width: int, height: int) -> Field:
    ramp = _ramp(rng, width, height, u(rng, 0, 2 * np.pi))
    return np.asarray((ramp - ramp.min()) / (np.ptp(ramp) + 1e-6))


def _clouds(rng: Generator, width: int, height: int) -> Field:
    total = np.zeros((height, width), dtype=np.float32)
    for cells in (4, 11, 29):
        coarse = rng.random((cells, cells), dtype=np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (4.0 / cells**0.8)
    return np.asarray(total / 2.0)


def _stripes(rng: Generator, width: int, height: int) -> Field:
    angle = (0.0, np.pi / 2, u(rng, 0, np.pi))[int(rng.integers(3))]
    wave = np.sin(_ramp(rng, width, height, angle) * np.float32(2 * np.pi / u(rng, 14, 48)))
    return np.asarray(wave > 0, dtype=np.float32) if coin(rng) else np.asarray(wave * 0.5 + 0.5, dtype=np.float32)


def _tiles(rng: Generator, width: int, height: int) -> Field:
    step = int(rng.integers(14, 44))
    x, y = np.arange(width), np.arange(height)[:, None]
    if coin(rng):
        return np.asarray((x // step + y // step) % 2, dtype=np.float32)
    return np.asarray((x % step < 2) | (y % step < 2), dtype=np.float32)


def _planks(rng: Generator, width: int, height: int) -> Field:
    step = int(rng.integers(16, 40))
    rows = np.arange(height) // step
    shade = rng.random(int(rows[-1]) + 1, dtype=np.float32)[rows]
    grain = cv2.resize(rng.random((height // 2, 6), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    seam = (np.arange(height) % step < 1).astype(np.float32)
    return np.asarray(shade[:, None] * 0.7 + grain * 0.6 + seam[:, None])


def _clutter(rng: Generator, picture: Picture) -> None:
    """Faint patches and lines, softened so that none looks like an object."""
    height, width = picture.shape[:2]
    layer = picture.copy()
    for _ in range(int(rng.integers(3, 12))):
        spot = (int(rng.integers(width)), int(rng.integers(height)))
        base = picture[spot[1], spot[0]].astype(float)
        colour: Any = tuple(float(c) for c in np.clip(base + rng.uniform(-45, 45) + rng.uniform(-14, 14, 3), 0, 255))
        reach = int(u(rng, 0.04, 0.2) * width)
        shape = int(rng.integers(3))
        if shape == 0:
            cv2.ellipse(layer, spot, (reach, int(reach * u(rng, 0.3, 1.0))), u(rng, 0, 180), 0, 360, colour, -1)
        elif shape == 1:
            cv2.fillPoly(
                layer, [(np.array(spot) + rng.integers(-reach - 2, reach + 3, (5, 2))).astype(np.int32)], colour
            )
        else:
            cv2.line(
                layer, spot, (int(rng.integers(width)), int(rng.integers(height))), colour, int(rng.integers(1, 5))
            )
    picture[:] = cv2.GaussianBlur(layer, (0, 0), u(rng, 0.6, 3.0))
