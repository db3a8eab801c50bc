"""How training reads pictures and masks: fewer pixels where they are not needed, each in its place, once if wanted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data as photographs

from vlformer_cli.config import Config
from vlformer_cli.data import cache as cache_module
from vlformer_cli.data.build import build_training_data
from vlformer_cli.data.cache import PictureCache, shrunk_picture
from vlformer_cli.data.dataset import load_group
from vlformer_cli.data.images import read_at_least, read_image
from vlformer_cli.data.rle import decode_rle, encode_mask
from vlformer_cli.data.store import PreparedSplit, PreparedWriter
from vlformer_cli.data.transforms import Augmentation, View, fitted_size
from vlformer_cli.engine.checkpoint import load_weights
from vlformer_cli.engine.evaluate import evaluate
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import Batch, Ref, VLFormerError

STILL = Augmentation(short_sides=(64,), max_side=200, rotate_degrees=0.0, colour_jitter=0.0, shift=0.0)
WILD = Augmentation(short_sides=(48, 64), max_side=200, rotate_degrees=15.0, colour_jitter=0.1, shift=0.1)


def photograph(height: int, width: int) -> NDArray[np.uint8]:
    return cv2.resize(photographs.astronaut(), (width, height), interpolation=cv2.INTER_AREA)


def save(image: NDArray[np.uint8], path: Path, **options: Any) -> Path:
    Image.fromarray(image).save(path, quality=95, **options)
    return path


def blobs(height: int, width: int, places: list[tuple[float, float]], radius: float) -> NDArray[np.uint8]:
    """White on black, with soft edges."""
    y, x = np.mgrid[:height, :width]
    light = sum(np.clip(radius + 0.5 - np.hypot(y - row, x - column), 0, 1) for row, column in places)
    return np.repeat((255 * np.minimum(light, 1))[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "least", "step"),
    [
        ((400, 600), (50, 75), 8), ((400, 600), (51, 75), 4), ((401, 603), (100, 150), 4), ((427, 640), (192, 287), 2),
        ((427, 640), (214, 300), 1), ((480, 640), (480, 640), 1), ((480, 640), (900, 1200), 1), ((9, 17), (1, 1), 8),
    ],
)  # fmt: skip
def test_a_jpeg_is_decoded_no_smaller_than_needed(
    tmp_path: Path, size: tuple[int, int], least: tuple[int, int], step: int
) -> None:
    image, found_step, original = read_at_least(save(photograph(*size), tmp_path / "a.jpg"), least)
    assert (found_step, original) == (step, size)
    assert image.shape[:2] == (-(-size[0] // step), -(-size[1] // step))
    h, w = size[0] // step, size[1] // step  # whole blocks
    full = read_image(tmp_path / "a.jpg")[: h * step, : w * step].reshape(h, step, w, step, 3).mean((1, 3))
    assert np.abs(image[:h, :w] - full).mean() < 2.5


def test_other_formats_are_decoded_whole(tmp_path: Path) -> None:
    Image.fromarray(photograph(400, 600)).save(tmp_path / "a.png")
    image, step, original = read_at_least(tmp_path / "a.png", (50, 75))
    assert (step, original) == (1, (400, 600))
    np.testing.assert_array_equal(image, photograph(400, 600))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(400, 600), (402, 600), (401, 600)])
def test_turned_jpegs_are_upright_at_every_step(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(photograph(*size), tmp_path / "a.jpg", exif=exif)
    full = read_image(path)
    image, step, original = read_at_least(path, (full.shape[0] // 4, full.shape[1] // 4))
    assert original == full.shape[:2]
    assert step == (4 if orientation == 1 or size == (400, 600) else 2 if size == (402, 600) else 1)
    h, w = full.shape[0] // step, full.shape[1] // step
    expected = full[: h * step, : w * step].reshape(h, step, w, step, 3).mean((1, 3))
    assert np.abs(image[:h, :w] - expected).mean() < 2.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_other_turned_pictures_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(photograph(40, 60), tmp_path / f"a.{suffix}", exif=exif)
    full = read_image(path)
    assert full.shape == ((60, 40, 3) if orientation > 4 else (40, 60, 3))
    image, step, original = read_at_least(path, (10, 10))
    assert (step, original) == (1, full.shape[:2])
    np.testing.assert_array_equal(image, full)


def test_pictures_of_several_frames(tmp_path: Path) -> None:
    """Phones write such JPEGs; only the first is looked at."""
    frames = [Image.fromarray(photograph(400, 600)), Image.new("RGB", (400, 600))]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    image, step, original = read_at_least(tmp_path / "a.jpg", (100, 150))
    assert (step, original) == (4, (400, 600))
    assert (
        np.abs(
            image.astype(int) - cv2.resize(read_image(tmp_path / "a.jpg"), (150, 100), interpolation=cv2.INTER_AREA)
        ).mean()
        < 2.5
    )


@pytest.mark.parametrize("size", [(427, 640), (259, 387), (1031, 775)])
def test_what_is_decoded_small_lies_where_it_lay(tmp_path: Path, size: tuple[int, int]) -> None:
    """Middles of blobs near all corners, by the light's centre, against exact arithmetic: to a twentieth of a pixel."""
    height, width = size
    near, radius = 0.12, 0.06 * min(size)
    places = [(y * height, x * width) for y in (near, 1 - near) for x in (near, 1 - near)]
    path = save(blobs(height, width, places, radius), tmp_path / "a.jpg", subsampling=0)
    target = STILL.largest(*size)
    assert read_at_least(path, target)[1] > 1
    image, _ = STILL.apply(shrunk_picture(path, size, target), [], size, np.random.default_rng(0))
    assert image.shape[:2] == target
    y, x = np.mgrid[: target[0], : target[1]]
    for row, column in places:
        expected = ((row + 0.5) * target[0] / height - 0.5, (column + 0.5) * target[1] / width - 0.5)
        light = image.mean(2) * (np.hypot(y - expected[0], x - expected[1]) < radius * target[0] / height + 3)
        found = ((light * y).sum() / light.sum(), (light * x).sum() / light.sum())
        assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7])
