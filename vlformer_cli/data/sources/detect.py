"""Finds out which of the known layouts of the RefCOCO family a folder has, by the names of files alone.

REFER    <base>/<dataset>/refs(<split_by>).p or grefs(<split_by>).json, with instances.json; base: REFER_BASES. So have
         it refer and LAVT (refer/data, pictures in images/mscoco/images/train2014), detectron2 (datasets, pictures in
         coco/train2014), ReLA (datasets, pictures in images/train2014) and LISA (dataset/refer_seg).
MDETR    <base>/finetune_<dataset>_<split>.json
CRIS     <base>/anns/<dataset>/<split>.json, with masks/<dataset>/
parquet  train-*.parquet, validation-*.parquet ... in a folder that is called as the mirror is, or in `data` below it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlformer_cli.data.sources import cris, mdetr, parquet
from vlformer_cli.data.sources.published import PARTITIONS, PUBLISHED, resolve_dataset
from vlformer_cli.data.sources.refer import TEXT_FIELD, SourceRef, read_refer
from vlformer_cli.types import VLFormerError

REFER_BASES = (".", "data", "refer/data", "refer_seg", "dataset/refer_seg", "datasets", "coco", "datasets/coco")
MDETR_BASES = (".", "mdetr_annotations", "OpenSource", "mdetr_annotations/OpenSource")  # as its archive unpacks
CRIS_BASES = (".", "datasets")
SPLITS = ("train", "val", "testA", "testB", "test")

_IMAGES = ("images/mscoco/images/train2014", "images/train2014", "coco/train2014", "train2014", "images")
_INSTANCES = ("annotations/instances_train2014.json", "coco/annotations/instances_train2014.json", "instances.json")
_REFER_TITLES = {
    "mscoco/images/train2014": "refer's and LAVT's",
    "images/train2014": "ReLA's",
    "coco/train2014": "detectron2's",
}  # by how the folder of pictures ends
_HUB = "datasets--jxu124--"  # how huggingface_hub's cache names the mirrors' folders


@dataclass(frozen=True, slots=True)
class Source:
    """One data set in one partition, found in one layout."""

    layout: str
    """refer, mdetr, cris or parquet: which reader it needs."""
    title: str
    """What the layout is called in messages."""
    dataset: str
    split_by: str
    files: tuple[Path, ...]
    """The files of refs, in the order of reading."""
    masks: Path | None
    """instances.json, or CRIS's folder of PNG files; None where the files hold the masks."""
    images: tuple[Path, ...]
    """Folders where the layout may have its pictures, likeliest first; they need not be there."""

    def __str__(self) -> str:
        names = ", ".join(path.name for path in self.files)
        masks = f" with {self.masks}" if self.masks else ""
        return f"{self.dataset} ({self.split_by}) as {self.title}: {names} in {self.files[0].parent}{masks}"


def find_source(root: Path, dataset: str, split_by: str) -> Source:
    """The one source of that data set and partition below `root`, by their canonical names.

    Raises VLFormerError where there is none, with what was looked for, or several, with their places.
    """
    sources = find_sources(root, dataset)
    found = [source for source in sources if (source.dataset, source.split_by) == (dataset, split_by)]
    if len(found) == 1:
        return found[0]
    if found:
        several = "; ".join(str(source) for source in found)
        raise VLFormerError(f"{root} holds {dataset} ({split_by}) more than once: give --from one of them: {several}")
    others = "; it has " + "; ".join(str(source) for source in sources) if sources else ""
    raise VLFormerError(f"{root} holds no {dataset} ({split_by}): looked for {_looked_for(dataset, split_by)}{others}")


def find_sources(root: Path, assumed: str) -> list[Source]:
    """All sources of the family below `root`; where only the data set's name is open, it is `assumed` to be that."""
    if not root.is_dir():
        raise VLFormerError(f"{root} is not a folder: give --from the one that holds the annotations")
    sources = [*_refer(root, assumed), *_mdetr(root), *_cris(root), *_parquet(root, assumed)]
    unique: dict[tuple[Path, ...], Source] = {}  # links may lead to one file in several ways
    for source in sources:
        unique.setdefault(tuple(path.resolve() for path in source.files), source)
    return list(unique.values())


def read_source(source: Source) -> list[SourceRef]:
    """The refs of all its splits; raises VLFormerError with file, entry, value and remedy."""
    text_field = TEXT_FIELD.get(source.dataset, "sent")
    if source.layout == "mdetr":
        return mdetr.read_mdetr(source.files, source.masks)
    if source.layout == "parquet":
        return parquet.read_parquet(source.files, source.dataset, text_field=text_field)
    assert source.masks is not None
    if source.layout == "cris":
        return cris.read_cris(source.files, source.masks)
    return read_refer(source.files[0], source.masks, text_field=text_field)


