"""A user's own data: an expressions file, pictures and, unless masks come as PNG files, COCO's `instances.json`.

Masks are in the pixels of the picture as `read_image` returns it, which is with the EXIF orientation applied. COCO
files give sizes as stored: where a photo's tag turns it on its side and the annotations were made without regard to
it, the sizes differ and the import stops. A tag that keeps the size (upside down, mirrored) cannot be told from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vlformer_cli.data.images import image_size, read_image, read_mask
from vlformer_cli.data.rle import encode_mask, polygons_to_rle, rle_area, rle_bbox, union_rle
from vlformer_cli.data.sources.bad_rows import BadRows
from vlformer_cli.data.sources.coco import CocoAnnotation, CocoImage, CocoInstances, read_instances
from vlformer_cli.data.sources.expressions import SUFFIXES, ExpressionRow, ambiguous, did_you_mean, read_expressions
from vlformer_cli.data.store import PreparedWriter, file_sha256
from vlformer_cli.types import RLE, Ref, VLFormerError


def find_custom_inputs(from_dir: Path) -> tuple[Path, Path | None, Path]:
    """The expressions file, `instances.json` if there is one, and where the pictures are by default: `images` inside.

    Raises VLFormerError where the folder is not there or has no expressions file, or several.
    """
    if not from_dir.is_dir():
        raise VLFormerError(f"{from_dir} is not a folder: name the one that holds expressions.csv (or .json, .jsonl)")
    found = [path for suffix in SUFFIXES if (path := from_dir / f"expressions{suffix}").is_file()]
    if len(found) != 1:
        has = " and ".join(path.name for path in found) or "no expressions file"
        raise VLFormerError(f"{from_dir} has {has}: keep exactly one of expressions.json, .jsonl and .csv in it")
    instances = from_dir / "instances.json"
    return found[0], instances if instances.is_file() else None, from_dir / "images"


def prepare_custom(
    directory: Path,
    *,
    expressions: Path,
    images: Path,
    instances: Path | None,
    default_split: str = "train",
    check_images: bool = False,
    overwrite: bool = False,
    skip_bad_rows: bool = False,
) -> dict[str, Any]:
    """Prepares the data set in `directory` and returns its manifest.

    The folder's name is `<dataset>-<split_by>`; without a dash, split_by is "custom". The pictures stay where they
    are; their headers are read, `check_images` decodes them. `ambiguous` in the manifest names the rows that say of one
    thing what others say of another in the same picture. Raises VLFormerError, and writes nothing, for whatever is
    wrong with the inputs: for all bad rows at once, unless `skip_bad_rows` leaves them out; `skipped_rows` in the
    manifest counts them. Annotations that no row names are not looked at; `unused_annotations` counts them.
    """
    if not images.is_dir():
        raise VLFormerError(f"{images} is not a folder: name the folder of the pictures with --images")
    bad = BadRows()
    rows = read_expressions(expressions, default_split, bad)
    coco = read_instances(instances, keep_faults=True) if instances is not None else None
    made = CustomRefs(expressions=expressions, images=images, instances=coco, check_images=check_images)
    refs = list(made.refs(rows, bad))
    if not skip_bad_rows:
        bad.refuse(expressions)
    if not refs:
        raise VLFormerError(f"{expressions} has no row that can be used, the first: {bad.messages[0]}")
    dataset, _, split_by = directory.name.rpartition("-")
    names = (dataset, split_by) if dataset and split_by else (directory.name, "custom")
    with PreparedWriter(directory, dataset=names[0], split_by=names[1], overwrite=overwrite) as writer:
        writer.manifest["image_root"] = str(images.resolve())
        writer.manifest["sources"] = {p.name: file_sha256(p) for p in (expressions, instances) if p is not None}
        writer.manifest["ambiguous"] = list(ambiguous(rows))
        writer.manifest["skipped_rows"] = bad.count
        writer.manifest["faults"] = bad.messages
        writer.manifest["unused_annotations"] = coco.count - len(_used(refs, coco)) if coco is not None else 0
        for split in dict.fromkeys(split for split, _ in refs):
            writer.write_split(split, (ref for in_split, ref in refs if in_split == split))
    return writer.manifest


def _used(refs: list[tuple[str, Ref]], coco: CocoInstances) -> set[int]:
    """Ids of instances.json that refs name; masks from files have ids of their own."""
    return {ann_id for _, ref in refs for ann_id in ref.ann_ids if ann_id in coco.annotations}


class CustomRefs:
    """Turns expression rows into refs: one per picture and set of annotations, with all their expressions."""

    def __init__(
        self, *, expressions: Path, images: Path, instances: CocoInstances | None, check_images: bool = False
    ) -> None:
        self.check_images = check_images
        self.masks_root, self.images_root = expressions.parent, images
        self.coco = instances if instances is not None else CocoInstances({}, {})
        self.has_instances = instances is not None
        taken = [image.image_id for image in self.coco.images.values()]
        self._image_ids = itertools.count(max(taken, default=0) + 1)
        self._ann_ids = itertools.count(max(self.coco.annotations, default=0) + 1)
        self._ref_ids, self._sent_ids = itertools.count(1), itertools.count(1)
        self._known_images: dict[str, CocoImage] = {}

    def refs(self, rows: list[ExpressionRow], bad: BadRows) -> Iterator[tuple[str, Ref]]:
        """Split and ref, the refs of one split and picture in a row. Ids are unique over all splits.

        Rows that cannot be used go to `bad`.
        """
        groups: dict[tuple[str, str], dict[tuple[Any, ...], list[ExpressionRow]]] = {}
        for row in rows:
            referents = groups.setdefault((row.split, row.image), {})
            referents.setdefault((row.ann_ids, row.mask), []).append(row)
        for (split, _), referents in groups.items():
            for same in referents.values():
                try:
                    ref = self._ref(same)
                except VLFormerError as error:
                    bad.add(same[0].number, error, len(same))
                else:
                    yield split, ref

    def _ref(self, rows: list[ExpressionRow]) -> Ref:
        row = rows[0]
        image = self._image(row)
        rle, ann_ids, category = self._referent(row, image)
        kinds = tuple(row.kind for row in rows)
        return Ref(
            image=image.file_name,
            image_id=image.image_id,
            width=image.width,
            height=image.height,
            ref_id=next(self._ref_ids),
            ann_ids=ann_ids,
            category=category,
            bbox=rle_bbox(rle) if rle is not None else (0.0, 0.0, 0.0, 0.0),
            segmentation=rle,
            expressions=tuple(row.expression for row in rows),
            sent_ids=tuple(next(self._sent_ids) for _ in rows),
            kinds=kinds if any(kinds) else (),
        )

    def _image(self, row: ExpressionRow) -> CocoImage:
        """The row's picture, found on disk and, where instances.json lists it, of the size given there."""
        if row.image in self._known_images:
            return self._known_images[row.image]
        name = PurePosixPath(row.image)
        if name.is_absolute() or ".." in name.parts:
            raise VLFormerError(f"{row.place} has the image {row.image!r}: give a path below {self.images_root}")
        try:
            path = self.images_root / name
            height, width = read_image(path).shape[:2] if self.check_images else image_size(path)
        except VLFormerError as error:
            raise VLFormerError(f"{row.place}: {error}{self._hint(row.image)}") from error
        if fault := self.coco.image_faults.get(row.image):
            raise VLFormerError(f"{row.place}: {fault}")
        image = self.coco.images.get(row.image)
        if image is None:
            image = CocoImage(next(self._image_ids), row.image, width, height)
        elif (image.width, image.height) != (width, height):
            raise VLFormerError(
                f"{row.place}: {row.image} is {width} x {height} with its EXIF orientation applied, but instances.json "
                f"says {image.width} x {image.height}: correct the sizes there, or use the picture that was annotated"
            )
        self._known_images[row.image] = image
        return image

    def _hint(self, name: str) -> str:
        """A name that the user may have meant, of an image that is not there."""
        if (self.images_root / name).exists():
            return ""
        if "\\" in name:
            return "; write / between folders"
        folder = (self.images_root / name).parent
        return did_you_mean(
            PurePosixPath(name).name, [path.name for path in folder.iterdir()] if folder.is_dir() else []
        )

    def _referent(self, row: ExpressionRow, image: CocoImage) -> tuple[RLE | None, tuple[int, ...], str]:
        """Mask, annotation ids and category."""
        if row.mask is not None:
            return self._mask(row, row.mask, image), (next(self._ann_ids),), ""
        if not row.ann_ids:
            return None, (), ""
        annotations = [self._annotation(row, ann_id, image) for ann_id in row.ann_ids]
        rle = union_rle([self._segmentation(row, annotation, image) for annotation in annotations])
        return rle, row.ann_ids, ", ".join(dict.fromkeys(a.category for a in annotations if a.category))

    def _mask(self, row: ExpressionRow, mask: str, image: CocoImage) -> RLE:
        path = self.masks_root / mask
        try:
            mask_HW = read_mask(path)
        except VLFormerError as error:
            raise VLFormerError(f"{row.place}: {error}") from error
        if mask_HW.shape != (image.height, image.width):
            height, width = mask_HW.shape
            raise VLFormerError(
                f"{row.place}: the mask {path} is {width} x {height}, but {row.image} is {image.width} x {image.height}"
                ": give a mask of the picture's size"
            )
        if not mask_HW.any():
            raise VLFormerError(
                f"{row.place}: the mask {path} is empty: leave it out where the expression means nothing"
            )
        return encode_mask(mask_HW)

    def _annotation(self, row: ExpressionRow, ann_id: int, image: CocoImage) -> CocoAnnotation:
        if not self.has_instances:
            raise VLFormerError(
                f"{row.place} names annotation {ann_id}, but there is no instances.json: add it beside the expressions"
            )
        if fault := self.coco.annotation_faults.get(ann_id):
            raise VLFormerError(f"{row.place} names annotation {ann_id}, but {fault}")
        annotation = self.coco.annotations.get(ann_id)
        if annotation is None:
            raise VLFormerError(
                f"{row.place} names annotation {ann_id}, which instances.json does not have: mend the id"
            )
        if row.image not in self.coco.images:
            hint = did_you_mean(row.image, self.coco.images)
            raise VLFormerError(
                f"{row.place}: instances.json does not list {row.image!r}: add it or mend the name{hint}"
            )
        if annotation.image_id != image.image_id:
            raise VLFormerError(
                f"{row.place}: annotation {ann_id} is not of {row.image}, but of another image: mend the id"
            )
        return annotation

    def _segmentation(self, row: ExpressionRow, annotation: CocoAnnotation, image: CocoImage) -> RLE:
        try:
            rle = polygons_to_rle(annotation.segmentation, image.height, image.width)
        except VLFormerError as error:
            raise VLFormerError(f"{row.place}: annotation {annotation.ann_id}: {error}") from error
        if not rle_area(rle):
            raise VLFormerError(
                f"{row.place}: annotation {annotation.ann_id} covers no pixel: mend its polygons or drop it"
            )
        return rle
