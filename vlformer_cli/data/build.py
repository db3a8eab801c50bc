"""From a config to data: where prepared sets lie, what training draws from."""

from __future__ import annotations

import os
from pathlib import Path

from vlformer_cli.config import Config, DataConfig, DataSource, ModelConfig
from vlformer_cli.data.cache import PictureCache
from vlformer_cli.data.dataset import Deal, FirstStage, TrainingBatches, WeightedSplit
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.data.transforms import Augmentation
from vlformer_cli.types import UsageError, VLFormerError


def data_root() -> Path:
    """Where prepared data sets lie: `$VLFORMER_DATA`, or `data` below the current folder."""
    return Path(os.environ.get("VLFORMER_DATA", "data"))


def find_dataset(directory: Path | None, name: str | None) -> Path:
    """`directory`, or the one data set `<data root>/<name>-*`; raises VLFormerError where there are none or several."""
    if directory is not None and name is not None:
        raise UsageError(f"--data {directory} and --dataset {name} both say which data set: give one of them")
    if directory is not None:
        return directory
    root = data_root()
    if name is None:
        raise UsageError("say which data set: --data DIR or --dataset NAME")
    if Path(name).is_absolute():
        raise UsageError(f"--dataset {name!r} is a path, not a name: give --data {name}")
    if (root / name / "manifest.json").exists():
        return root / name
    found = sorted(path.parent for path in root.glob(f"{name}-*/manifest.json"))
    if len(found) == 1:
        return found[0]
    if found:
        raise VLFormerError(f"--dataset {name!r} could be any of {', '.join(p.name for p in found)}: name one of them")
    raise VLFormerError(f"no data set {name!r} below {root}: make it with `vlformer prepare-data`, or give --data DIR")


def open_split(source: DataSource) -> PreparedSplit:
    """The prepared split that a config names; raises VLFormerError if it is not there."""
    path = Path(source.path)
    if not path.is_absolute() and not path.is_dir():
        path = data_root() / path
    return PreparedSplit(path, source.split)


def build_augmentation(data: DataConfig, model: ModelConfig) -> Augmentation:
    """What training changes about pictures."""
    return Augmentation(
        short_sides=data.short_sides or (model.short_side,),
        max_side=data.max_side or model.max_side,
        rotate_degrees=data.rotate_degrees,
        colour_jitter=data.colour_jitter,
        shift=data.shift,
    )


def first_stage_of(config: Config) -> FirstStage:
    """The steps in which words come first, and their pictures; no more of them than there are steps."""
    steps = min(config.train.words_first, config.train.steps)
    return FirstStage(steps, config.data.images_while_words_first if config.data else 0)


def build_training_data(config: Config, *, rank: int = 0, size: int = 1) -> TrainingBatches:
    """What process `rank` of `size` takes of every step; raises VLFormerError where there is no training data."""
    if config.data is None or not config.data.train:
        raise VLFormerError(f"config {config.model.name!r} has no data.train: name a prepared data set there")
    return TrainingBatches(
        sources=[WeightedSplit(open_split(s), s.weight, s.first_step, s.last_step) for s in config.data.train],
        augmentation=build_augmentation(config.data, config.model),
        images_per_step=config.data.images_per_step,
        first_stage=first_stage_of(config),
        expressions_per_image=config.data.expressions_per_image,
        max_tokens=config.model.max_tokens,
        steps=config.train.steps,
        seed=config.train.seed,
        mirror=config.data.mirror,
        deal=Deal(rank=rank, size=size, forwards=config.train.accumulate),
        cache=PictureCache(Path(config.data.cache)) if config.data.cache else None,
    )
