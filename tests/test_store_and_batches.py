"""The prepared format, the batches drawn from it, and what augmentation does to pictures and masks."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from vlformer_cli.data.dataset import (
    Deal,
    TrainingBatches,
    WeightedSplit,
    collate,
    images_of,
    shuffled_ordinal,
)
from vlformer_cli.data.rle import encode_mask
from vlformer_cli.data.scenes.generate import Recipe, generate_scenes
from vlformer_cli.data.store import PreparedSplit, PreparedWriter
from vlformer_cli.data.transforms import Augmentation, View, fitted_size
from vlformer_cli.types import Batch, ImageGroup, Ref, Sample, VLFormerError

STILL = Augmentation(short_sides=(48,), max_side=96, rotate_degrees=0.0, colour_jitter=0.0, shift=0.0)
EXPRESSIONS = ("red cup!", "Würfel über dem café", "赤い犬 🐶", 'line\nbreak "quoted" \u2028', "")


def square_mask(height: int, width: int, top: int, left: int, side: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def make_ref(image: int, number: int, count: int) -> Ref:
    """Ref `number` of picture `image`, with `count` expressions."""
    ident = image * 10 + number
    return Ref(
        image=f"bildér/{image:03d}.png",
        image_id=image,
        width=40,
        height=30,
        ref_id=ident,
        ann_ids=(ident, ident + 1),
        category="Tasse",
        bbox=(1.0, 2.5, 3.0, 4.0),
        segmentation=None if number == 2 else encode_mask(square_mask(30, 40, 5, 4 + number, 9)),
        expressions=tuple(f"{EXPRESSIONS[(ident + i) % 5]} {image}" for i in range(count)),
        sent_ids=tuple(ident * 10 + i for i in range(count)),
        kinds=tuple("ab"[i % 2] for i in range(count)) if number else (),
    )


def make_refs(images: int) -> list[Ref]:
    return [
        make_ref(image, number, 1 + (image + number) % 3) for image in range(images) for number in range(1 + image % 3)
    ]


def prepare(folder: Path, images: int = 7) -> Path:
    """A data set with a picture per image, whose grey value is its ordinal times 5."""
    with PreparedWriter(folder, dataset="toy", split_by="me") as writer:
        (writer.folder / "images/bildér").mkdir(parents=True)
        for image in range(images):
            grey = np.full((30, 40, 3), image * 5, dtype=np.uint8)
            Image.fromarray(grey).save(writer.folder / f"images/bildér/{image:03d}.png")
        writer.write_split("train", make_refs(images))
        writer.write_split("empty", [])
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "toy-me")


def flat_samples(refs: list[Ref]) -> list[Sample]:
    return [
        Sample(ref, expression, ref.sent_ids[i], ref.kinds[i] if ref.kinds else "")
        for ref in refs
        for i, expression in enumerate(ref.expressions)
    ]


def test_what_was_written_is_read_in_any_order(toy: Path) -> None:
    split, refs = PreparedSplit(toy, "train"), make_refs(7)
    assert [split.ref(row) for row in reversed(range(len(refs)))] == refs[::-1]
    expected = flat_samples(refs)
    assert len(split) == len(expected)
    order = np.random.default_rng(0).permutation(len(expected)).tolist()
    assert [split.sample(i) for i in order] == [expected[i] for i in order]
    by_image = [split.image_samples(ordinal) for ordinal in range(7)]
    assert by_image == [[s for s in expected if s.ref.image_id == image] for image in range(7)]
    assert (split.num_images, split.num_refs, split.name) == (7, len(refs), "toy-me/train")
    assert len(PreparedSplit(toy, "empty")) == 0
    for outside in (-1, len(expected)):
        with pytest.raises(IndexError):
            split.sample(outside)
    for outside in (-1, 7):
        with pytest.raises(IndexError):
            split.image_samples(outside)


@pytest.mark.parametrize("limit", [0, 1, 4, 10_000])
def test_images_of_stops_at_the_limit(toy: Path, limit: int) -> None:
    expected = flat_samples(make_refs(7))
    groups = list(images_of(PreparedSplit(toy, "train"), limit))
    assert [s for group in groups for s in group] == expected[: limit or None]
    assert all(len({s.ref.image for s in group}) == 1 for group in groups)


def read_in_worker(split: PreparedSplit, index: int) -> Sample:
    return split.sample(index)


def test_an_open_split_travels_to_a_spawned_worker(toy: Path) -> None:
    split = PreparedSplit(toy, "train")
    first = split.sample(0)  # the file is open now
    assert len(pickle.dumps(split)) < 2000  # and its index table is not taken along
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_in_worker, (split, 5)) == split.sample(5) != first


@pytest.mark.parametrize("damage", ["", "{", "{}", "[]", '{"splits": {}}', '{"config": {}, "seed": 0}', "\udc80"])
def test_a_damaged_or_foreign_manifest(tmp_path: Path, damage: str) -> None:
    """The last but one is a run folder's: easily given by mistake."""
    (tmp_path / "manifest.json").write_bytes(damage.encode(errors="surrogateescape"))
    with pytest.raises(VLFormerError, match=re.escape(str(tmp_path))):
        PreparedSplit(tmp_path, "train")