def test_a_mask_decoded_small_is_every_so_many_of_its_rows_and_columns(step: int) -> None:
    rng = np.random.default_rng(step)
    for height, width, share in ((30, 40, 0.5), (31, 47, 0.02), (8, 9, 0.98), (7, 7, 0.0), (50, 8, 1.0)):
        mask = (
            cv2.blur(rng.random((height, width)), (3, 3)) < share
            if 0 < share < 1
            else np.full((height, width), share > 0)
        )
        first = step // 2
        np.testing.assert_array_equal(decode_rle(encode_mask(mask), step), mask[first::step, first::step])


@pytest.mark.parametrize("size", [(200, 300), (427, 640), (3000, 4000)])
def test_masks_decoded_small_are_those_decoded_whole(size: tuple[int, int]) -> None:
    """After the same warp, but for a few pixels of the edge."""
    mask = blobs(*size, [(0.4 * size[0], 0.5 * size[1])], 0.2 * size[0])[..., 0] > 127
    image = np.zeros((*size, 3), np.uint8)
    target = WILD.largest(*size)
    small = View.of_mask(encode_mask(mask), target)
    assert (small.pixels.size < mask.size) == (size[0] > 250)
    whole = View.of_image(mask.astype(np.uint8) * 255)
    for seed in range(5):
        _, (found, expected) = WILD.apply(View.of_image(image), [small, whole], size, np.random.default_rng(seed))
        assert expected.sum() > 200
        assert (found & expected).sum() / (found | expected).sum() > 0.97
        for one, other in zip(found.nonzero(), expected.nonzero(), strict=True):
            assert one.mean() == pytest.approx(other.mean(), abs=0.1)


def test_colours_change_as_in_floating_point() -> None:
    strong = dataclasses.replace(STILL, colour_jitter=0.4)
    image = photograph(128, 96)
    for seed in range(10):
        found = strong._recolour(image, np.random.default_rng(seed))
        brightness, contrast, saturation = np.random.default_rng(seed).uniform(0.6, 1.4, 3)
        x = image * brightness
        x = x.mean() + (x - x.mean()) * contrast
        grey = x.mean(2, keepdims=True)
        expected = np.clip(grey + (x - grey) * saturation, 0, 255)
        assert np.abs(found - expected).max() < 1.01
        assert np.abs(found.astype(float) - image).mean() > 1


@pytest.fixture
def photos(tmp_path: Path) -> PreparedSplit:
    """Four JPEGs of 427 x 640 with two refs each; the second ref of a picture means nothing."""
    with PreparedWriter(tmp_path / "photos-me", dataset="photos", split_by="me") as writer:
        (writer.folder / "images").mkdir()
        refs = []
        for number in range(4):
            save(np.roll(photograph(427, 640), 50 * number, 1), writer.folder / f"images/{number}.jpg")
            mask = np.zeros((427, 640), np.bool_)
            mask[100:300, 100 + 80 * number : 300 + 80 * number] = True
            for meant in (True, False):
                ident = 2 * number + meant
                refs.append(
                    Ref(f"{number}.jpg", number, 640, 427, ident, (ident,), "", (0, 0, 1, 1),
                        encode_mask(mask) if meant else None, ("the one", "that one"), (2 * ident, 2 * ident + 1))
                )  # fmt: skip
        writer.write_split("train", refs)
        writer.write_split("val", refs)
    return PreparedSplit(tmp_path / "photos-me", "train")


