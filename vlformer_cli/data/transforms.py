"""From a picture and its masks on disk to the size that the model reads; augmentation for training.

Letters: N masks, H W pixels. Pictures stay uint8, masks boolean. A "23" matrix takes (x, y, 1) to (x, y), where whole
numbers are the middles of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vlformer_cli.data.rle import decode_rle
from vlformer_cli.types import RLE

Image = NDArray[np.uint8]
Matrix = NDArray[np.float64]
MASK_MARGIN = 2  # masks are decoded so many times finer than needed: a warp decides each pixel by halves


def fitted_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Height and width after resizing: the shorter side to `short_side`, unless the longer would pass `max_side`.

    >>> fitted_size(480, 640, 240, 1000), fitted_size(100, 400, 240, 480), fitted_size(1, 5000, 192, 320)
    ((240, 320), (120, 480), (1, 320))
    """
    scale = min(short_side / min(height, width), max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image_HW3: Image, size: tuple[int, int]) -> Image:
    """Area averaging when shrinking, bilinear when growing."""
    height, width = size
    shrinks = height * width < image_HW3.shape[0] * image_HW3.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image_HW3, (width, height), interpolation=how), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class View:
    """Pixels of a picture (HW3) or mask (HW, 0 or 255), perhaps fewer than the original's, and where they lie on it."""

    pixels: Image
    to_original_23: Matrix

    @classmethod
    def of_image(cls, image_HW3: Image, step: int = 1) -> View:
        """Of pixels that each stand for `step` x `step` of the original's."""
        middle = (step - 1) / 2
        return cls(image_HW3, np.array([[step, 0, middle], [0, step, middle]], dtype=np.float64))

    @classmethod
    def of_mask(cls, rle: RLE, size: tuple[int, int]) -> View:
        """With all the pixels that are needed where the whole picture is shrunk to `size`, and hardly more."""
        shrinks = min(side / smaller for side, smaller in zip(rle["size"], size, strict=True))
        step = max(1, int(shrinks / MASK_MARGIN))
        first = step // 2
        matrix_23 = np.array([[step, 0, first], [0, step, first]], dtype=np.float64)
        return cls(decode_rle(rle, step).view(np.uint8) * np.uint8(255), matrix_23)

    def shrunk(self, size: tuple[int, int]) -> View:
        """By area averaging, to `size`; the same where it is no larger than that."""
        if size[0] >= self.pixels.shape[0]:
            return self
        back_23 = scaling(size, (self.pixels.shape[0], self.pixels.shape[1]))
        return View(resize_image(self.pixels, size), after(back_23, self.to_original_23))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What training changes about a picture. Nothing here mirrors it: that would turn left into right."""

    short_sides: tuple[int, ...]
    max_side: int
    rotate_degrees: float
    colour_jitter: float
    shift: float

    def largest(self, height: int, width: int) -> tuple[int, int]:
        """The largest size that a picture of this height and width can get."""
        return fitted_size(height, width, max(self.short_sides), self.max_side)

    def apply(
        self, picture: View, masks: Sequence[View], original: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Image, list[NDArray[np.bool_]]]:
        """A changed picture and the masks moved with it. What the picture leaves free gets its mean colour.

        `original`: the picture's own height and width.
        """
        size = fitted_size(*original, int(rng.choice(self.short_sides)), self.max_side)
        turn = float(rng.uniform(-self.rotate_degrees, self.rotate_degrees))
        move = rng.uniform(-self.shift, self.shift, 2) * (size[1], size[0])
        matrix_23 = after(scaling(original, size), _turning(size, turn, (float(move[0]), float(move[1]))))
        picture = picture.shrunk(size)  # so that the bilinear warp does not skip pixels
        image = cv2.warpAffine(
            picture.pixels,
            after(picture.to_original_23, matrix_23),
            (size[1], size[0]),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=cv2.mean(picture.pixels)[:3],
        )
        moved = [warp_mask(mask, matrix_23, size) for mask in masks]
        return self._recolour(np.asarray(image, dtype=np.uint8), rng), moved

    def _recolour(self, image_HW3: Image, rng: np.random.Generator) -> Image:
        """Brightness is a factor, contrast one on the distance from the mean, saturation one on that from grey.

        All three together are one linear map of the colours, so that no floating-point picture is made.
        """
        brightness, contrast, saturation = rng.uniform(1 - self.colour_jitter, 1 + self.colour_jitter, 3)
        mean = sum(cv2.mean(image_HW3)[:3]) / 3
        colours_33 = saturation * np.eye(3) + (1 - saturation) / 3
        offset_31 = np.full((3, 1), brightness * (1 - contrast) * mean)
        matrix_34 = np.hstack([brightness * contrast * colours_33, offset_31])
        return np.asarray(cv2.transform(image_HW3, matrix_34), dtype=np.uint8)


def warp_mask(mask: View, matrix_23: Matrix, size: tuple[int, int]) -> NDArray[np.bool_]:
    """By a matrix from the original. Bilinear, then a half decides: edges stay where they are under any scale."""
    soft = cv2.warpAffine(
        mask.pixels, after(mask.to_original_23, matrix_23), (size[1], size[0]), flags=cv2.INTER_LINEAR
    )
    return np.asarray(soft >= 128)


def scaling(source: tuple[int, int], target: tuple[int, int]) -> Matrix:
    """From the pixels of a picture of one height and width to those that they become in another."""
    y, x = target[0] / source[0], target[1] / source[1]
    return np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5]])


def after(first_23: Matrix, second_23: Matrix) -> Matrix:
    """The matrix that does first the one and then the other."""
    return np.asarray(second_23 @ np.vstack([first_23, [0, 0, 1]]))


def _turning(size: tuple[int, int], degrees: float, move: tuple[float, float]) -> Matrix:
    """About the middle of a picture of that height and width, then by so many pixels (x, y)."""
    matrix_23 = np.asarray(cv2.getRotationMatrix2D(((size[1] - 1) / 2, (size[0] - 1) / 2), degrees, 1.0))
    matrix_23[:, 2] += move
    return matrix_23
