"""What has been published of the RefCOCO family: names, partitions, counts per split, COCO's categories.

Counts are of the REFER files (github.com/lichengunc/refer) as the code of LAVT, CRIS and TensorFlow Datasets states
them. Those of gRefCOCO: the authors give 259,859 expressions for the released file (github.com/henghuiding/gRefCOCO
issue 6), which is the sum of the four splits here; refs and training images they do not give.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vlformer_cli.types import UsageError, VLFormerError


class Counts(NamedTuple):
    """Of one split; None where nothing is published."""

    refs: int | None
    images: int | None
    expressions: int | None


PUBLISHED: dict[tuple[str, str], dict[str, Counts]] = {
    ("refcoco", "unc"): {
        "train": Counts(42404, 16994, 120624),
        "val": Counts(3811, 1500, 10834),
        "testA": Counts(1975, 750, 5657),
        "testB": Counts(1810, 750, 5095),
    },
    ("refcoco", "google"): {
        "train": Counts(40000, 19213, None),
        "val": Counts(5000, 4559, None),
        "test": Counts(5000, 4527, None),
    },
    ("refcoco+", "unc"): {
        "train": Counts(42278, 16992, 120191),
        "val": Counts(3805, 1500, 10758),
        "testA": Counts(1975, 750, 5726),
        "testB": Counts(1798, 750, 4889),
    },
    ("refcocog", "umd"): {
        "train": Counts(42226, 21899, 80512),
        "val": Counts(2573, 1300, 4896),
        "test": Counts(5023, 2600, 9602),
    },
    ("refcocog", "google"): {"train": Counts(44822, 24698, None), "val": Counts(5000, 4650, None)},
    ("grefcoco", "unc"): {
        "train": Counts(None, None, 209344),
        "val": Counts(None, 1500, 16870),
        "testA": Counts(None, 750, 18712),
        "testB": Counts(None, 750, 14933),
    },
}
"""By data set and partition (split_by); the first partition of a data set is its default."""

FAMILY = tuple(dict.fromkeys(dataset for dataset, _ in PUBLISHED))
PARTITIONS = tuple(dict.fromkeys(split_by for _, split_by in PUBLISHED))

_ALIASES: dict[str, tuple[str, str | None]] = {
    "refcocop": ("refcoco+", None),
    "refcocoplus": ("refcoco+", None),
    "gref": ("refcocog", None),
    "refcocogumd": ("refcocog", "umd"),
    "refcocogu": ("refcocog", "umd"),
    "refcocoggoogle": ("refcocog", "google"),
    "refcocogg": ("refcocog", "google"),
}

_COCO_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant . stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe . backpack umbrella . . handbag tie suitcase "
    "frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle . "
    "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair "
    "couch potted_plant bed . dining_table . . toilet . tv laptop mouse remote keyboard cell_phone microwave oven "
    "toaster sink refrigerator . book clock vase scissors teddy_bear hair_drier toothbrush"
)

COCO_CATEGORIES = {i: name.replace("_", " ") for i, name in enumerate(_COCO_NAMES.split(), 1) if name != "."}
"""COCO's 80 categories by id; for layouts that give the id alone."""


def resolve_dataset(name: str, split_by: str | None = None) -> tuple[str, str]:
    """Data set and partition that are meant; raises VLFormerError where there are none such.

    >>> resolve_dataset("G-Ref")
    ('refcocog', 'umd')
    >>> resolve_dataset("refcocog_g")
    ('refcocog', 'google')
    """
    key = "".join(letter for letter in name.lower() if letter not in "-_ ")
    dataset, fixed = (key, None) if key in FAMILY else _ALIASES.get(key, (None, None))
    if dataset is None:
        raise UsageError(f"no data set is called {name!r}: there are scenes, custom, {', '.join(FAMILY)}")
    known = [partition for of, partition in PUBLISHED if of == dataset]
    if split_by is not None and (split_by not in known or fixed not in (None, split_by)):
        raise UsageError(
            f"{name} has no partition {split_by!r}: give --split-by {' or '.join([fixed] if fixed else known)}"
        )
    return dataset, split_by or fixed or known[0]


def check_counts(place: str, found: Mapping[str, Counts], dataset: str, split_by: str) -> None:
    """Raises VLFormerError, with both tables, where a split is absent, unknown or of another size than published."""
    published = PUBLISHED[dataset, split_by]
    if found.keys() == published.keys() and all(_agree(found[split], published[split]) for split in published):
        return
    raise VLFormerError(
        f"{place} is not {dataset} ({split_by}) as published: fetch the files again, or prepare a subset with "
        f"--allow-count-mismatch\n{_table('found', found)}\n{_table('published', published)}"
    )


def _agree(found: Counts, published: Counts) -> bool:
    return all(theirs is None or ours == theirs for ours, theirs in zip(found, published, strict=True))


def _table(title: str, counts: Mapping[str, Counts]) -> str:
    rows: list[list[str]] = [[title, *Counts._fields]]
    rows += [[split, *("-" if n is None else str(n) for n in row)] for split, row in counts.items()]
    return "\n".join(f"  {first:<10}" + "".join(f"{cell:>13}" for cell in rest) for first, *rest in rows)