def test_what_is_missing_is_named(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match=r"nowhere is not a prepared data set.*prepare-data"):
        PreparedSplit(tmp_path / "nowhere", "train")
    with pytest.raises(VLFormerError, match=r"no split 'tset'; it has: empty, train"):
        PreparedSplit(toy, "tset")


def test_refs_of_one_image_stand_in_a_row(tmp_path: Path) -> None:
    refs = [make_ref(0, 0, 1), make_ref(1, 0, 1), make_ref(0, 1, 1)]
    with (
        pytest.raises(VLFormerError, match=r"bildér/000\.png do not stand in a row"),
        PreparedWriter(tmp_path / "toy", dataset="toy", split_by="me") as writer,
    ):
        writer.write_split("train", refs)
    assert list(tmp_path.iterdir()) == []


def broken_refs() -> Iterator[Ref]:
    yield make_ref(0, 0, 1)
    raise RuntimeError("power cut")


def test_a_failure_leaves_nothing_new_and_nothing_lost(tmp_path: Path) -> None:
    for overwrite in (False, True):
        before = sorted(p.name for p in tmp_path.rglob("*"))
        with (
            pytest.raises(RuntimeError, match="power cut"),
            PreparedWriter(tmp_path / "toy", dataset="toy", split_by="me", overwrite=overwrite) as writer,
        ):
            writer.write_split("train", broken_refs())
        assert sorted(p.name for p in tmp_path.rglob("*")) == before
        if not overwrite:
            prepare(tmp_path / "toy", images=3)
    assert len(PreparedSplit(tmp_path / "toy", "train")) == len(flat_samples(make_refs(3)))


