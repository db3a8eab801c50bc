"""The demo: the embedded model answers the expressions in examples/; one sheet shows all.

The drawn pictures lie in examples/; the photographs, in the public domain, are read from the package scikit-image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage import data
from skimage.color import gray2rgb

from vlformer_cli.data.images import read_image
from vlformer_cli.engine.checkpoint import EMBEDDED, load_weights
from vlformer_cli.engine.device import set_threads
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.report.overlay import save_image
from vlformer_cli.report.sheet import overlay_grid

EXAMPLES = Path(__file__).parents[1] / "examples"
SHEET = Path("outputs/demo.png")


def questions() -> Iterator[tuple[str, NDArray[np.uint8], list[str]]]:
    """Name, picture and expressions."""
    for name, expressions in json.loads((EXAMPLES / "photographs.json").read_text(encoding="utf-8")).items():
        photograph = getattr(data, name)()
        yield name, gray2rgb(photograph) if photograph.ndim == 2 else photograph, expressions
    for name, expressions in json.loads((EXAMPLES / "expressions.json").read_text(encoding="utf-8")).items():
        yield name, read_image(EXAMPLES / name), expressions


def main() -> None:
    """Prints a line per expression and writes the contact sheet."""
    set_threads(0)
    loaded = load_weights(EMBEDDED)
    predictor = Predictor(loaded.model, loaded.config)
    rows = []
    for name, image, expressions in questions():
        for answer in predictor.predict(image, expressions):
            found = f"{answer.mask.sum()} px" if answer.matches else "nothing matches"
            print(f'{name}: "{answer.expression}" -> {found}, score {answer.score:.2f}')
            rows.append((answer.expression + ("" if answer.matches else "\n(nothing matches)"), image, answer.mask))
    save_image(overlay_grid(rows), SHEET)
    print(f"masks over their images: {SHEET}")


if __name__ == "__main__":
    main()
