"""From images and expressions to mask and overlay files, told one by one; what fails is told and the rest is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vlformer_cli.data.inputs import ImageSource
from vlformer_cli.data.text import has_words
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.engine.result_files import FileResult, Notice, ResultFolder
from vlformer_cli.types import VLFormerError


def predict_files(
    predictor: Predictor,
    sources: Sequence[ImageSource],
    expressions: Sequence[str],
    folder: ResultFolder,
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> Iterator[FileResult | Notice]:
    """Yields the result of each pair once its files are written, and a Notice for what is wrong.

    `progress` is told how many images are done.
    """
    asked = [expression for expression in expressions if has_words(expression)]
    for expression in expressions:
        if not has_words(expression):
            yield Notice(f'an expression is empty ({expression!r}): say what to find, for example "red cup"')
    cut = set[str]()
    for number, source in enumerate(sources, 1):
        try:
            image_HW3 = source.read()
        except VLFormerError as error:
            yield Notice(str(error))
        else:
            for found in predictor.predict(image_HW3, asked):
                yield from folder.write(image_HW3, source.name, source.stem, found)
                if found.cut and found.expression not in cut:
                    cut.add(found.expression)
                    limit, start = predictor.config.most_tokens_read, found.expression[:40]
                    yield Notice(f"only the first {limit} tokens were read of {start!r}...", is_failure=False)
        progress(number)