def test_overwriting_has_to_be_asked_for(tmp_path: Path) -> None:
    prepare(tmp_path / "toy", images=2)
    with pytest.raises(VLFormerError, match=r"toy is there already.*--overwrite"):
        PreparedWriter(tmp_path / "toy", dataset="toy", split_by="me")
    with PreparedWriter(tmp_path / "toy", dataset="new", split_by="me", overwrite=True) as writer:
        writer.write_split("val", make_refs(1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy"]
    assert sorted(p.name for p in (tmp_path / "toy").iterdir()) == ["manifest.json", "val.index.npy", "val.jsonl"]


def batches(
    *sources: WeightedSplit,
    images: int = 2,
    each: int = 2,
    steps: int = 60,
    seed: int = 3,
    augmentation: Augmentation = STILL,
    deal: Deal | None = None,
) -> Batches:
    return Batches(
        sources=sources,
        augmentation=augmentation,
        images_per_step=images,
        expressions_per_image=each,
        max_tokens=20,
        steps=steps,
        seed=seed,
        deal=deal or Deal(),
    )


class Batches(TrainingBatches):
    """Of a process that takes each step in one forward."""

    def __getitem__(self, step: int) -> Batch:  # type: ignore[override]
        (batch,) = super().__getitem__(step)
        return batch


def source(folder: Path, weight: float = 1.0, first: int = 0, last: int | None = None) -> WeightedSplit:
    return WeightedSplit(PreparedSplit(folder, "train"), weight, first, last)


def same(one: Batch, other: Batch) -> bool:
    tensors = ("images", "pixel_valid", "tokens", "image_index", "masks")
    return one.samples == other.samples and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in tensors
    )


def test_a_batch_is_a_function_of_seed_and_step(toy: Path) -> None:
    wild = Augmentation(short_sides=(40, 48), max_side=96, rotate_degrees=15.0, colour_jitter=0.2, shift=0.1)
    data, again = batches(source(toy), augmentation=wild), batches(source(toy), augmentation=wild)
    kept = [data[step] for step in range(4)]
    np.random.seed(99)  # noqa: NPY002 - the global state must not matter
    torch.manual_seed(99)
    assert all(same(again[step], kept[step]) for step in (3, 1, 0, 2))
    other = batches(source(toy), augmentation=wild, seed=4)
    assert not any(same(other[step], kept[step]) for step in range(4))
    assert not same(kept[0], kept[1])


@pytest.mark.parametrize(("size", "forwards"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 1), (3, 1), (1, 3)])
def test_a_step_is_the_same_however_it_is_dealt(toy: Path, size: int, forwards: int) -> None:
    """Pictures, masks, expressions and their slots, by slot; and the seed of the loss's points."""
    wild = Augmentation(short_sides=(40,), max_side=96, rotate_degrees=15.0, colour_jitter=0.2, shift=0.1)

    def by_slot(batch: Batch) -> dict[int, tuple[Any, ...]]:
        return {
            int(slot): (batch.samples[n], batch.images[batch.image_index[n]].sum(), batch.masks[n].sum(), batch.draw)
            for n, slot in enumerate(batch.slots)
        }

    for step in range(3):
        whole = by_slot(batches(source(toy), images=4, each=3, augmentation=wild)[step])
        parts: dict[int, tuple[Any, ...]] = {}
        shares: list[int] = []
        for rank in range(size):
            deal = Deal(rank, size, forwards)
            dealt = TrainingBatches.__getitem__(
                batches(source(toy), images=4, each=3, augmentation=wild, deal=deal), step
            )
            shares += [len(batch.images) for batch in dealt]
            for batch in dealt:
                assert not parts.keys() & by_slot(batch).keys()
                parts |= by_slot(batch)
        assert parts == whole
        assert (len(shares), sum(shares), max(shares) - min(shares)) == (size * forwards, 4, 4 % (size * forwards) > 0)
    with pytest.raises(VLFormerError, match=r"images_per_step is 4, fewer than 5 processes x 1 forwards .* 5 or more"):
        batches(source(toy), images=4, deal=Deal(size=5))


def test_each_picture_is_drawn_once_per_epoch(toy: Path) -> None:
    data = batches(source(toy), images=7, steps=12)
    orders = [tuple(dict.fromkeys(s.ref.image_id for s in data[step].samples)) for step in range(12)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(orders)) > 4
    for count in (1, 2, 6, 12, 97, 1000):
        for epoch in (0, 3):
            drawn = [shuffled_ordinal(d, count, 5) for d in range(epoch * count, (epoch + 1) * count)]
            assert sorted(drawn) == list(range(count))


def test_at_most_so_many_different_expressions_per_picture(toy: Path) -> None:
    available = Counter(s.ref.image_id for s in flat_samples(make_refs(7)))
    for batch in (batches(source(toy), images=7, each=3)[step] for step in range(3)):
        assert Counter(s.ref.image_id for s in batch.samples) == {i: min(n, 3) for i, n in available.items()}
        assert len({s.sent_id for s in batch.samples}) == len(batch.samples)


def test_an_unreadable_picture_is_replaced(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "toy")
    (folder / "images/bildér/002.png").write_bytes(b"\x89PNG\r\n but no more")
    (folder / "images/bildér/005.png").unlink()
    data = batches(source(folder), images=7, steps=3)
    for step in range(3):
        seen = Counter(s.ref.image_id for s in data[step].samples)
        assert set(seen) == {0, 1, 3, 4, 6}
        assert len(data[step].images) == 7
        first, second = sorted(data[step].unreadable)
        assert "/002.png is not a picture of a known format" in first
        assert "/005.png is not there" in second
    for picture in (folder / "images/bildér").iterdir():
        picture.unlink()
    with pytest.raises(VLFormerError, match=r"10 pictures in a row of toy-me/train"):
        data[0]


