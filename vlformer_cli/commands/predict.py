"""`vlformer predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlformer_cli.commands.common import Device, Json, Precision, Runnable, Threads, load_engine, print_json, say

PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".heic", ".avif"}


def predict(
    words: Annotated[
        list[str], typer.Argument(metavar="IMAGE... EXPRESSION", help="Pictures, then what to find in each of them.")
    ],
    expression: Annotated[
        list[str] | None, typer.Option("--expression", "-e", help="Another expression; repeatable.")
    ] = None,
    weights: Runnable = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where masks and overlays go.")] = Path(
        "outputs/predict"
    ),
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = 0,
    precision: Precision = "auto",
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score", min=0, max=1, help="Nothing matches below it; 0: always answer. [default: the model's]"
        ),
    ] = None,
) -> None:
    """Segment what an expression means in a picture: writes a mask (0/255 PNG) and an overlay for each pair."""
    images, expressions = split_words(words, expression or [])
    from vlformer_cli.engine.predict import Predictor
    from vlformer_cli.engine.predict_files import predict_files

    loaded = load_engine(weights, device, threads, precision)
    predictor = Predictor(loaded.engine, loaded.config, min_score=min_score)
    done = predict_files(predictor, images, expressions, output)
    if as_json:
        print_json({"model": loaded.describe(), "results": [result.to_json() for result in done.results]})
    else:
        for result in done.results:
            found = result.mask if result.matches else "nothing matches"
            print(f'{result.image}: "{result.expression}" -> {found} ({result.area} px, score {result.score:.2f})')
    for message in done.warnings:
        say(f"vlformer: {message}")
    for message in done.failures:
        say(f"vlformer: {message}")
    if done.failures:
        raise typer.Exit(1)


def split_words(words: list[str], more: list[str]) -> tuple[list[Path], list[str]]:
    """Pictures and expressions: the last positional is an expression unless it is a picture and -e was given.

    >>> split_words(["a.jpg", "b.jpg", "red cup"], [])[1], split_words(["a.jpg"], ["red cup"])[1]
    (['red cup'], ['red cup'])
    """
    last_is_picture = bool(more) and _names_a_picture(words[-1])
    pictures, expressions = (words, more) if last_is_picture else (words[:-1], [words[-1], *more])
    if not pictures:
        raise typer.BadParameter('give a picture and an expression: vlformer predict photo.jpg "red cup"')
    return [Path(picture) for picture in pictures], expressions


def _names_a_picture(word: str) -> bool:
    """A picture that is not there is a picture all the same, so that the message names it."""
    try:
        exists = bool(word.strip()) and Path(word).is_file()
    except OSError:  # longer than file names can be
        return False
    return exists or Path(word).suffix.lower() in PICTURE_ENDINGS
