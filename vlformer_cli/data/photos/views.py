"""The photographs of a split, and random views of them: crops, mosaics, and photographs with pasted cut-outs."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator

from vlformer_cli.data.photos.annotations import AnnotatedPhoto
from vlformer_cli.data.photos.compose import NOT_CUT_OUT, CutOut, choose_window, cut_out, paste, show, side_by_side
from vlformer_cli.data.photos.find import find_photos
from vlformer_cli.data.photos.names import CLOTHES
from vlformer_cli.data.photos.objects import LabelledImage, Seen, extent, open_photo
from vlformer_cli.data.transforms import fitted_size

VAL_SHARE = 16
"""One photograph in this many is for validation."""
VIEWS = {"single": 0.5, "mosaic": 0.2, "paste": 0.3}
"""Kinds of views and their shares."""
GRIDS = ((1, 2), (2, 1), (2, 2), (2, 2))
"""Rows and columns of a mosaic."""
SMALLEST_CUT = 40
"""The least longer side, in pixels, of an object that is cut out."""


def split_of(photo: AnnotatedPhoto) -> str:
    """Which split a photograph belongs to, by its name, so that it stays there whatever else is in the folder."""
    return "val" if zlib.crc32(photo.path.name.encode()) % VAL_SHARE == 0 else "train"


class Library:
    """The photographs of one split."""

    def __init__(self, source: Path, split: str, *, trust_annotated: bool = False, boxes: bool = False) -> None:
        self.trust_annotated = trust_annotated
        self.photos = [photo for photo in find_photos(source, boxes=boxes) if split_of(photo) == split]
        counts = [sum(one.category not in CLOTHES for one in photo.annotations) for photo in self.photos]
        weights = np.clip(np.sqrt(np.array(counts, dtype=np.float64)), 0.7, 3.0)
        self.weights = weights / weights.sum() if len(weights) else weights
        self.by_category: dict[str, list[int]] = {}
        for number, photo in enumerate(self.photos):
            for category in sorted({one.category for one in photo.annotations if not one.is_crowd}):
                self.by_category.setdefault(category, []).append(number)
        self.open = lru_cache(maxsize=400)(self._open)

    def _open(self, number: int) -> LabelledImage:
        return open_photo(self.photos[number], trust_annotated=self.trust_annotated)

    def draw(self, rng: Generator) -> LabelledImage:
        """A photograph; those with many objects more often."""
        return self.open(int(rng.choice(len(self.photos), p=self.weights)))

    def draw_with(self, rng: Generator, category: str) -> LabelledImage:
        """A photograph that shows an object of the category."""
        numbers = self.by_category[category]
        return self.open(numbers[int(rng.integers(len(numbers)))])

    def draw_beside(self, rng: Generator, shared: str | None) -> LabelledImage:
        """A photograph with the category, or one that is known to have none of it, so that it can be told apart."""
        if shared is not None and rng.random() < 0.75:
            return self.draw_with(rng, shared)
        image = self.draw(rng)
        for _ in range(8):
            if shared is None or shared in image.labelled:
                break
            image = self.draw(rng)
        return image

    def draw_cut_out(self, rng: Generator, category: str) -> CutOut | None:
        """An object of the category that is seen whole; None if the photograph that was drawn has none."""
        image = self.draw_with(rng, category)
        height, width = image.size
        fitting = [
            n for n, one in enumerate(image.objects) if one.category == category and _is_whole(one, height, width)
        ]
        return cut_out(image, fitting[int(rng.integers(len(fitting)))]) if fitting else None


def _is_whole(one: Seen, height: int, width: int) -> bool:
    """Whether an object can be cut out: large enough, and not cut off by the edge."""
    seen = extent(one.mask_HW)
    if one.is_group or one.is_box or one.owner >= 0 or seen is None:
        return False
    left, top, right, bottom = seen
    return min(left, top, width - right, height - bottom) > 1 and max(right - left, bottom - top) > SMALLEST_CUT


def make_view(rng: Generator, library: Library, size: int) -> LabelledImage:
    """A new image: a part of one photograph, several side by side, or one with cut-outs of others."""
    kind = str(rng.choice(list(VIEWS), p=list(VIEWS.values())))
    base = library.draw(rng)
    if kind == "mosaic":
        return _mosaic(rng, library, base, size)
    window = choose_window(rng, base)
    image = show(base, window, fitted_size(round(window.height), round(window.width), size, size))
    return _with_cut_outs(rng, library, image) if kind == "paste" else image


def _mosaic(rng: Generator, library: Library, base: LabelledImage, size: int) -> LabelledImage:
    """Tiles that share a category, so that the category alone does not tell which is meant."""
    rows, columns = GRIDS[int(rng.integers(len(GRIDS)))]
    tile = {1: size * 3 // 4, 2: size // 2}
    height, width = tile[rows], tile[columns]
    shared = _common_category(rng, base)
    tiles = []
    for number in range(rows * columns):
        image = base if number == 0 else library.draw_beside(rng, shared)
        tiles.append(show(image, choose_window(rng, image, aspect=width / height, whole=0.5), (height, width)))
    order = rng.permutation(len(tiles))
    return side_by_side([tiles[int(i)] for i in order], columns)


def _common_category(rng: Generator, image: LabelledImage) -> str | None:
    found = sorted({one.category for one in image.objects if one.category not in CLOTHES})
    return found[int(rng.integers(len(found)))] if found else None


def _with_cut_outs(rng: Generator, library: Library, image: LabelledImage) -> LabelledImage:
    """One to four cut-outs, mostly of a category that is there, beside what is there."""
    shared = _common_category(rng, image)
    everything = sorted(set(library.by_category) - NOT_CUT_OUT - CLOTHES)
    if not everything:
        return image
    other = everything[int(rng.integers(len(everything)))]
    for _ in range(int(rng.integers(1, 5))):
        category = shared if shared is not None and shared not in NOT_CUT_OUT and rng.random() < 0.65 else other
        found = library.draw_cut_out(rng, category)
        if found is not None:
            share = float(np.exp(rng.uniform(np.log(0.006), np.log(0.12))))
            spot = float(rng.uniform(0.08, 0.92)), float(rng.uniform(0.2, 0.9))
            image = paste(rng, image, found, share=share, spot=spot)
    return image
