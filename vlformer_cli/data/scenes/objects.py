"""What a scene is: its objects with their looks and places, as expressions and tests see them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vlformer_cli.data.scenes.kinds_home import HOME
from vlformer_cli.data.scenes.kinds_nature import NATURE
from vlformer_cli.data.scenes.kinds_world import WORLD
from vlformer_cli.data.scenes.shapes import Kind

KINDS: dict[str, Kind] = {**HOME, **NATURE, **WORLD}

COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-7, 5), (0.78, 1.0), (0.7, 1.0)),
    "orange": ((22, 38), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((49, 60), (0.72, 1.0), (0.92, 1.0)),
    "green": ((97, 145), (0.58, 1.0), (0.42, 0.8)),
    "cyan": ((173, 188), (0.58, 1.0), (0.78, 1.0)),
    "blue": ((213, 240), (0.7, 1.0), (0.6, 1.0)),
    "purple": ((266, 300), (0.52, 0.95), (0.45, 0.68)),
    "pink": ((326, 351), (0.28, 0.55), (0.94, 1.0)),
    "brown": ((14, 27), (0.6, 0.85), (0.34, 0.52)),
    "black": ((0, 360), (0.0, 0.2), (0.03, 0.16)),
    "white": ((0, 360), (0.0, 0.04), (0.93, 1.0)),
    "gray": ((0, 360), (0.0, 0.06), (0.45, 0.64)),
}
"""Ranges of hue (degrees), saturation and value: a person would give anything inside them that name."""

ALIKE = (
    frozenset({"orange", "brown"}),
    frozenset({"blue", "cyan"}),
    frozenset({"green", "cyan"}),
    frozenset({"pink", "purple"}),
    frozenset({"white", "gray"}),
)
"""Pairs of colours that somebody might mix up: no expression may rest on telling them apart."""

SIZES: dict[str, tuple[float, float]] = {"small": (27.0, 34.0), "mid": (42.0, 50.0), "big": (62.0, 74.0)}
"""The longest side in pixels of a picture of 192 pixels: the classes are a clear step apart."""

PATTERNS = ("plain", "striped", "dotted", "checked")

MIN_VISIBLE = 0.45
"""The visible fraction below which nothing is a referent."""
MIN_AREA = 60 / 192**2
"""The visible area below which nothing is a referent, as a fraction of a square picture."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn object. Coordinates are pixels; `bbox`, `cx`, `cy` and `area` are of the visible pixels."""

    kind: str
    colour: str
    size: str
    """small, mid or big."""
    pattern: str
    extent: float
    """The longest side as drawn, occluded parts included."""
    cx: float
    cy: float
    bbox: tuple[float, float, float, float]
    """x, y, width, height."""
    depth: int
    """The order of painting: a greater one is nearer and hides a smaller one."""
    area: int
    full_area: int
    """Of the whole silhouette, occluded and cut-off parts included."""
    hidden_by: tuple[tuple[int, float], ...]
    """(index of a nearer object, the fraction of this silhouette that it hides)."""

    @property
    def visible(self) -> float:
        """The fraction of the silhouette that is seen."""
        return self.area / max(self.full_area, 1)


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture's objects, in the order of painting."""

    image_id: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]

    def to_json(self) -> dict[str, Any]:
        """The line of `<split>.scenes.jsonl`, ready for `json.dumps`."""
        return asdict(self)

    def referents(self) -> list[int]:
        """The indices of the objects that are seen well enough to be meant."""
        floor = MIN_AREA * max(self.width, self.height) ** 2
        return [i for i, thing in enumerate(self.objects) if thing.visible >= MIN_VISIBLE and thing.area >= floor]
