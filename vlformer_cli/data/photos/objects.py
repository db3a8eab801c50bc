"""What a photograph shows: its objects with masks, colors, clothes and the nouns that people use for them.

Letters: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from vlformer_cli.data.images import read_image, refuse_other_size
from vlformer_cli.data.photos.annotations import AnnotatedPhoto, Annotation, Box
from vlformer_cli.data.photos.captions import Captions, read_captions
from vlformer_cli.data.photos.names import CLOTHES, CONSPICUOUS, PLURAL, UNCOLORED, WOMENS, WORN
from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.scenes.photos import name_colour

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PIECE = 0.4
"""An outline whose second largest piece is at least this fraction of its largest may be several objects."""
STANDING = 1.5
"""The least height of a standing or sitting person's outline in widths; only there is the chest where it is sought."""
CHEST = (0.22, 0.45, 0.25, 0.75)
"""Top, bottom, left and right of the chest as fractions of a person's box."""
CHEST_PIXELS = 60


@dataclass(frozen=True, slots=True)
class Garment:
    """One piece of clothing of a person."""

    category: str
    color: str
    """Empty where no one name fits."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One object."""

    category: str
    mask_HW: Mask
    full_area: float
    """Pixels of the whole object, with what is hidden or cut off."""
    color: str = ""
    """Empty where no one name fits."""
    owner: int = -1
    """The index of the person who wears or carries it; -1: nobody."""
    noun: str = ""
    """man, woman, boy, girl or child, for a person of whom this is known."""
    chest: str = ""
    """The color of a person's chest; empty where it is not known."""
    clothes: tuple[Garment, ...] | None = None
    """What a person wears or carries, complete; None where it is not annotated."""
    captions: tuple[str, ...] = ()
    """Expressions made of captions that mean this object, while it is the only one of its category."""
    is_group: bool = False
    """One outline around several objects, or perhaps so."""
    is_box: bool = False
    """The mask is the object's box, as its outline is not known: it is counted, and never meant."""

    @property
    def visible(self) -> float:
        """The fraction of the object that is seen."""
        return float(np.count_nonzero(self.mask_HW)) / max(self.full_area, 1.0)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """Pixels and all the annotated objects in them."""

    pixels_HW3: Image
    objects: tuple[Seen, ...]
    labelled: frozenset[str]
    """The categories of which every instance is in `objects`."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels_HW3.shape[0], self.pixels_HW3.shape[1]


def extent(mask_HW: Mask) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom (the last two exclusive) of what a mask covers; None for an empty one."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None


def open_photo(photo: AnnotatedPhoto, *, trust_annotated: bool = False) -> LabelledImage:
    """Reads a photograph and works out its objects; raises VLFormerError if the file cannot be read.

    `trust_annotated`: where a photograph is labelled for no category, those that are annotated count as labelled.
    """
    pixels_HW3 = read_image(photo.path)
    refuse_other_size(photo.path, pixels_HW3.shape[:2], (photo.height, photo.width))
    found = [_seen(pixels_HW3, one) for one in photo.annotations]
    found = _dressed(found, photo.labelled)
    return LabelledImage(pixels_HW3, tuple(_captioned(found, photo)), _known(photo, trust_annotated=trust_annotated))


def _known(photo: AnnotatedPhoto, *, trust_annotated: bool) -> frozenset[str]:
    """The categories of which every instance is annotated."""
    here = {one.category for one in photo.annotations}
    known = photo.labelled
    if not known and trust_annotated:
        known = frozenset(here)
    return known if here & CONSPICUOUS else known | CONSPICUOUS


def _seen(pixels_HW3: Image, annotation: Annotation) -> Seen:
    category = annotation.category
    if annotation.mask is None:
        mask_HW = _box_mask(annotation.box, (pixels_HW3.shape[0], pixels_HW3.shape[1]))
        is_group, area = annotation.is_crowd, float(np.count_nonzero(mask_HW))
        return Seen(category, mask_HW, area, is_group=is_group, is_box=True)
    mask_HW = decode_rle(annotation.mask)
    return Seen(
        category=category,
        mask_HW=mask_HW,
        full_area=float(np.count_nonzero(mask_HW)),
        color="" if category in UNCOLORED else name_colour(pixels_HW3[mask_HW]),
        chest=_chest(pixels_HW3, mask_HW) if category == "person" else "",
        is_group=annotation.is_crowd or (category not in CLOTHES | PLURAL | {"person"} and _is_in_pieces(mask_HW)),
    )


def _box_mask(box: Box, size: tuple[int, int]) -> Mask:
    mask_HW = np.zeros(size, dtype=np.bool_)
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    mask_HW[max(0, round(top)) : max(1, round(bottom)), max(0, round(left)) : max(1, round(right))] = True
    return mask_HW


def _is_in_pieces(mask_HW: Mask) -> bool:
    """Whether the outline has two or more pieces of much the same size."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask_HW.view(np.uint8))
    areas = np.sort(stats[1:count, cv2.CC_STAT_AREA])
    return len(areas) > 1 and areas[-2] >= PIECE * areas[-1]


def _chest(pixels_HW3: Image, mask_HW: Mask) -> str:
    """The color of the middle of an upright person's upper body; empty where there is no one color."""
    seen = extent(mask_HW)
    assert seen is not None  # annotations without a pixel are not read
    x, y, height, width = seen[0], seen[1], seen[3] - seen[1], seen[2] - seen[0]
    if height < STANDING * width or x == 0 or seen[2] == mask_HW.shape[1]:
        return ""
    top, bottom, left, right = CHEST
    part = (
        slice(int(y + top * height), int(y + bottom * height)),
        slice(int(x + left * width), int(x + right * width)),
    )
    inside = mask_HW[part]
    return name_colour(pixels_HW3[part][inside]) if np.count_nonzero(inside) >= CHEST_PIXELS else ""


def _dressed(found: list[Seen], labelled: frozenset[str]) -> list[Seen]:
    """With owners of clothes and clothes of owners, where a photograph shows one person whose clothes are annotated."""
    people = [number for number, one in enumerate(found) if one.category == "person"]
    if len(people) != 1 or len(labelled & WORN) < 1 or not labelled & (CLOTHES - {"tie"}):
        return found
    (owner,) = people
    clothes = tuple(Garment(one.category, one.color) for one in found if one.category in CLOTHES)
    worn = {garment.category for garment in clothes}
    if not worn:
        return found
    found = [replace(one, owner=owner) if one.category in CLOTHES else one for one in found]
    noun = "woman" if worn & WOMENS else ""
    found[owner] = replace(found[owner], clothes=clothes, noun=noun, chest="")
    return found


def _captioned(found: list[Seen], photo: AnnotatedPhoto) -> list[Seen]:
    """With expressions and nouns out of the captions, for objects that are the only ones of their category."""
    if not photo.captions:
        return found
    alone = {
        one.category: number
        for number, one in enumerate(found)
        if one.category in photo.labelled and not one.is_group and sum(o.category == one.category for o in found) == 1
    }
    for category, number in alone.items():
        said: Captions = read_captions(photo.captions, category)
        found[number] = replace(found[number], captions=said.expressions, noun=said.noun or found[number].noun)
    return found