def _refer(root: Path, assumed: str) -> Iterator[Source]:
    for base in REFER_BASES:
        for folder in _folders(root / base):
            dataset = _known(folder.name)
            if dataset:
                yield from _refer_folder(folder, dataset, (root / base, folder, root))
    yield from _refer_folder(root, _known(root.resolve().name) or assumed, (root.resolve().parent, root))


def _refer_folder(folder: Path, dataset: str, parents: tuple[Path, ...]) -> Iterator[Source]:
    for split_by in PARTITIONS:
        files = [folder / name for name in _refs_names(dataset, split_by) if (folder / name).is_file()]
        if files and (dataset, split_by) in PUBLISHED:
            images = _image_folders(parents)
            title = _refer_title(folder, images)
            yield Source("refer", title, dataset, split_by, (files[0],), folder / "instances.json", images)


def _refs_names(dataset: str, split_by: str) -> list[str]:
    if dataset == "grefcoco":
        return [f"grefs({split_by}).json", f"grefs({split_by}).p"]
    return [f"refs({split_by}).p"]


def _refer_title(folder: Path, images: Iterable[Path]) -> str:
    if folder.resolve().parent.name == "refer_seg":
        return "REFER files in LISA's layout"
    there = next((str(path) for path in images if path.is_dir()), "")
    name = next((name for end, name in _REFER_TITLES.items() if there.endswith(end)), None)
    return f"REFER files in {name} layout" if name else "REFER files"


def _mdetr(root: Path) -> Iterator[Source]:
    for base in (root / name for name in MDETR_BASES):
        matches = [match for path in _files(base) if (match := mdetr.FILE_NAME.fullmatch(path.name))]
        for dataset in dict.fromkeys(match["dataset"] for match in matches):
            splits = {match["split"]: base / match[0] for match in matches if match["dataset"] == dataset}
            files = tuple(splits[split] for split in SPLITS if split in splits)
            parents = (base, root, root.resolve().parent)
            places = [parent / name for parent in parents for name in (f"{dataset}/instances.json", *_INSTANCES)]
            instances = next((path for path in places if path.is_file()), None)
            canonical, split_by = resolve_dataset(dataset)
            yield Source("mdetr", "MDETR's files", canonical, split_by, files, instances, _image_folders(parents))


def _cris(root: Path) -> Iterator[Source]:
    bases = [root.resolve().parent] if root.resolve().name == "anns" else [root / name for name in CRIS_BASES]
    for base in bases:
        for name, (dataset, split_by) in cris.FOLDERS.items():
            files = tuple(path for split in SPLITS if (path := base / "anns" / name / f"{split}.json").is_file())
            if files:
                masks = base / "masks" / name
                yield Source("cris", "CRIS's files", dataset, split_by, files, masks, _image_folders((base, root)))


def _parquet(root: Path, assumed: str) -> Iterator[Source]:
    places = {root: _known(root.resolve().name) or assumed}
    for name, dataset in parquet.FOLDERS.items():
        places[root / name] = dataset
        places |= dict.fromkeys(sorted(root.glob(f"{_HUB}{name}/snapshots/*")), dataset)
    for place, dataset in places.items():
        if dataset not in parquet.FOLDERS.values():
            continue
        for folder in (place, place / "data"):
            files = [path for path in _files(folder) if parquet.FILE_NAME.fullmatch(path.name)]
            if files:
                images = _image_folders((place, root, root.resolve().parent))
                yield Source("parquet", "a parquet mirror", *resolve_dataset(dataset), tuple(files), None, images)


def _looked_for(dataset: str, split_by: str) -> str:
    splits = ",".join(PUBLISHED[dataset, split_by])
    refs = " or ".join(_refs_names(dataset, split_by))
    looked = [f"{dataset}/{refs} with instances.json in {', '.join(REFER_BASES)}, or {refs} in the folder itself"]
    if resolve_dataset(dataset)[1] == split_by:
        looked.append(f"finetune_{dataset}_{{{splits}}}.json in {', '.join(MDETR_BASES)}")
        mirrors = [name for name, of in parquet.FOLDERS.items() if of == dataset]
        looked += [f"*-*.parquet of the mirror jxu124/{name} in ., data, {name}, {name}/data" for name in mirrors]
    anns = [name for name, names in cris.FOLDERS.items() if names == (dataset, split_by)]
    looked += [f"anns/{name}/{{{splits}}}.json with masks/{name} in {', '.join(CRIS_BASES)}" for name in anns]
    return "; ".join(looked)


def _known(name: str) -> str | None:
    """The data set that a folder is named after."""
    name = name.removeprefix(_HUB)
    try:
        return resolve_dataset(name)[0]
    except VLFormerError:
        return None


def _image_folders(parents: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(parent / name for parent in parents for name in _IMAGES))


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _files(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else []
