"""Scenes of photographs: one in the background, or cut-outs and drawn things side by side."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from vlformer_cli.data.scenes.backgrounds import Picture
from vlformer_cli.data.scenes.objects import COLOURS, KINDS
from vlformer_cli.data.scenes.photos import PhotoLibrary, cut_out, view
from vlformer_cli.data.scenes.plan import Draft, pick, place, unit_of
from vlformer_cli.data.scenes.render import Sprite
from vlformer_cli.data.scenes.shapes import coin
from vlformer_cli.data.scenes.stickers import Stickers, drawn

LARGEST = 0.5  # of the picture's area: around a larger thing nothing could be placed
SELDOM = frozenset(
    {"balloon", "bell", "butterfly", "candle", "crown", "guitar", "heart", "mushroom", "pear", "star", "teapot"}
)
"""Drawn kinds that hardly a photograph shows. Of the others none is drawn on one unless its annotations would tell."""


@dataclass(frozen=True, slots=True)
class Collage:
    """What is painted, the farthest first."""

    sprites: list[Sprite]
    backdrop_hw3: Picture | None = None
    """The photograph at twice the size; None: a background is to be drawn."""


def collage(
    rng: Generator, library: PhotoLibrary, width: int, height: int, bent: float, stickers: Stickers | None = None
) -> Collage:
    """A photograph with up to three things more, or a drawn background with three to six things."""
    if coin(rng, 0.35):
        kinds = _kinds(rng, library, int(rng.integers(3, 7)))
        return Collage(_things(rng, library, kinds, (width, height), [], bent, stickers))
    seen = view(rng, library, width, height)
    own = [item.draft for item in seen.sprites]
    around = [draft for draft in own if draft.extent**2 < LARGEST * width * height]
    kinds = [k for k in _kinds(rng, library, int(rng.integers(0, 4))) if k in SELDOM or k in library.kinds]
    if kinds and own and coin(rng, 0.3):
        kinds[0] = pick(rng, own).kind  # one more of what is there: now its kind alone does not name it
    added = _things(rng, library, kinds, (width, height), around, bent, stickers)
    return Collage([*seen.sprites, *added], seen.backdrop_hw3)


def _kinds(rng: Generator, library: PhotoLibrary, count: int) -> list[str]:
    """Of photographs more often than drawn ones; two or three alike in every second scene."""
    kinds = [pick(rng, library.cut_kinds) if coin(rng, 0.65) else pick(rng, list(KINDS)) for _ in range(count)]
    if count > 1 and coin(rng):
        same = int(rng.integers(2, min(3, count) + 1))
        kinds[:same] = [kinds[0]] * same
    return kinds


def _things(
    rng: Generator,
    library: PhotoLibrary,
    kinds: list[str],
    size: tuple[int, int],
    around: list[Draft],
    bent: float,
    stickers: Stickers | None,
) -> list[Sprite]:
    """Cut-outs where there are any, of kinds that are drawn too every other time."""
    names = ("small", "mid", "mid", "big")
    looks = [Draft(kind, pick(rng, list(COLOURS)), pick(rng, names), "plain") for kind in kinds]
    outline = int(rng.integers(1, 4)) if coin(rng, 0.35) else 0
    made = []
    for draft in place(rng, looks, *size, around=around) if looks else []:
        found = library.draw_thing(rng, draft.kind) if draft.kind not in KINDS or coin(rng) else None
        if found is not None:
            made.append(cut_out(rng, found, draft, unit_of(*size)))
        elif draft.kind in KINDS:
            made.append(drawn(rng, draft, outline, bent, stickers))
    return made
