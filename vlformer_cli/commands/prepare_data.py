"""`vlformer prepare-data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlformer_cli.commands.common import say
from vlformer_cli.types import VLFormerError

OFFERED = ("scenes", "custom")
PLANNED = ("refcoco", "refcoco+", "refcocog", "grefcoco")


def prepare_data(
    dataset: Annotated[str, typer.Argument(help="scenes (drawn, works offline) or custom (your own pictures).")],
    root: Annotated[
        Path | None, typer.Option("--root", help="Where data sets lie. [default: $VLFORMER_DATA or data]")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="custom: the folder with expressions.csv|json|jsonl.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option("--images", help="scenes: how many to draw (2000). custom: the folder of the pictures."),
    ] = None,
    split_by: Annotated[
        str | None, typer.Option("--split-by", help="custom: what to call this partition (own).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="scenes: the same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option("--size", min=64, max=1024, help="scenes: the longer side in pixels.")] = 192,
    scenario: Annotated[str, typer.Option("--scenario", help="scenes: mix, or directions (locations only).")] = "mix",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="scenes: processes. [default: every core]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of that name.")] = False,
) -> None:
    """Make a prepared data set: the one format that train and eval read."""
    from vlformer_cli.data.build import data_root

    root = root or data_root()
    if dataset == "scenes":
        directory = root / (f"scenes-seed{seed}" if scenario == "mix" else f"scenes-{scenario}-seed{seed}")
        _scenes(directory, images or "2000", seed, size, scenario, workers, overwrite)
    elif dataset == "custom":
        directory = root / f"custom-{split_by or 'own'}"
        _custom(directory, source, images, overwrite)
    elif dataset in PLANNED:
        raise VLFormerError(f"{dataset} is not supported yet in this version; it can prepare: {', '.join(OFFERED)}")
    else:
        raise VLFormerError(f"no data set is called {dataset!r}; there are: {', '.join((*OFFERED, *PLANNED))}")
    _report(directory)


def _scenes(
    directory: Path, images: str, seed: int, size: int, scenario: str, workers: int | None, overwrite: bool
) -> None:
    from vlformer_cli.data.scenes.generate import generate_scenes
    from vlformer_cli.report.progress import ProgressLine

    if not images.isdecimal() or int(images) < 1:
        raise VLFormerError(f"--images {images!r} is not a number of scenes to draw, such as 2000")
    with ProgressLine("drawing scenes", int(images)) as line:
        generate_scenes(
            directory,
            images=int(images),
            seed=seed,
            size=size,
            scenario=scenario,
            workers=workers,
            overwrite=overwrite,
            progress=lambda done, _: line.update(done),
        )


def _custom(directory: Path, source: Path | None, images: str | None, overwrite: bool) -> None:
    from vlformer_cli.data.sources.custom import find_custom_inputs, prepare_custom

    if source is None:
        raise VLFormerError("prepare-data custom needs --from DIR, the folder with expressions.csv, .json or .jsonl")
    expressions, instances, pictures = find_custom_inputs(source)
    prepare_custom(
        directory,
        expressions=expressions,
        images=Path(images) if images else pictures,
        instances=instances,
        overwrite=overwrite,
    )


def _report(directory: Path) -> None:
    from vlformer_cli.data.store import read_manifest

    for split, counts in read_manifest(directory)["splits"].items():
        counted = ", ".join(f"{counts[what]} {what}" for what in ("images", "refs", "expressions"))
        say(f"{directory} {split}: {counted}")
