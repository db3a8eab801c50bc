"""Run-length encodings against masks drawn by hand and against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from vlformer_cli.data.rle import (
    check_rle,
    decode_rle,
    encode_mask,
    polygons_to_rle,
    rle_area,
    rle_bbox,
    union_rle,
)
from vlformer_cli.types import RLE, VLFormerError

BOX = np.zeros((6, 8), bool)
BOX[1:4, 2:7] = True


def test_round_trip_of_random_masks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = rng.random(rng.integers(1, 90, 2)) < rng.choice([0, 0.001, 0.5, 0.99, 1])
        rle = encode_mask(mask)
        assert rle["counts"] == coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
        decoded = decode_rle(rle)
        np.testing.assert_array_equal(decoded, mask)
        assert decoded.dtype == np.bool_
        assert rle_area(rle) == mask.sum()


def test_long_runs() -> None:
    mask = np.zeros((4000, 6000), bool)
    mask[:, 5000:] = True
    mask[17, 3] = True
    np.testing.assert_array_equal(decode_rle(encode_mask(mask)), mask)


def test_bbox_is_tight() -> None:
    assert rle_bbox(encode_mask(BOX)) == (2, 1, 5, 3)
    assert rle_bbox(encode_mask(~np.zeros((3, 4), bool))) == (0, 0, 4, 3)
    assert rle_bbox(encode_mask(np.zeros((3, 4), bool))) == (0, 0, 0, 0)


def test_a_box_as_polygon_and_as_the_three_kinds_of_rle() -> None:
    expected = encode_mask(BOX)
    plain = [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]  # column-major: two columns and a row, then five columns
    for segmentation in (
        [[2, 1, 7, 1, 7, 4, 2, 4]],
        [[2, 1, 5, 1, 5, 4, 2, 4], [4.0, 1.0, 7.0, 1.0, 7.0, 4.0, 4.0, 4.0]],
        {"size": [6, 8], "counts": plain},
        {"size": [6, 8], "counts": expected["counts"]},
        {"size": (6, 8), "counts": expected["counts"].encode()},
    ):
        assert polygons_to_rle(segmentation, 6, 8) == expected


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_polygons_are_what_pycocotools_makes_of_them() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        height, width = (int(v) for v in rng.integers(5, 60, 2))
        polygons = [(rng.random(2 * rng.integers(3, 9)) * min(height, width)).tolist() for _ in range(3)]
        expected = np.zeros((height, width), bool)
        for polygon in polygons:
            expected |= coco.decode(coco.frPyObjects([polygon], height, width))[..., 0].astype(bool)
        np.testing.assert_array_equal(decode_rle(polygons_to_rle(polygons, height, width)), expected)


def test_union() -> None:
    other = np.zeros((6, 8), bool)
    other[5] = True
    assert union_rle([encode_mask(BOX), encode_mask(other)]) == encode_mask(BOX | other)
    assert union_rle([encode_mask(BOX)]) == encode_mask(BOX)
    with pytest.raises(VLFormerError, match=r"\(6, 8\), \(8, 6\)"):
        union_rle([encode_mask(BOX), encode_mask(BOX.T)])


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "None is neither"),
        ([], "neither a list of polygons nor an RLE"),
        ("abc", "neither"),
        ([[2, 1, 7, 1]], "three points"),
        ([[2, 1, 7, 1, 7, 4, 2]], "three points"),
        ([2, 1, 7, 1, 7, 4], r"is a single polygon: put it in a list, \[\[\.\.\.\]\]"),
        ([[2, 1, 7, 1, 7, "4"]], "three points"),
        ([[2, 1, 7, 1, 7, float("nan")]], "has the coordinate nan"),
        ([[2, 1, 7, 1, 7e9, 4]], "far outside a picture of 8 x 6"),
        ({"size": [8, 6], "counts": "0"}, "does not fit a picture of height 6 and width 8"),
        ({"counts": "0"}, "does not fit"),
        ({"size": [6, 8]}, "malformed"),
        ({"size": [6, 8], "counts": [13, 3]}, "over 16 pixels does not fill"),
        ({"size": [6, 8], "counts": [-2, 50]}, "does not fill"),
        ({"size": [6, 8], "counts": [48.0]}, "whole numbers"),
        ({"size": [6, 8], "counts": "zzz"}, "malformed"),
        ({"size": [6, 8], "counts": "é"}, "malformed"),
        ({"size": [6, 8], "counts": ""}, "over 0 pixels"),
    ],
)
def test_malformed_segmentations(segmentation: Any, words: str) -> None:
    with pytest.raises(VLFormerError, match=words):
        polygons_to_rle(segmentation, 6, 8)


def test_no_damaged_text_reaches_the_c_code() -> None:
    rng = np.random.default_rng(2)
    good = encode_mask(rng.random((30, 40)) < 0.3)
    accepted = 0
    for _ in range(300):
        text = list(good["counts"])
        for place in rng.integers(0, len(text), 2):
            text[place] = chr(rng.integers(48, 112))
        rle = RLE(size=[30, 40], counts="".join(text[: rng.integers(1, len(text) + 1)]))
        try:
            check_rle(rle)
        except VLFormerError:
            with pytest.raises(VLFormerError):
                decode_rle(rle)
        else:
            accepted += 1
            assert decode_rle(rle).sum() == rle_area(rle)
    assert accepted < 300
    for bad in ({"size": [2], "counts": "4"}, {"size": [2, 2]}, {"size": ["a", 2], "counts": "4"}, None):
        with pytest.raises(VLFormerError, match="malformed"):
            decode_rle(bad)  # type: ignore[arg-type]


def test_what_is_no_mask() -> None:
    for shape in ((0, 4), (3,), (2, 3, 4)):
        with pytest.raises(VLFormerError, match="cannot be encoded"):
            encode_mask(np.zeros(shape, bool))
