"""From a picture and its masks on disk to the size that the model reads; augmentation for training.

Letters: N masks, H W pixels. Pictures stay uint8, masks boolean.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Masks = NDArray[np.bool_]


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
class Augmentation:
    """What training changes about a picture. Nothing here mirrors it: that would turn left into right."""

    short_sides: tuple[int, ...]
    max_side: int
    rotate_degrees: float
    colour_jitter: float
    shift: float

    def apply(self, image_HW3: Image, masks_NHW: Masks, rng: np.random.Generator) -> tuple[Image, Masks]:
        """A changed picture and the masks moved with it. What the picture leaves free gets its mean colour."""
        height, width = image_HW3.shape[:2]
        size = fitted_size(height, width, int(rng.choice(self.short_sides)), self.max_side)
        turn = float(rng.uniform(-self.rotate_degrees, self.rotate_degrees))
        move = rng.uniform(-self.shift, self.shift, 2) * (size[1], size[0])
        matrix = _affine((height, width), size, turn, (float(move[0]), float(move[1])))
        border = tuple(float(c) for c in image_HW3.mean((0, 1)))
        image = cv2.warpAffine(
            resize_if_smaller(image_HW3, size),
            _after_resize(matrix, (height, width), size),
            (size[1], size[0]),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=border,
        )
        masks = [warp_mask(mask, matrix, size) for mask in masks_NHW]
        return self._recolour(np.asarray(image, dtype=np.uint8), rng), np.stack(masks)

    def _recolour(self, image_HW3: Image, rng: np.random.Generator) -> Image:
        brightness, contrast, saturation = rng.uniform(1 - self.colour_jitter, 1 + self.colour_jitter, 3)
        x = image_HW3.astype(np.float32) * np.float32(brightness)
        x = x.mean() + (x - x.mean()) * np.float32(contrast)
        grey = x.mean(2, keepdims=True)
        x = grey + (x - grey) * np.float32(saturation)
        return np.asarray(np.clip(x + 0.5, 0, 255), dtype=np.uint8)


def warp_mask(mask_HW: NDArray[np.bool_], matrix_23: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Bilinear, then a half decides: edges stay where they are under any scale."""
    soft = cv2.warpAffine(mask_HW.astype(np.uint8) * 255, matrix_23, (size[1], size[0]), flags=cv2.INTER_LINEAR)
    return np.asarray(soft >= 128)


def resize_mask(mask_HW: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """As `resize_image`, then a half decides."""
    if mask_HW.shape == size:
        return mask_HW
    return np.asarray(resize_image(mask_HW.astype(np.uint8) * 255, size) >= 128)


def resize_if_smaller(image_HW3: Image, size: tuple[int, int]) -> Image:
    """Shrinks by area averaging first, so that the bilinear warp after it does not skip pixels."""
    return resize_image(image_HW3, size) if size[0] < image_HW3.shape[0] else image_HW3


def _affine(
    source: tuple[int, int], target: tuple[int, int], turn: float, move: tuple[float, float]
) -> NDArray[np.float64]:
    """The 2x3 matrix from source to target pixels: scale, turn about the middle, move."""
    scale_y, scale_x = target[0] / source[0], target[1] / source[1]
    to_target = np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5], [0, 0, 1]])
    middle = ((target[1] - 1) / 2, (target[0] - 1) / 2)
    turned = np.vstack([cv2.getRotationMatrix2D(middle, turn, 1.0), [0, 0, 1]])
    turned[:2, 2] += move
    return np.asarray((turned @ to_target)[:2], dtype=np.float64)


def _after_resize(
    matrix_23: NDArray[np.float64], source: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.float64]:
    """The part of `matrix_23` that is left once `resize_if_smaller` has been done."""
    if size[0] >= source[0]:
        return matrix_23
    resized = np.vstack([_affine(source, size, 0.0, (0.0, 0.0)), [0, 0, 1]])
    return np.asarray((np.vstack([matrix_23, [0, 0, 1]]) @ np.linalg.inv(resized))[:2], dtype=np.float64)