def test_sources_are_active_from_their_first_step_to_before_their_last(toy: Path, tmp_path: Path) -> None:
    other = prepare(tmp_path / "other", images=40)  # pictures 7 to 39 tell it from the first
    data = batches(source(toy, last=20), source(other, first=20), images=4)
    before = {s.ref.image_id for step in range(20) for s in data[step].samples}
    after = {s.ref.image_id for step in range(20, 60) for s in data[step].samples}
    assert before == set(range(7))
    assert after == set(range(40))
    for gap in ([source(toy, first=1)], [source(toy, last=10), source(toy, first=11)], [source(toy, last=59)]):
        with pytest.raises(VLFormerError, match=r"no source is active at step (0|10|59)"):
            batches(*gap)
    with pytest.raises(VLFormerError, match="split empty is empty"):
        batches(WeightedSplit(PreparedSplit(toy, "empty"), 1.0, 0, None))


def test_weights_are_shares_of_the_draws(toy: Path, tmp_path: Path) -> None:
    with PreparedWriter(tmp_path / "light", dataset="toy", split_by="light") as writer:
        (writer.folder / "images").symlink_to(toy / "images")
        writer.write_split("train", [dataclasses.replace(make_ref(6, 0, 1), category="light")])
    data = batches(source(toy, weight=3.0), source(tmp_path / "light", weight=1.0), images=10, each=1)
    share = np.mean([sample.ref.category == "light" for step in range(60) for sample in data[step].samples])
    assert abs(share - 0.25) < 0.07  # 600 draws: four standard deviations


def tilted_square(size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright square on a dark picture, right of the middle, and its mask."""
    mask = square_mask(*size, size[0] // 4, size[1] // 2, size[0] // 3)
    image = np.where(mask[..., None], np.uint8(230), np.uint8(20)).repeat(3, 2)
    return image, mask


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def augment(
    how: Augmentation, image: NDArray[np.uint8], mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture with one mask, read as training reads them."""
    original = (image.shape[0], image.shape[1])
    view = View.of_mask(encode_mask(mask), how.largest(*original))
    new_image, (new_mask,) = how.apply(View.of_image(image), [view], original, rng)
    return new_image, new_mask


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (60, 80), (97, 131), (1211, 1597)])
def test_augmentation_moves_picture_and_mask_together_and_never_mirrors(size: tuple[int, int]) -> None:
    wild = Augmentation(short_sides=(96, 120), max_side=200, rotate_degrees=15.0, colour_jitter=0.1, shift=0.1)
    image, mask = tilted_square(size)
    still = Augmentation(short_sides=(96,), max_side=200, rotate_degrees=0.0, colour_jitter=0.0, shift=0.0)
    plain = augment(still, image, mask, np.random.default_rng(0))[1]
    moved = []
    for seed in range(20):
        new_image, new_mask = augment(wild, image, mask, np.random.default_rng(seed))
        assert new_image.shape[:2] == new_mask.shape
        assert min(new_image.shape[:2]) in (96, 120)
        assert overlap(new_image.mean(2) > 125, new_mask) > 0.9
        y, x = (places.mean() / side for places, side in zip(new_mask.nonzero(), new_mask.shape, strict=True))
        assert x > 0.5  # the square stays on the right: its middle is 0.5 + a sixth of the height at the least
        assert y < 0.62
        moved.append((round(float(y), 3), round(float(x), 3)))
    assert len(set(moved)) > 15
    assert plain.shape == fitted_size(*size, 96, 200)


def test_what_leaves_the_picture_free_is_filled_with_its_mean_and_not_with_the_referent() -> None:
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[:, :30] = 200
    shifting = Augmentation(short_sides=(60,), max_side=60, rotate_degrees=0.0, colour_jitter=0.0, shift=0.5)
    found = 0
    for seed in range(8):
        new_image, new_mask = augment(shifting, image, np.ones((60, 60), np.bool_), np.random.default_rng(seed))
        free = binary_erosion(~new_mask, np.ones((5, 5)), border_value=1)  # without the blended edge
        found += int(free.sum())
        assert np.abs(new_image[free].astype(int) - 100).max(initial=0) <= 1
    assert found > 1000


