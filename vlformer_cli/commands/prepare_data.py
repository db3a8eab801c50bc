"""`vlformer prepare-data`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from vlformer_cli.commands.common import Weights, say
from vlformer_cli.types import UsageError

AMBIGUOUS_TOLD = 5  # messages on the terminal; the manifest has them all


def prepare_data(
    dataset: Annotated[
        str,
        typer.Argument(
            help="refcoco, refcoco+, refcocog, grefcoco; scenes (drawn); photos (annotated); custom (your own)."
        ),
    ],
    root: Annotated[
        Path | None, typer.Option("--root", help="Where data sets lie. (default: $VLFORMER_DATA or data)")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="What you have already: a folder in any known layout. custom: that of its expressions."
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option("--images", help="The folder of the pictures. scenes: how many to draw (2000)."),
    ] = None,
    split_by: Annotated[
        str | None, typer.Option("--split-by", help="unc, umd, google. custom: what to call this partition (own).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of that name.")] = False,
    allow_count_mismatch: Annotated[
        bool, typer.Option("--allow-count-mismatch", help="For subsets: counts may differ from the published ones.")
    ] = False,
    check_images: Annotated[
        bool, typer.Option("--check-images", help="Decode every picture, not its header alone.")
    ] = False,
    skip_bad_rows: Annotated[
        bool,
        typer.Option("--skip-bad-rows", help="custom: leave out rows that cannot be used; manifest.json lists them."),
    ] = False,
    exclude_eval_images: Annotated[
        bool,
        typer.Option(
            "--exclude-eval-images", help="Leave val and test pictures of what lies below --from out of train."
        ),
    ] = False,
    only_needed: Annotated[
        bool, typer.Option("--only-needed", help="Download only the pictures that the data set asks about.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection; say what to put where.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="scenes: the same seed gives the same bytes.")] = 0,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=64, max=1024, help="Longer side in pixels. (default: 192 for scenes, 320 for photos' views)"
        ),
    ] = None,
    views: Annotated[
        int,
        typer.Option(
            "--views",
            min=0,
            help="photos: make so many new crops, mosaics and pasted images (0: use each photo as is).",
        ),
    ] = 0,
    trust_annotated: Annotated[
        bool,
        typer.Option(
            "--trust-annotated",
            help="photos: in images labelled for no category, take annotated categories as annotated completely.",
        ),
    ] = False,
    scenario: Annotated[
        str,
        typer.Option(
            "--scenario", help="scenes: mix, directions (locations only), near (nearness only), photos (--from)."
        ),
    ] = "mix",
    bent: Annotated[
        float, typer.Option("--bent", min=0, max=1, help="scenes: how far outlines depart from their kinds' own.")
    ] = 0.0,
    boxes: Annotated[
        bool,
        typer.Option("--boxes", help="photos: fill in masks where the annotations have boxes only, with --weights."),
    ] = False,
    weights: Weights = None,
    no_target: Annotated[
        float | None,
        typer.Option(
            "--no-target",
            min=0,
            max=1,
            help="No-target expressions per ordinary expression. (default: 0 for scenes, 0.1 for photos)",
        ),
    ] = None,
    reworded: Annotated[
        float, typer.Option("--reworded", min=0, max=1, help="scenes: so many expressions in less usual words.")
    ] = 0.0,
    stickers: Annotated[
        Path | None, typer.Option("--stickers", help="scenes: drawings of others, PNG files in a folder per kind.")
    ] = None,
    sticker_share: Annotated[
        float, typer.Option("--sticker-share", min=0, max=1, help="scenes: of the objects that there are stickers of.")
    ] = 0.6,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="scenes: processes. (default: every core)")
    ] = None,
) -> None:
    """Make a prepared data set: the one format that train and eval read."""
    from vlformer_cli.data.build import data_root

    root = root or data_root()
    published = {"--allow-count-mismatch": allow_count_mismatch, "--exclude-eval-images": exclude_eval_images}
    published |= {"--only-needed": only_needed, "--check-images": check_images and dataset != "custom"}
    if dataset in ("scenes", "custom", "photos") and any(published.values()):
        said = ", ".join(name for name, value in published.items() if value)
        raise UsageError(f"{said}: for published data sets; {dataset} has nothing that it could mean")
    if dataset != "photos" and (views or trust_annotated or boxes or weights):
        raise UsageError(
            f"--views, --trust-annotated, --boxes and --weights: for `prepare-data photos`, not for {dataset}"
        )
    if weights is not None and not boxes:
        raise UsageError("--weights: only with --boxes, where a model finds the masks")
    recipe: dict[str, Any]
    drawn: dict[str, object] = {
        "--scenario": scenario != "mix",
        "--bent": bent,
        "--stickers": stickers,
        "--reworded": reworded,
    }
    drawn |= {"--no-target": no_target is not None and dataset != "photos"}
    if dataset != "scenes" and any(drawn.values()):
        said = ", ".join(name for name, value in drawn.items() if value)
        raise UsageError(f"{said}: for `prepare-data scenes` alone; {dataset} is not drawn")
    if dataset != "custom" and skip_bad_rows:
        raise UsageError(f"--skip-bad-rows: for `prepare-data custom` alone; {dataset} has no rows of yours")
    if dataset == "scenes":
        directory = root / (f"scenes-seed{seed}" if scenario == "mix" else f"scenes-{scenario}-seed{seed}")
        recipe = {"size": size or 192, "scenario": scenario, "bent": bent, "no_target": no_target or 0.0}
        recipe |= {"reworded": reworded}
        recipe |= {"photos": source, "stickers": stickers, "sticker_share": sticker_share}
        _scenes(directory, images or "2000", seed, recipe, workers, overwrite)
    elif dataset == "photos":
        kind = "photos-boxes" if boxes else "photos"
        directory = root / (f"{kind}-seed{seed}" if views else f"{kind}-whole")
        recipe = {"views": views, "seed": seed, "size": size or 320, "trust_annotated": trust_annotated}
        recipe |= {} if no_target is None else {"no_target": no_target}
        if boxes and source is not None:
            source = _fill_masks(source, root / f"{kind}-annotations", weights)
            recipe["boxes"] = True
        _photos(directory, source, recipe, workers, overwrite)
    elif dataset == "custom":
        directory = root / f"custom-{split_by or 'own'}"
        _custom(directory, source, images, overwrite, check_images, skip_bad_rows)
    else:
        checks = {
            "allow_count_mismatch": allow_count_mismatch,
            "check_images": check_images,
            "exclude_eval_images": exclude_eval_images,
        }
        wanted = _Family(dataset, split_by, root, source, Path(images) if images else None, only_needed, offline)
        directory = wanted.prepare(overwrite, checks)
    _report(directory)


def _scenes(
    directory: Path, images: str, seed: int, recipe: dict[str, Any], workers: int | None, overwrite: bool
) -> None:
    from vlformer_cli.data.scenes.generate import Recipe, generate_scenes
    from vlformer_cli.report.progress import ProgressLine

    if not images.isdecimal() or int(images) < 1:
        raise UsageError(f"--images {images!r} is not a number of scenes to draw, such as 2000")
    with ProgressLine("drawing scenes", int(images)) as line:
        generate_scenes(
            directory,
            images=int(images),
            seed=seed,
            recipe=Recipe(**recipe),
            workers=workers,
            overwrite=overwrite,
            progress=lambda done, _: line.update(done),
        )


def _photos(directory: Path, source: Path | None, recipe: dict[str, Any], workers: int | None, overwrite: bool) -> None:
    from vlformer_cli.data.photos.generate import Recipe, prepare_photos
    from vlformer_cli.report.progress import StagedProgress

    if source is None:
        raise UsageError("prepare-data photos needs --from DIR: photographs with COCO, YOLO or labelme annotations")
    with StagedProgress() as progress:
        prepare_photos(
            directory,
            source,
            Recipe(**recipe),
            workers=workers,
            overwrite=overwrite,
            progress=partial(progress, "writing expressions"),
        )


def _fill_masks(source: Path, folder: Path, weights: Path | None) -> Path:
    """The folder of the annotations with masks."""
    from vlformer_cli.commands.common import load_model
    from vlformer_cli.engine.box_masks import write_filled
    from vlformer_cli.engine.predict import Predictor
    from vlformer_cli.report.progress import StagedProgress

    loaded = load_model(weights, "auto", 0)
    with StagedProgress() as progress:
        predictor = Predictor(loaded.model, loaded.config, min_score=0.0)
        filled = write_filled(source, folder, predictor, progress=partial(progress, "finding masks"))
    say(f"{folder}: masks for {filled.found} of {filled.boxes} boxes; the others are counted, and never meant")
    return folder


def _custom(
    directory: Path, source: Path | None, images: str | None, overwrite: bool, check_images: bool, skip_bad_rows: bool
) -> None:
    from vlformer_cli.data.sources.custom import find_custom_inputs, prepare_custom

    if source is None:
        raise UsageError("prepare-data custom needs --from DIR, the folder with expressions.csv, .json or .jsonl")
    expressions, instances, pictures = find_custom_inputs(source)
    manifest = prepare_custom(
        directory,
        expressions=expressions,
        images=Path(images) if images else pictures,
        instances=instances,
        check_images=check_images,
        overwrite=overwrite,
        skip_bad_rows=skip_bad_rows,
    )
    if manifest["skipped_rows"]:
        say(
            f"vlformer: left out {manifest['skipped_rows']} bad rows; {directory / 'manifest.json'} says why (`faults`)"
        )
    if manifest["unused_annotations"]:
        say(
            f"annotations of instances.json that no row names: {manifest['unused_annotations']} (they were not checked)"
        )
    ambiguous = manifest["ambiguous"]
    for message in ambiguous[:AMBIGUOUS_TOLD]:
        say(f"vlformer: {message}")
    if len(ambiguous) > AMBIGUOUS_TOLD:
        say(f"vlformer: {len(ambiguous) - AMBIGUOUS_TOLD} more of these stand in {directory / 'manifest.json'}")


def _report(directory: Path) -> None:
    from vlformer_cli.data.store import read_manifest

    for split, counts in read_manifest(directory)["splits"].items():
        counted = ", ".join(f"{counts[what]} {what}" for what in ("images", "refs", "expressions"))
        say(f"{directory} {split}: {counted}")


class _Family(NamedTuple):
    """What was asked for of the RefCOCO family."""

    dataset: str
    split_by: str | None
    root: Path
    source: Path | None
    images: Path | None
    only_needed: bool
    offline: bool

    def prepare(self, overwrite: bool, checks: dict[str, bool]) -> Path:
        """Gets what is missing, prepares it and says what was found; returns the folder."""
        from vlformer_cli.data.family import get_annotations, get_pictures, pin
        from vlformer_cli.data.prepare import Pictures, prepare_family
        from vlformer_cli.data.sources.published import resolve_dataset
        from vlformer_cli.data.store import refuse_existing
        from vlformer_cli.report.progress import StagedProgress

        dataset, split_by = resolve_dataset(self.dataset, self.split_by)
        directory, downloads = self.root / f"{dataset}-{split_by}", self.root / "downloads"
        refuse_existing(directory, overwrite)  # before anything is downloaded
        source, fetched = self.source, dict[str, str]()
        pictures: Path | Pictures | None = self.images
        with StagedProgress() as progress:
            count = partial(progress.bytes, "downloading")
            if source is None:
                source, fetched = get_annotations(
                    dataset, split_by, downloads, offline=self.offline, progress=count, report=say
                )
                pictures = self.images or partial(
                    get_pictures,
                    downloads,
                    only_needed=self.only_needed,
                    offline=self.offline,
                    progress=count,
                    report=say,
                )
            manifest = prepare_family(
                directory, dataset=dataset, split_by=split_by, source=source, images=pictures, overwrite=overwrite,
                progress=progress, **checks,
            )  # fmt: skip
        if fetched:
            pin(downloads, fetched)
        _tell(manifest)
        return directory


def _tell(manifest: dict[str, Any]) -> None:
    """What was found, and what a user should know of it."""
    say(f"found {manifest['layout']}; pictures in {manifest['image_root']}")
    if not manifest["counts_as_published"]:
        say("vlformer: the counts are not the published ones: this is a subset or another release")
    if "excluded_eval_images" in manifest:
        out = manifest["excluded_eval_images"]
        say(f"left out of train: {out['images']} images with {out['refs']} refs, {out['expressions']} expressions")
        known = {name.rsplit("-", 1)[0] for name in out["images_by_split"]}
        unknown = [name for name in ("refcoco", "refcoco+", "refcocog") if name not in known]
        if unknown:
            say(
                f"vlformer: {' and '.join(unknown)} are not where the annotations are, so their val and test pictures "
                "may be in train: give --from a folder that holds all three"
            )