def test_each_expression_has_the_mask_of_its_ref(photos: PreparedSplit) -> None:
    for number in range(4):
        group = load_group(photos, photos.image_samples(number), STILL, np.random.default_rng(0))
        scale = 64 / 427
        for sample, mask in zip(group.samples, group.mask_NHW, strict=True):
            if sample.ref.segmentation is None:
                assert not mask.any()
            else:
                rows, columns = mask.nonzero()
                assert (rows.min(), rows.max() + 1) == pytest.approx((100 * scale, 300 * scale), abs=1)
                left = (100 + 80 * number) * scale
                assert (columns.min(), columns.max() + 1) == pytest.approx((left, left + 200 * scale), abs=1)


def test_a_picture_that_is_not_as_large_as_its_masks_is_refused(photos: PreparedSplit) -> None:
    save(photograph(300, 400), photos.image_root / "2.jpg")
    with pytest.raises(VLFormerError, match=r"2\.jpg is 400 x 300, its data set says 640 x 427: see `vlformer data"):
        load_group(photos, photos.image_samples(2), STILL, np.random.default_rng(0))


def test_evaluation_looks_at_every_pixel(photos: PreparedSplit, small_weights: Path) -> None:
    """Training may take JPEGs that were decoded at half their size; what is evaluated was decoded whole."""
    loaded = load_weights(small_weights)
    predictor, looked = Predictor(loaded.model, loaded.config), []

    def look(images: torch.Tensor, valid: torch.Tensor) -> Any:
        looked.append(images[0, :, : valid[0, :, 0].sum(), : valid[0, 0].sum()].permute(1, 2, 0).numpy())
        return VLFormer.look(loaded.model, images, valid)

    loaded.model.look = look  # type: ignore[method-assign]
    evaluate(predictor, photos, limit=2)
    height, width = fitted_size(427, 640, loaded.config.short_side, loaded.config.max_side)
    whole = cv2.resize(read_image(photos.image_root / "0.jpg"), (width, height), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(looked[0], whole)


def test_evaluation_names_a_picture_of_another_size(photos: PreparedSplit, small_weights: Path) -> None:
    save(photograph(300, 400), photos.image_root / "2.jpg")
    loaded = load_weights(small_weights)
    (message,) = evaluate(Predictor(loaded.model, loaded.config), photos).unreadable
    assert "2.jpg is 400 x 300, its data set says 640 x 427" in message


def batches_of(config: Config, cache: Path | None) -> list[Batch]:
    assert config.data is not None
    data = build_training_data(
        dataclasses.replace(config, data=dataclasses.replace(config.data, cache=str(cache or "")))
    )
    return [batch for step in range(len(data)) for batch in data[step]]


@pytest.fixture
def photo_run(small_run: Config, photos: PreparedSplit) -> Config:
    assert small_run.data is not None
    source = dataclasses.replace(small_run.data.train[0], path=str(photos.directory))
    return dataclasses.replace(
        small_run, data=dataclasses.replace(small_run.data, train=(source,), short_sides=(48, 64), images_per_step=4)
    )


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other) > 3
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.masks, b.masks)
        assert a.samples == b.samples


def test_the_cache_changes_no_number_and_decodes_each_picture_once(
    photo_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, decoded = batches_of(photo_run, None), []
    original = cache_module.shrunk_picture

    def counted(path: Path, *sizes: tuple[int, int]) -> View:
        decoded.append(path.name)
        return original(path, *sizes)

    monkeypatch.setattr(cache_module, "shrunk_picture", counted)
    assert_same(batches_of(photo_run, tmp_path / "cache"), expected)
    assert sorted(decoded) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert_same(batches_of(photo_run, tmp_path / "cache"), expected)
    assert len(decoded) == 4


def test_the_cache_mends_what_is_damaged_and_notices_what_changed(photos: PreparedSplit, tmp_path: Path) -> None:
    path, size = photos.image_root / "0.jpg", STILL.largest(427, 640)
    cache = PictureCache(tmp_path / "cache")
    expected = cache.view(path, (427, 640), size).pixels
    (kept,) = cache.folder.rglob("*.safetensors")
    whole = kept.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        kept.write_bytes(damage)
        np.testing.assert_array_equal(cache.view(path, (427, 640), size).pixels, expected)
        assert kept.read_bytes() == whole
    save(255 - photograph(427, 640), path)
    assert np.abs(cache.view(path, (427, 640), size).pixels.astype(int) - expected).mean() > 20
    path.unlink()
    with pytest.raises(VLFormerError, match=r"0\.jpg is not there"):
        cache.view(path, (427, 640), size)


def test_a_cache_that_cannot_be_written_costs_time_alone(photo_run: Config, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where a folder would be")
    assert_same(batches_of(photo_run, tmp_path / "full"), batches_of(photo_run, None))
