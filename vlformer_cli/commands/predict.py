"""`vlformer predict`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlformer_cli.commands.common import (
    Device,
    Json,
    Precision,
    Runnable,
    Threads,
    interruptible,
    load_engine,
    print_json,
    say,
)
from vlformer_cli.data.inputs import find_sources, names_image, names_input
from vlformer_cli.types import UsageError

if TYPE_CHECKING:
    from vlformer_cli.engine.result_files import FileResult

FEW = 5  # images; for more a progress bar is shown


def predict(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... EXPRESSION",
            help="Image files, folders, patterns, http(s) addresses or - (standard input), then what to find in each.",
        ),
    ],
    expression: Annotated[
        list[str] | None, typer.Option("--expression", "-e", help="Another expression; repeatable.")
    ] = None,
    weights: Runnable = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where masks and overlays go.")] = Path(
        "outputs/predict"
    ),
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace files of earlier calls; without it a number is added to the name."),
    ] = False,
    as_json: Json = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print each result as one line of JSON on stdout, as soon as it is done.")
    ] = False,
    device: Device = "auto",
    threads: Threads = 0,
    precision: Precision = "auto",
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score", min=0, max=1, help="Nothing matches below it; 0: always answer. (default: the model's)"
        ),
    ] = None,
) -> None:
    """Segment what an expression means in an image: write a mask (0/255 PNG) and an overlay for each pair."""
    if as_json and as_jsonl:
        raise UsageError("--json and --jsonl are two forms of the same output: give one of them")
    images, expressions = split_words(words, expression or [])
    sources = find_sources(images)
    from vlformer_cli.engine.predict import Predictor
    from vlformer_cli.engine.predict_files import predict_files
    from vlformer_cli.engine.result_files import FileResult, ResultFolder
    from vlformer_cli.report.progress import ProgressLine

    folder = ResultFolder(output, overwrite=overwrite)
    results: list[dict[str, Any]] = []
    has_failed = False
    with interruptible():
        loaded = load_engine(weights, device, threads, precision)
        predictor = Predictor(loaded.engine, loaded.config, min_score=min_score)
        try:
            with ProgressLine("segmenting", len(sources), quiet=len(sources) <= FEW) as line:
                for outcome in predict_files(predictor, sources, expressions, folder, progress=line.update):
                    if not isinstance(outcome, FileResult):
                        say(f"vlformer: {outcome.message}")
                        has_failed |= outcome.is_failure
                    elif as_json:
                        results.append(outcome.to_json())
                    elif as_jsonl:
                        print_json(outcome.to_json(), indent=None)
                    else:
                        print(_line(outcome), flush=True)
        finally:  # whatever ended it, what was finished is told
            if as_json:
                print_json({"model": loaded.describe(), "results": results})
    if has_failed:
        raise typer.Exit(1)


def _line(result: FileResult) -> str:
    found = result.mask if result.matches else "nothing matches"
    return f'{result.image}: "{result.expression}" -> {found} ({result.area} px, score {result.score:.2f})'


def split_words(words: list[str], more: list[str]) -> tuple[list[str], list[str]]:
    """Images and expressions: the last word is an expression unless it names an input and -e was given.

    Raises UsageError where no expression or no image is left.

    >>> split_words(["a.jpg", "b.jpg", "red cup"], [])[1], split_words(["a.jpg"], ["red cup"])[1]
    (['red cup'], ['red cup'])
    """
    *images, last = words
    is_only_folder = not images and Path(last).is_dir()
    if more and (names_input(last) or is_only_folder):
        return words, more
    if not more and (names_image(last) or is_only_folder):
        raise UsageError(_without_expression(words))
    if not images:
        raise UsageError(f'there is no image, {last!r} is none: vlformer predict photo.jpg "red cup"')
    return images, [last, *more]


def _without_expression(words: list[str]) -> str:
    """What to say of words that end in an image, which may be in the wrong order."""
    first, last = words[0], words[-1]
    if len(words) == 1 or names_image(first) or Path(first).is_dir():
        given = shlex.join(words[:3]) if len(words) < 4 else f"{shlex.quote(first)} ... {shlex.quote(last)}"
        return f'there is no expression, the last word {last!r} names images: vlformer predict {given} "red cup"'
    images = shlex.join(words[1:]) if len(words) < 4 else f"{shlex.quote(words[1])} ... {shlex.quote(last)}"
    return (
        f"the arguments are swapped, {first!r} is no image and {last!r} is one: "
        f"vlformer predict {images} {shlex.quote(first)}"
    )
