"""The demo: the embedded model answers the expressions in examples/expressions.json; one contact sheet shows all."""

from __future__ import annotations

import json
from pathlib import Path

from vlformer_cli.data.images import read_image
from vlformer_cli.engine.checkpoint import EMBEDDED, load_weights
from vlformer_cli.engine.device import set_threads
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.report.overlay import save_image
from vlformer_cli.report.sheet import contact_sheet

EXAMPLES = Path(__file__).parents[1] / "examples"
SHEET = Path("outputs/demo.png")


def main() -> None:
    """Prints a line per expression and writes the contact sheet."""
    set_threads(0)
    loaded = load_weights(EMBEDDED)
    predictor = Predictor(loaded.model, loaded.config)
    rows = []
    for name, expressions in json.loads((EXAMPLES / "expressions.json").read_text(encoding="utf-8")).items():
        image = read_image(EXAMPLES / name)
        for answer in predictor.predict(image, expressions):
            print(f'{name}: "{answer.expression}" -> {answer.mask.sum()} px, score {answer.score:.2f}')
            rows.append((answer.expression, image, answer.mask))
    save_image(contact_sheet(rows), SHEET)
    print(f"text | picture | mask: {SHEET}")


if __name__ == "__main__":
    main()
