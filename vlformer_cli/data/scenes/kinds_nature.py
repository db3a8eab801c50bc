"""Drawings of fruit, animals and plants: one function a kind, its canonical outline with some variation."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from vlformer_cli.data.scenes.shapes import (
    BODY,
    FLAME,
    INK,
    LEAF,
    LIGHT,
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
    ring,
    u,
    wedge,
)


def apple(rng: Generator) -> list[Part]:
    w, low = u(rng, 0.82, 0.95), u(rng, 0.8, 0.9)
    right = [(0.0, -0.55), (0.4, -0.72), (w, -0.25), (w * 0.85, 0.4), (0.4, low), (0.0, low - 0.1)]
    stem = line(WOOD, 0.1, (0, -0.5), (0.1, -1.0))
    leaf = blob(LEAF, (0.1, -0.8), (0.35, -1.05), (0.65, -0.95), (0.4, -0.75))
    return [mirrored(BODY, *right), disc(LIGHT, -0.45, -0.25, 0.15, 0.22), stem, leaf]


def banana(rng: Generator) -> list[Part]:
    curve = u(rng, 0.45, 0.7)
    outer, inner = ring(0, -0.5, 1.15, 0.55 + curve, 15, 165, 16), ring(0, -0.62, 1.02, curve * 0.62, 160, 20, 16)
    body = Part(BODY, np.concatenate([outer, inner]))
    ridge = Part(TRIM, ring(0, -0.55, 1.0, 0.38 + curve * 0.8, 30, 150), 0.05)
    left, right = outer[-1], outer[0]
    tip = line(WOOD, 0.16, (float(left[0]), float(left[1])), (float(left[0]) - 0.05, float(left[1]) - 0.2))
    return [tip, body, ridge, disc(INK, float(right[0]) - 0.02, float(right[1]) - 0.05, 0.09)]


def pear(rng: Generator) -> list[Part]:
    w, neck = u(rng, 0.62, 0.72), u(rng, 0.26, 0.34)
    right = [(0.0, -0.85), (neck, -0.7), (neck + 0.1, -0.25), (w, 0.3), (w * 0.75, 0.8), (0.0, 0.95)]
    return [mirrored(BODY, *right), line(WOOD, 0.09, (0, -0.8), (0.1, -1.15)), disc(LIGHT, -0.3, 0.2, 0.12, 0.24)]


def carrot(rng: Generator) -> list[Part]:
    w = u(rng, 0.26, 0.34)
    leaves = [blob(LEAF, (0, -0.5), (x + 0.1, -0.85), (x * 1.6, -1.2), (x - 0.12, -0.85)) for x in (-0.28, 0.0, 0.28)]
    root = mirrored(BODY, (w * 0.7, -0.6), (w, -0.45), (w * 0.6, 0.4), (0.04, 1.15))
    rings = [line(TRIM, 0.05, (-w * 0.8, y), (-w * 0.1, y + 0.03)) for y in (-0.2, 0.15)]
    return [*leaves, root, *rings]


def mushroom(rng: Generator) -> list[Part]:
    h, stem = u(rng, 0.85, 1.05), u(rng, 0.2, 0.3)
    foot = fill(PALE, (-stem, 0), (stem, 0), (stem * 1.25, 0.9), (-stem * 1.25, 0.9))
    return [foot, disc(TRIM, 0, 0.02, 0.95, 0.17), wedge(BODY, 0, 0.05, 1.0, h, 180, 360)]


def bear(rng: Generator) -> list[Part]:
    ear, belly = u(rng, 0.19, 0.25), u(rng, 0.48, 0.58)
    limbs = [disc(BODY, s * x, y, 0.24, 0.3) for s in (-1, 1) for x, y in ((0.55, 0.2), (0.38, 0.9))]
    ears = [disc(tone, s * 0.4, -0.98, r) for s in (-1, 1) for tone, r in ((BODY, ear), (LIGHT, ear * 0.55))]
    body = [disc(BODY, 0, 0.4, belly, 0.62), disc(LIGHT, 0, 0.45, belly * 0.6, 0.38), disc(BODY, 0, -0.55, 0.54, 0.48)]
    face = [disc(LIGHT, 0, -0.4, 0.24, 0.18), disc(INK, 0, -0.46, 0.1, 0.07)]
    eyes = [disc(INK, s * 0.2, -0.66, 0.07) for s in (-1, 1)]
    return [*limbs, *ears, *body, *face, *eyes]


def fish(rng: Generator) -> list[Part]:
    h, tail = u(rng, 0.42, 0.6), u(rng, 0.38, 0.52)
    fins = [
        blob(TRIM, (-0.3, -h * 0.8), (0.1, -h - 0.28), (0.3, -h * 0.75), (0, -0.1)),
        fill(TRIM, (0, h * 0.6), (0.3, h + 0.2), (-0.2, h * 0.8)),
    ]
    body = blob(
        BODY,
        (-0.95, 0.02),
        (-0.45, -h * 0.88),
        (0.15, -h * 0.85),
        (0.62, -0.14),
        (0.62, 0.14),
        (0.15, h * 0.85),
        (-0.45, h * 0.88),
    )
    tail_fin = fill(TRIM, (0.52, 0), (1.08, -tail), (0.94, 0), (1.08, tail))
    eye = [disc(PALE, -0.58, -0.12, 0.12), disc(INK, -0.6, -0.12, 0.065)]
    return [*fins, tail_fin, body, arc(TRIM, -0.62, 0, 0.32, h * 0.8, -55, 55, 0.05), *eye]


def duck(rng: Generator) -> list[Part]:
    head = u(rng, 0.36, 0.44)
    body = blob(
        BODY, (-0.75, 0.3), (-0.3, 0.02), (0.3, 0.12), (0.7, 0.0), (1.1, -0.25), (0.95, 0.5), (0.45, 0.88), (-0.4, 0.88)
    )
    beak = blob(FLAME, (-0.72, -0.55), (-1.02, -0.5), (-1.1, -0.36), (-0.72, -0.32))
    wing = blob(TRIM, (0.0, 0.3), (0.4, 0.25), (0.75, 0.3), (0.45, 0.6), (0.1, 0.55))
    return [beak, body, disc(BODY, -0.42, -0.42, head), wing, disc(INK, -0.56, -0.52, 0.07)]


def butterfly(rng: Generator) -> list[Part]:
    up, low = u(rng, 0.85, 1.05), u(rng, 0.5, 0.72)
    wings = []
    for s in (-1, 1):
        wings.append(blob(BODY, (0, 0.1), (s * 0.3, -0.65), (s * up, -0.85), (s * 0.95, -0.2), (s * 0.5, 0.12)))
        wings.append(blob(BODY, (0, 0.0), (s * 0.55, 0.05), (s * (low + 0.1), 0.45), (s * 0.4, 0.8), (s * 0.1, 0.45)))
        wings += [disc(TRIM, s * 0.66, -0.5, 0.15), line(INK, 0.04, (0, -0.5), (s * 0.22, -0.95))]
    return [*wings, disc(INK, 0, 0, 0.1, 0.58)]


def tree(rng: Generator) -> list[Part]:
    trunk = fill(WOOD, (-0.12, 0.0), (0.12, 0.0), (0.17, 1.1), (-0.17, 1.1))
    if coin(rng, 0.4):
        tiers = [
            fill(BODY, (0, y), (w, y + 0.75), (-w, y + 0.75)) for y, w in ((0.0, 0.78), (-0.5, 0.62), (-1.0, 0.45))
        ]
        return [trunk, *tiers]
    crowns = [
        disc(BODY, x + u(rng, -0.06, 0.06), y, r)
        for x, y, r in (
            (-0.4, -0.15, 0.46),
            (0.4, -0.15, 0.46),
            (-0.22, -0.6, 0.44),
            (0.25, -0.62, 0.42),
            (0, -0.2, 0.5),
        )
    ]
    return [trunk, *crowns, disc(LIGHT, -0.25, -0.65, 0.16, 0.12)]


def flower(rng: Generator) -> list[Part]:
    petals, r = int(rng.integers(5, 8)), u(rng, 0.26, 0.3)
    stem = [line(LEAF, 0.1, (0, -0.3), (0.05, 1.1)), blob(LEAF, (0.05, 0.75), (0.35, 0.4), (0.6, 0.38), (0.35, 0.7))]
    spots = ring(0, -0.5, 0.4, 0.4, 0, 360 * (1 - 1 / petals), petals)
    return [*stem, *[disc(BODY, float(x), float(y), r) for x, y in spots], disc(FLAME, 0, -0.5, 0.22)]


NATURE: dict[str, Kind] = {
    "apple": Kind(apple, turn=15),
    "banana": Kind(banana, patterned=False, turn=40, scale=1.1),
    "pear": Kind(pear, turn=15),
    "carrot": Kind(carrot, patterned=False, turn=50, scale=1.15),
    "mushroom": Kind(mushroom, turn=10),
    "bear": Kind(bear, turn=8),
    "fish": Kind(fish, turn=12),
    "duck": Kind(duck, turn=8),
    "butterfly": Kind(butterfly, turn=25),
    "tree": Kind(tree, turn=5),
    "flower": Kind(flower, turn=12, scale=1.1),
}