def test_fitted_size() -> None:
    rng = np.random.default_rng(1)
    for height, width in rng.integers(1, 3000, (200, 2)).tolist():
        found = fitted_size(height, width, 240, 400)
        assert min(found) >= 1
        assert max(found) <= 400
        assert min(found) == 240 or max(found) == 400
        scale = min(240 / min(height, width), 400 / max(height, width))
        assert math.dist(found, (height * scale, width * scale)) < 1.5
        assert found[::-1] == fitted_size(width, height, 240, 400)


def group_of(height: int, width: int, refs: list[Ref], grey: int) -> ImageGroup:
    samples = tuple(flat_samples(refs))
    masks = np.stack([square_mask(height, width, i, 2 * i + 1, 5) for i in range(len(samples))])
    return ImageGroup(np.full((height, width, 3), grey, dtype=np.uint8), masks, samples)


def test_collate_puts_everything_at_the_top_left_of_one_canvas() -> None:
    groups = [group_of(33, 20, [make_ref(0, 0, 2)], 7), group_of(16, 64, [make_ref(1, 0, 1), make_ref(1, 1, 2)], 9)]
    batch = collate(groups, 20)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.image_index.tolist() == [0, 0, 1, 1, 1]
    first = 0
    for number, group in enumerate(groups):
        h, w = group.image_HW3.shape[:2]
        assert torch.equal(batch.images[number, :, :h, :w], torch.from_numpy(group.image_HW3).permute(2, 0, 1))
        assert int(batch.images[number].sum()) == int(group.image_HW3.sum())
        assert int(batch.pixel_valid[number].sum()) == h * w
        assert batch.pixel_valid[number, :h, :w].all()
        rows = batch.masks[first : first + len(group.samples)]
        assert torch.equal(rows[:, :h, :w], torch.from_numpy(group.mask_NHW))
        assert int(rows.sum()) == int(group.mask_NHW.sum())
        first += len(group.samples)
    assert batch.samples == groups[0].samples + groups[1].samples
    assert (batch.tokens[:, 0] == 49_406).all()


def test_anchors_move_with_the_picture_and_are_known_where_the_data_set_says(toy: Path, tmp_path: Path) -> None:
    """Where what is named beside a referent is another expression's referent, both masks are the same pixels."""
    generate_scenes(tmp_path / "scenes", images=40, seed=2, recipe=Recipe(size=96, scenario="near"), workers=1)
    moving = Augmentation(short_sides=(80, 96), max_side=96, rotate_degrees=8.0, colour_jitter=0.1, shift=0.1)
    sources = [
        WeightedSplit(PreparedSplit(d, s), 1.0, 0, None) for d, s in ((tmp_path / "scenes", "train"), (toy, "train"))
    ]
    batches = TrainingBatches(
        sources=sources, augmentation=moving, images_per_step=2, expressions_per_image=20, max_tokens=40, steps=30,
        seed=1, mirror=True,
    )  # fmt: skip
    same, known_pictures = 0, set()
    for step in range(30):
        (batch,) = batches[step]
        known = [bool(sample.ref.anchors) for sample in batch.samples]
        known_pictures.add(known[0] + known[-1])
        if batch.anchors is None or batch.anchors_known is None:
            assert not any(known)
            continue
        assert batch.anchors_known.tolist() == known
        assert not batch.anchors[~batch.anchors_known].any()
        of_rle = {
            s.ref.segmentation["counts"]: m
            for s, m in zip(batch.samples, batch.masks, strict=True)
            if s.ref.segmentation
        }
        for sample, anchor in zip(batch.samples, batch.anchors, strict=True):
            if sample.anchor and sample.anchor["counts"] in of_rle:
                same += 1
                assert torch.equal(anchor, of_rle[sample.anchor["counts"]])
                assert anchor.any()
    assert same > 50
    assert known_pictures == {0, 1, 2}


def test_collate_counts_the_expressions_that_it_cut() -> None:
    """make_ref's texts have 3 to 15 tokens or so: the count is what a longer context would have kept."""
    group = group_of(32, 32, [make_ref(0, 0, 3), make_ref(0, 1, 2)], 7)
    longer = collate([group], 77)
    assert longer.cut == 0
    lengths = (longer.tokens != 0).sum(1)
    for context in (6, 8, 10):
        assert collate([group], context).cut == int((lengths > context).sum())
    assert 0 < collate([group], 8).cut < 5
