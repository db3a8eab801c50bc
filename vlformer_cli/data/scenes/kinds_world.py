"""Drawings of things to wear, to play with and to travel in: one function a kind, with some variation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.random import Generator

from vlformer_cli.data.scenes.shapes import (
    BODY,
    FLAME,
    GLASS,
    INK,
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
    soft_rect,
    u,
    wedge,
)


def ball(rng: Generator) -> list[Part]:
    seam = LIGHT if coin(rng) else TRIM
    style = int(rng.integers(3))
    parts = [disc(BODY, 0, 0, 1.0)]
    if style == 0:
        parts += [arc(seam, -1.0, 0, 0.75, 0.95, -62, 62, 0.07), arc(seam, 1.0, 0, 0.75, 0.95, 118, 242, 0.07)]
    elif style == 1:
        parts += [line(seam, 0.06, (-1, 0), (1, 0)), arc(seam, 0, 0, 0.5, 1.0, 0, 360, 0.06)]
    return [*parts, disc(LIGHT, -0.35, -0.42, 0.2, 0.15)]


def shoe(rng: Generator) -> list[Part]:
    top = u(rng, -0.6, -0.4)
    upper = blob(
        BODY,
        (-0.95, top),
        (-0.4, top - 0.02),
        (-0.1, top + 0.2),
        (0.5, -0.02),
        (1.02, 0.18),
        (1.05, 0.42),
        (-1.0, 0.42),
        (-1.02, 0.0),
    )
    sole = soft_rect(PALE if coin(rng, 0.7) else TRIM, -1.05, 0.36, 1.12, 0.56, 0.08)
    laces = [
        line(PALE, 0.07, (x, top + 0.12 + 0.5 * i * 0.22), (x + 0.24, top + 0.02 + 0.5 * i * 0.22))
        for i, x in enumerate((-0.22, 0.0, 0.22))
    ]
    return [upper, disc(TRIM, -0.66, top + 0.02, 0.3, 0.1), sole, *laces]


def umbrella(rng: Generator) -> list[Part]:
    h, n = u(rng, 0.85, 1.0), int(rng.integers(3, 6))
    edges = np.linspace(-1, 1, n + 1)
    pole = [
        line(WOOD if coin(rng) else INK, 0.09, (0, -h - 0.12), (0, 0.8)),
        arc(INK, 0.17, 0.8, 0.17, 0.18, 0, 180, 0.1),
    ]
    dome = wedge(BODY, 0, 0, 1.1, h, 180, 360)
    scallops = [wedge(BODY, float(a + b) * 0.55, 0.0, float(b - a) * 0.55, -0.12, 180, 360) for a, b in pairwise(edges)]
    ribs = [line(TRIM, 0.04, (0, -h), (float(x) * 0.75, -h * 0.6), (float(x) * 1.1, 0)) for x in edges[1:-1]]
    return [*pole, dome, *scallops, *ribs]


def bag(rng: Generator) -> list[Part]:
    w, flare = u(rng, 0.65, 0.8), u(rng, 1.0, 1.22)
    handle = arc(TRIM, 0, -0.3, u(rng, 0.3, 0.42), u(rng, 0.55, 0.7), 180, 360, 0.1)
    body = fill(BODY, (-w, -0.32), (w, -0.32), (w * flare, 0.85), (-w * flare, 0.85))
    flap = (
        [wedge(TRIM, 0, -0.32, w, 0.4, 0, 180), disc(METAL, 0, 0.05, 0.09)]
        if coin(rng)
        else [rect(TRIM, -w, -0.34, w, -0.2)]
    )
    return [handle, body, *flap]


def sock(rng: Generator) -> list[Part]:
    leg = u(rng, 0.27, 0.34)
    foot = blob(
        BODY,
        (-leg, -0.6),
        (leg, -0.6),
        (leg, 0.25),
        (0.75, 0.42),
        (1.0, 0.7),
        (0.7, 0.95),
        (0.0, 0.95),
        (-leg, 0.75),
        (-leg, 0.1),
    )
    tube = rect(BODY, -leg, -0.95, leg, 0.2)
    return [
        foot,
        tube,
        disc(TRIM, 0.8, 0.7, 0.2, 0.25),
        disc(TRIM, -0.1, 0.72, 0.2),
        rect(LIGHT, -leg - 0.04, -1.05, leg + 0.04, -0.72),
    ]


def shirt(rng: Generator) -> list[Part]:
    w, sleeve = u(rng, 0.52, 0.62), u(rng, 0.0, 0.3)
    right = [(0.25, -0.85), (0.6, -0.75), (1.1, -0.1 + sleeve), (0.85, 0.08 + sleeve), (w, -0.25), (w + 0.03, 0.95)]
    neck = wedge(TRIM, 0, -0.87, 0.26, 0.2, 0, 180)
    seams = [line(TRIM, 0.04, (s * (w + 0.02), -0.25), (s * (w + 0.04), -0.5)) for s in (-1, 1)]
    return [mirrored(BODY, *right, smooth=False), neck, *seams]


def car(rng: Generator) -> list[Part]:
    roof, wheel = u(rng, -0.62, -0.5), u(rng, 0.22, 0.27)
    front = u(rng, 0.45, 0.6)
    cabin = fill(BODY, (-0.75, -0.08), (-0.5, roof), (0.28, roof), (front + 0.12, -0.08))
    body = soft_rect(BODY, -1.1, -0.12, 1.12, 0.36, 0.13)
    panes = [
        fill(GLASS, (-0.6, -0.1), (-0.43, roof + 0.1), (-0.14, roof + 0.1), (-0.14, -0.1)),
        fill(GLASS, (-0.04, -0.1), (-0.04, roof + 0.1), (0.24, roof + 0.1), (front - 0.04, -0.1)),
    ]
    wheels = [disc(tone, x, 0.36, r) for x in (-0.62, 0.62) for tone, r in ((INK, wheel), (METAL, wheel * 0.5))]
    return [cabin, body, *panes, disc(FLAME, 1.04, 0.04, 0.07, 0.08), rect(TRIM, -1.1, 0.2, 1.12, 0.3), *wheels]


def truck(rng: Generator) -> list[Part]:
    load, wheel = u(rng, -0.75, -0.55), u(rng, 0.2, 0.25)
    cargo, cab = (
        rect(BODY, -1.15, load, 0.4, 0.35),
        fill(TRIM, (0.45, 0.4), (0.45, -0.35), (0.85, -0.35), (1.1, 0.0), (1.15, 0.4)),
    )
    window = fill(GLASS, (0.58, -0.02), (0.58, -0.25), (0.8, -0.25), (0.98, -0.02))
    wheels = [disc(tone, x, 0.45, r) for x in (-0.75, -0.25, 0.78) for tone, r in ((INK, wheel), (METAL, wheel * 0.5))]
    return [rect(INK, -1.1, 0.3, 1.1, 0.42), cargo, cab, window, *wheels]


def boat(rng: Generator) -> list[Part]:
    mast, w = u(rng, -1.1, -0.9), u(rng, 0.7, 0.85)
    hull = fill(BODY, (-1.05, 0.35), (1.1, 0.35), (w, 0.85), (-w, 0.85))
    sails = [
        fill(LIGHT, (0.08, mast), (0.08, 0.2), (0.85, 0.2)),
        fill(LIGHT, (-0.06, mast + 0.25), (-0.06, 0.2), (-0.65, 0.2)),
    ]
    return [line(WOOD, 0.08, (0, mast - 0.05), (0, 0.4)), *sails, hull, rect(TRIM, -1.05, 0.33, 1.1, 0.44)]


def plane(rng: Generator) -> list[Part]:
    far = fill(TRIM, (0.2, -0.08), (-0.25, -0.62), (-0.05, -0.62), (0.5, -0.08))
    body = blob(BODY, (-1.0, -0.12), (0.5, -0.2), (0.95, -0.08), (1.12, 0.06), (0.8, 0.2), (0.0, 0.22), (-0.7, 0.08))
    tail = fill(BODY, (-1.0, -0.1), (-1.2, u(rng, -0.65, -0.55)), (-0.95, -0.6), (-0.6, -0.12))
    near = fill(TRIM, (0.3, 0.08), (-0.35, 0.68), (-0.1, 0.7), (0.6, 0.08))
    return [
        far,
        tail,
        body,
        near,
        *[disc(GLASS, x, -0.06, 0.06) for x in (-0.35, -0.1, 0.15, 0.4)],
        disc(GLASS, 0.82, -0.03, 0.12, 0.08),
    ]


def house(rng: Generator) -> list[Part]:
    w, peak = u(rng, 0.7, 0.85), u(rng, -1.05, -0.8)
    chimney = [rect(TRIM, 0.3, peak + 0.05, 0.52, -0.2)] if coin(rng) else []
    roof = fill(TRIM, (0, peak), (w + 0.22, -0.15), (-w - 0.22, -0.15))
    door = rect(WOOD, -0.14 - 0.2, 0.3, 0.1 - 0.2, 0.9)
    panes = [rect(PALE, 0.16, 0.1, 0.52, 0.46), rect(GLASS, 0.2, 0.14, 0.48, 0.42)]
    return [*chimney, rect(BODY, -w, -0.16, w, 0.9), roof, door, *panes]


def star(rng: Generator) -> list[Part]:
    inner = u(rng, 0.4, 0.52)
    angle = np.deg2rad(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    return [Part(BODY, np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))]


def heart(rng: Generator) -> list[Part]:
    dip, low = u(rng, -0.5, -0.35), u(rng, 0.85, 1.0)
    right = [(0.0, dip), (0.3, -0.78), (0.75, -0.75), (0.98, -0.3), (0.7, 0.25), (0.0, low)]
    parts = [mirrored(BODY, *right[:-1], (0.35, 0.62), (0.02, low))]
    return [*parts, disc(LIGHT, -0.52, -0.42, 0.14, 0.18)] if coin(rng) else parts


def kite(rng: Generator) -> list[Part]:
    cross, w = u(rng, -0.5, -0.3), u(rng, 0.6, 0.75)
    tail = line(INK, 0.05, (0, 0.6), (0.18, 0.85), (-0.08, 1.05), (0.12, 1.3))
    bows = [
        fill(TRIM, (x - 0.13, y - 0.08), (x + 0.13, y + 0.08), (x + 0.13, y - 0.08), (x - 0.13, y + 0.08))
        for x, y in ((0.14, 0.85), (-0.02, 1.08))
    ]
    sail = fill(BODY, (0, -1.1), (w, cross), (0, 0.65), (-w, cross))
    return [tail, *bows, sail, line(TRIM, 0.05, (0, -1.1), (0, 0.65)), line(TRIM, 0.05, (-w, cross), (w, cross))]


def balloon(rng: Generator) -> list[Part]:
    w = u(rng, 0.56, 0.68)
    string = line(INK, 0.04, (0, 0.4), (0.06, 0.7), (-0.06, 0.95), (0.02, 1.2))
    skin = mirrored(BODY, (0.0, -1.0), (w * 0.8, -0.72), (w, -0.3), (w * 0.6, 0.15), (0.0, 0.4))
    return [string, skin, fill(TRIM, (0, 0.33), (0.12, 0.5), (-0.12, 0.5)), disc(LIGHT, -w * 0.4, -0.55, 0.1, 0.18)]


def guitar(rng: Generator) -> list[Part]:
    w = u(rng, 0.44, 0.52)
    body = mirrored(BODY, (0.12, -0.12), (w * 0.75, 0.02), (w * 0.6, 0.32), (w, 0.7), (w * 0.6, 1.08), (0.0, 1.15))
    neck, head = (
        rect(WOOD, -0.07, -0.95, 0.07, 0.3),
        fill(INK, (-0.13, -1.25), (0.13, -1.25), (0.1, -0.92), (-0.1, -0.92)),
    )
    return [
        body,
        disc(INK, 0, 0.4, 0.15),
        neck,
        head,
        rect(INK, -0.2, 0.78, 0.2, 0.86),
        line(PALE, 0.03, (0, -0.9), (0, 0.8)),
    ]


def bell(rng: Generator) -> list[Part]:
    w = u(rng, 0.42, 0.52)
    dome = mirrored(BODY, (0.12, -0.78), (w * 0.9, -0.5), (w, 0.1), (w + 0.12, 0.45), (0.85, 0.62), smooth=False)
    return [
        disc(INK, 0, 0.74, 0.18),
        disc(TRIM, 0, -0.84, 0.16),
        dome,
        wedge(BODY, 0, -0.5, w * 0.9, 0.32, 180, 360),
        soft_rect(TRIM, -0.9, 0.52, 0.9, 0.7, 0.08),
    ]


def pencil(rng: Generator) -> list[Part]:
    w, tip = u(rng, 0.11, 0.15), u(rng, 0.25, 0.35)
    point = [
        fill(PALE, (-w, 0.9), (w, 0.9), (0, 0.9 + tip)),
        fill(INK, (-w * 0.4, 0.9 + tip * 0.6), (w * 0.4, 0.9 + tip * 0.6), (0, 0.9 + tip)),
    ]
    shaft = [rect(BODY, -w, -0.85, w, 0.9), rect(TRIM, -w, -0.85, -w * 0.35, 0.9)]
    return [*point, *shaft, rect(METAL, -w, -1.0, w, -0.84), soft_rect(PALE, -w, -1.2, w, -1.0, 0.05)]


def crown(rng: Generator) -> list[Part]:
    h, w = u(rng, 0.5, 0.75), u(rng, 0.75, 0.9)
    points = [(-w, 0.6), (-1.0, -h), (-0.45, 0.02), (0.0, -h - 0.12), (0.45, 0.02), (1.0, -h), (w, 0.6)]
    gems = [disc(LIGHT, x, y, 0.1) for x, y in ((-1.0, -h), (0.0, -h - 0.12), (1.0, -h))]
    return [fill(BODY, *points), rect(TRIM, -w, 0.38, w, 0.6), *gems]


WORLD: dict[str, Kind] = {
    "ball": Kind(ball, turn=40),
    "shoe": Kind(shoe, turn=8),
    "umbrella": Kind(umbrella, turn=15, scale=1.05),
    "bag": Kind(bag, turn=8),
    "sock": Kind(sock, turn=15),
    "shirt": Kind(shirt, turn=8),
    "car": Kind(car, turn=5),
    "truck": Kind(truck, turn=5),
    "boat": Kind(boat, turn=8),
    "plane": Kind(plane, turn=15, scale=1.1),
    "house": Kind(house, turn=4),
    "star": Kind(star, turn=18),
    "heart": Kind(heart, turn=15),
    "kite": Kind(kite, turn=20, scale=1.1),
    "balloon": Kind(balloon, turn=10, scale=1.1),
    "guitar": Kind(guitar, turn=35, scale=1.2),
    "bell": Kind(bell, turn=12),
    "pencil": Kind(pencil, patterned=False, turn=60, scale=1.2),
    "crown": Kind(crown, turn=8),
}
