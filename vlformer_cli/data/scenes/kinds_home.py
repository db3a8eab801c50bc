"""Drawings of things found in a house: one function a kind, its canonical outline with some variation."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from vlformer_cli.data.scenes.shapes import (
    BODY,
    FLAME,
    GLASS,
    HOLE,
    INK,
    LEAF,
    LIGHT,
    METAL,
    PALE,
    TRIM,
    WOOD,
    Kind,
    Part,
    arc,
    blob,
    coin,
    disc,
    fill,
    line,
    mirrored,
    rect,
    ring,
    soft_rect,
    u,
    wedge,
)


def cup(rng: Generator) -> list[Part]:
    w, foot, h = u(rng, 0.5, 0.65), u(rng, 0.68, 1.0), u(rng, 0.5, 0.66)
    handle = arc(TRIM, w * 0.93, 0.0, u(rng, 0.28, 0.38), h * 0.6, -95, 95, u(rng, 0.12, 0.17))
    body = fill(BODY, (-w, -h), (w, -h), (w * foot, h), (-w * foot, h))
    bottom = wedge(BODY, 0, h, w * foot, 0.12, 0, 180)
    return [handle, bottom, body, disc(LIGHT, 0, -h, w, 0.15), disc(TRIM, 0, -h + 0.02, w * 0.86, 0.1)]


def bottle(rng: Generator) -> list[Part]:
    neck, w, shoulder = u(rng, 0.13, 0.2), u(rng, 0.34, 0.46), u(rng, -0.45, -0.1)
    right = [(neck, -1.0), (neck, shoulder - 0.25), (w * 0.8, shoulder - 0.02), (w, shoulder + 0.2)]
    parts = [mirrored(BODY, *right, (w, 1.05), (w * 0.92, 1.12), smooth=False)]
    parts.append(rect(INK if coin(rng) else TRIM, -neck * 1.25, -1.2, neck * 1.25, -0.95))
    if coin(rng):
        parts.append(rect(PALE, -w, 0.3, w, 0.3 + u(rng, 0.2, 0.4)))
    return parts


def book(rng: Generator) -> list[Part]:
    w, h, depth = u(rng, 0.6, 0.75), u(rng, 0.8, 1.0), u(rng, 0.12, 0.22)
    pages = fill(PALE, (-w, h), (w, h), (w + depth, h - depth), (w + depth, -h - depth), (w, -h))
    back = fill(
        TRIM, (-w, h), (-w, h + 0.07), (w + 0.02, h + 0.07), (w + depth, h - depth + 0.07), (w + depth, h - depth)
    )
    parts = [back, pages, rect(BODY, -w, -h, w, h), rect(TRIM, -w, -h, -w + 0.2, h)]
    edge = line(INK, 0.04, (w, h), (w + depth, h - depth), (w + depth, -h - depth), (w, -h), (w, h))
    if coin(rng):
        parts.append(rect(PALE, -w * 0.4, -h * 0.62, w * 0.7, -h * 0.3))
    return [*parts, edge]


def chair(rng: Generator) -> list[Part]:
    w, seat, back, legs = u(rng, 0.45, 0.58), u(rng, 0.1, 0.2), u(rng, -1.1, -0.9), WOOD if coin(rng, 0.4) else TRIM
    thick = u(rng, 0.1, 0.15)
    feet = [(-w, 1.05), (w, 1.05), (-w + 0.25, 0.85), (w + 0.22, 0.85)]
    parts = [line(legs, thick, (x, 0.2), (x, y)) for x, y in feet]
    parts.append(soft_rect(BODY, -w + 0.2, back, w + 0.25, -0.1, 0.12))
    if coin(rng):
        parts += [rect(HOLE, x, back + 0.18, x + 0.14, -0.12) for x in (-w + 0.36, 0.0, w - 0.1)]
    parts += [line(legs, thick, (x, -0.3), (x, 0.1)) for x in (-w + 0.28, w + 0.18)]
    front = fill(TRIM, (-w - 0.07, 0.1), (w + 0.07, 0.1), (w + 0.07, 0.1 + seat), (-w - 0.07, 0.1 + seat))
    return [*parts, fill(BODY, (-w + 0.2, -0.14), (w + 0.28, -0.14), (w + 0.07, 0.14), (-w - 0.07, 0.14)), front]


def lamp(rng: Generator) -> list[Part]:
    top, low, h = u(rng, 0.22, 0.4), u(rng, 0.6, 0.78), u(rng, 0.6, 0.85)
    stand = METAL if coin(rng) else TRIM
    shade = fill(BODY, (-top, -1.0), (top, -1.0), (low, -1.0 + h), (-low, -1.0 + h))
    pole = line(stand, u(rng, 0.09, 0.15), (0, -0.4), (0, 0.9))
    base = wedge(stand, 0, 1.0, u(rng, 0.4, 0.55), 0.24, 180, 360)
    parts = [pole, base, disc(FLAME, 0, -1.0 + h, low * 0.6, 0.1), shade]
    return [*parts, disc(stand, 0, 0.35, 0.2, 0.28)] if coin(rng, 0.4) else parts


def key(rng: Generator) -> list[Part]:
    r, thick = u(rng, 0.34, 0.42), u(rng, 0.09, 0.12)
    teeth = [rect(BODY, x, thick * 0.5, x + 0.13, thick + u(rng, 0.2, 0.32)) for x in (0.72, 0.95)]
    bow = disc(BODY, -0.7, 0, r) if coin(rng, 0.7) else soft_rect(BODY, -0.7 - r, -r, -0.7 + r, r, 0.12)
    return [bow, disc(HOLE, -0.74, 0, r * 0.5), rect(BODY, -0.4, -thick, 1.12, thick), *teeth]


def hat(rng: Generator) -> list[Part]:
    style, w = int(rng.integers(3)), u(rng, 0.48, 0.6)
    if style == 0:  # top hat
        h = u(rng, 0.9, 1.1)
        crown = fill(BODY, (-w, -h), (w, -h), (w * 0.88, 0.2), (-w * 0.88, 0.2))
        band = rect(INK if coin(rng) else TRIM, -w * 0.9, -0.1, w * 0.9, 0.14)
        return [disc(BODY, 0, 0.2, 1.0, 0.22), crown, disc(LIGHT, 0, -h, w, 0.1), band]
    if style == 1:  # baseball cap
        visor = blob(TRIM, (0.45, 0.12), (1.0, 0.2), (1.3, 0.38), (0.9, 0.4), (0.3, 0.34))
        dome = wedge(BODY, 0, 0.3, 0.8, u(rng, 0.75, 0.95), 180, 360)
        return [visor, dome, arc(TRIM, 0, 0.3, 0.3, 0.8, 180, 360, 0.05), disc(TRIM, 0, -0.55, 0.1, 0.08)]
    brim = disc(BODY, 0, 0.3, 1.15, u(rng, 0.22, 0.32))  # sun hat
    dome = Part(BODY, ring(0, 0.25, w, u(rng, 0.65, 0.8), 180, 360))
    return [brim, arc(TRIM, 0, 0.3, 1.0, 0.2, 0, 180, 0.04), dome, rect(PALE if coin(rng) else INK, -w, 0.06, w, 0.26)]


def box(rng: Generator) -> list[Part]:
    w, h, dx, dy = u(rng, 0.6, 0.8), u(rng, 0.5, 0.75), u(rng, 0.25, 0.45), u(rng, 0.25, 0.4)
    top = fill(LIGHT, (-w, -h), (-w + dx, -h - dy), (w + dx, -h - dy), (w, -h))
    side = fill(TRIM, (w, -h), (w + dx, -h - dy), (w + dx, h - dy), (w, h))
    parts = [rect(BODY, -w, -h, w, h), top, side]
    if coin(rng):
        parts.append(fill(PALE, (-0.12, -h), (-0.12 + dx, -h - dy), (0.12 + dx, -h - dy), (0.12, -h)))
        parts.append(rect(PALE, -0.12, -h, 0.12, -h + 0.3))
    edges = line(INK, 0.03, (-w, -h), (w, -h), (w, h), (w, -h), (w + dx, -h - dy))
    return [*parts, edges]


def clock(rng: Generator) -> list[Part]:
    r = 0.92
    rim = soft_rect(BODY, -r, -r, r, r, 0.2) if coin(rng, 0.25) else disc(BODY, 0, 0, r)
    face = r * u(rng, 0.66, 0.75)
    feet = [line(TRIM, 0.15, (s * 0.5, 0.7), (s * 0.7, 1.05)) for s in (-1, 1)]
    bells = [wedge(TRIM, s * 0.55, -0.8, 0.36, 0.34, 150 + 30 * s, 330 + 30 * s) for s in (-1, 1)]
    hour, minute = np.deg2rad([u(rng, 0, 360), u(rng, 0, 360)])
    ticks = [
        rect(INK, x - 0.05, y - 0.05, x + 0.05, y + 0.05) for x, y in ring(0, 0, face * 0.85, face * 0.85, 0, 330, 12)
    ]
    hands = [
        line(INK, 0.11, (0, 0), (0.36 * float(np.cos(hour)), 0.36 * float(np.sin(hour)))),
        line(INK, 0.08, (0, 0), (0.52 * float(np.cos(minute)), 0.52 * float(np.sin(minute)))),
    ]
    extras = [*feet, *bells] if coin(rng, 0.45) else []
    return [*extras, rim, disc(PALE, 0, 0, face), *ticks, *hands]


def plate(rng: Generator) -> list[Part]:
    flat = u(rng, 0.55, 1.0)
    well = u(rng, 0.55, 0.66)
    rim = arc(LIGHT if coin(rng) else TRIM, 0, 0, 0.93, 0.93 * flat, 0, 360, 0.07)
    shade = disc(TRIM, 0, 0, well, well * flat)
    return [disc(BODY, 0, 0, 1.0, flat), rim, shade, disc(BODY, 0, 0.04, well - 0.03, (well - 0.03) * flat)]


def spoon(rng: Generator) -> list[Part]:
    w, end = u(rng, 0.24, 0.31), u(rng, 0.08, 0.13)
    handle = fill(BODY, (-0.055, -0.4), (0.055, -0.4), (end, 1.15), (0, 1.22), (-end, 1.15))
    bowl = blob(BODY, (0, -1.15), (w, -0.8), (w * 0.7, -0.42), (0, -0.28), (-w * 0.7, -0.42), (-w, -0.8))
    return [handle, bowl, disc(TRIM, 0, -0.74, w * 0.66, 0.3), disc(LIGHT, 0.02, -0.7, w * 0.55, 0.24)]


def phone(rng: Generator) -> list[Part]:
    w, corner = u(rng, 0.5, 0.58), u(rng, 0.08, 0.16)
    parts = [soft_rect(BODY, -w, -1, w, 1, corner)]
    if coin(rng, 0.7):
        screen = rect(GLASS if coin(rng) else INK, -w + 0.12, -0.76, w - 0.12, 0.7)
        return [*parts, screen, disc(PALE, 0, 0.85, 0.09), line(INK, 0.05, (-0.12, -0.88), (0.12, -0.88))]
    lens = [disc(GLASS, -w + 0.3, y, 0.1) for y in (-0.72, -0.42)]
    return [*parts, soft_rect(INK, -w + 0.14, -0.9, -w + 0.46, -0.24, 0.1), *lens]


def table(rng: Generator) -> list[Part]:
    slab, leg = u(rng, 0.1, 0.16), u(rng, 0.1, 0.15)
    legs = [line(TRIM, leg, (x, 0), (x * 1.02, y)) for x, y in ((-0.95, 0.85), (0.95, 0.85), (-0.6, 0.55), (0.6, 0.55))]
    top = fill(BODY, (-0.75, -0.5), (0.75, -0.5), (1.1, 0), (-1.1, 0))
    return [*legs, top, rect(TRIM, -1.1, -0.01, 1.1, slab)]


def teapot(rng: Generator) -> list[Part]:
    h = u(rng, 0.55, 0.68)
    spout = blob(BODY, (0.5, 0.35), (0.95, -0.1), (1.15, -0.5), (1.3, -0.45), (1.05, 0.1), (0.7, 0.5))
    handle = arc(TRIM, -0.65, 0.0, 0.45, 0.38, 80, 280, 0.13)
    lid = [wedge(TRIM, 0, -h + 0.1, 0.42, 0.2, 180, 360), disc(TRIM, 0, -h - 0.16, 0.11)]
    return [spout, handle, disc(BODY, 0, 0, 0.8, h), *lid, rect(TRIM, -0.42, h - 0.1, 0.42, h + 0.06)]


def candle(rng: Generator) -> list[Part]:
    w, top = u(rng, 0.24, 0.36), u(rng, -0.5, -0.2)
    flame = blob(FLAME, (0, top - 0.75), (0.15, top - 0.38), (0, top - 0.14), (-0.15, top - 0.38))
    wick = line(INK, 0.05, (0, top - 0.25), (0, top))
    body = [rect(BODY, -w, top, w, 1), disc(LIGHT, 0, top, w, 0.09)]
    holder = [disc(METAL, 0, 1.0, w * 2, 0.16)] if coin(rng) else []
    return [*holder, wick, flame, *body]


def vase(rng: Generator) -> list[Part]:
    neck, belly, foot = u(rng, 0.2, 0.32), u(rng, 0.55, 0.72), u(rng, 0.26, 0.38)
    lip = neck + u(rng, 0.08, 0.2)
    right = [
        (lip, -1.0),
        (neck, -0.7),
        (belly * 0.85, -0.2),
        (belly, 0.2),
        (belly * 0.75, 0.65),
        (foot, 0.95),
        (foot, 1.02),
    ]
    return [mirrored(BODY, *right), disc(TRIM, 0, -0.98, lip, 0.1)]


def pot(rng: Generator) -> list[Part]:
    w, leaves = u(rng, 0.45, 0.58), int(rng.integers(5, 8))
    parts = []
    for angle in np.linspace(-65, 65, leaves):
        tip_x, tip_y = (
            0.75 * float(np.sin(np.deg2rad(angle))),
            -0.1 - u(rng, 0.7, 0.95) * float(np.cos(np.deg2rad(angle))),
        )
        side = 0.16
        parts.append(
            blob(
                LEAF, (0, 0.1), (tip_x * 0.55 + side, tip_y * 0.55), (tip_x, tip_y), (tip_x * 0.55 - side, tip_y * 0.55)
            )
        )
    body = fill(BODY, (-w * 0.9, 0.2), (w * 0.9, 0.2), (w * 0.65, 1.0), (-w * 0.65, 1.0))
    return [*parts, body, rect(TRIM, -w, 0.02, w, 0.26)]


HOME: dict[str, Kind] = {
    "cup": Kind(cup),
    "bottle": Kind(bottle),
    "book": Kind(book, turn=20),
    "chair": Kind(chair, turn=5),
    "lamp": Kind(lamp, turn=6),
    "key": Kind(key, patterned=False, turn=60, scale=1.1),
    "hat": Kind(hat, turn=12),
    "box": Kind(box, turn=8),
    "clock": Kind(clock, patterned=False, turn=8),
    "plate": Kind(plate),
    "spoon": Kind(spoon, patterned=False, turn=55, scale=1.25),
    "phone": Kind(phone, patterned=False, turn=18),
    "table": Kind(table, turn=4),
    "teapot": Kind(teapot, turn=8),
    "candle": Kind(candle, turn=5),
    "vase": Kind(vase, turn=6),
    "plant": Kind(pot, turn=6),
}
