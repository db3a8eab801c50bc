"""`vlformer eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlformer_cli.commands.common import (
    Data,
    Dataset,
    Device,
    Json,
    Precision,
    Runnable,
    Threads,
    load_engine,
    print_json,
    say,
)

if TYPE_CHECKING:
    from vlformer_cli.engine.engines import LoadedEngine
    from vlformer_cli.engine.evaluate import Evaluation


def evaluate(
    weights: Runnable = None,
    data: Data = None,
    dataset: Dataset = None,
    split: Annotated[str, typer.Option("--split", help="val, testA, testB, test, train.")] = "val",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only the first so many samples; 0: all.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where metrics.json and predictions.jsonl go. (default: outputs/eval)"),
    ] = None,
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = 0,
    precision: Precision = "auto",
    min_score: Annotated[
        float,
        typer.Option(
            "--min-score", min=0, max=1, help="Answers that score less are empty masks. (default: 0, none is)"
        ),
    ] = 0.0,
) -> None:
    """Evaluate weights on a split at the original resolution: oIoU, mIoU, Pr@0.5-0.9, per kind, best of Q."""
    from vlformer_cli.data.build import find_dataset
    from vlformer_cli.data.store import PreparedSplit
    from vlformer_cli.engine.checkpoint import write_atomically
    from vlformer_cli.engine.evaluate import evaluate as run
    from vlformer_cli.engine.manifest import environment
    from vlformer_cli.engine.output import check_output_folder
    from vlformer_cli.engine.predict import Predictor

    prepared = PreparedSplit(find_dataset(data, dataset), split)
    folder = output or Path("outputs") / "eval"
    check_output_folder(folder)
    loaded = load_engine(weights, device, threads, precision)
    predictor = Predictor(loaded.engine, loaded.config, min_score=min_score)
    where = environment()  # what can go wrong with it goes wrong now
    found = run(predictor, prepared, limit=limit, predictions=folder / "predictions.jsonl")
    document = {
        **found.to_json(),
        "min_score": min_score,
        "temperature": loaded.config.temperature,
        "score_shift": loaded.config.score_shift,
        "precision": loaded.precision,
        "weights": describe_weights(loaded),
        "environment": where,
    }
    write_atomically(folder / "metrics.json", lambda path: path.write_text(json.dumps(document, indent=1)))
    if as_json:
        print_json(document)
    else:
        print_table(found, loaded.config.name, ", ".join(filter(None, [str(loaded.path), loaded.precision])))
        say(f"written: {folder / 'metrics.json'}, {folder / 'predictions.jsonl'}")
    if found.cut:
        limit = loaded.config.most_tokens_read
        say(f"vlformer: {found.cut} expressions are longer than {limit} tokens: only their beginnings were read")
    for message in found.unreadable:
        say(f"vlformer: left out: {message}")
    if found.unreadable:
        raise typer.Exit(1)


def describe_weights(loaded: LoadedEngine) -> dict[str, Any]:
    """Which weights a number belongs to; `sha256_bin` is of the file beside an `.xml`."""
    from vlformer_cli.data.store import file_sha256

    digests = {f"sha256{'_bin' * place}": file_sha256(path) for place, path in enumerate(loaded.files)}
    return {"model": loaded.config.name, "path": str(loaded.path), **digests}


def print_table(found: Evaluation, model: str, weights: str) -> None:
    """The metrics as a table, in percent, with the names of metric, data, split, weights and precision.

    It has 79 columns where no kind's name has more than 10 characters.
    """
    from vlformer_cli.metrics import THRESHOLDS

    print(f"{found.data}, {model} ({weights})\nin percent; Pr@X: IoU > X; best: of the Q queries, not the chosen one")
    shares = [f"Pr@{x}".replace("0.", ".") for x in THRESHOLDS]
    width = max([10, *map(len, found.by_kind)])
    print(_line("samples".ljust(width), "count", "mIoU", "oIoU", *shares, "best:", "mIoU", "Pr@.5"))
    rows = [("all", found.summary, found.best_of_q)]
    rows += [(kind, summary, found.best_of_q_by_kind[kind]) for kind, summary in found.by_kind.items()]
    for name, one, best in rows:
        own = [one.miou, one.oiou, *(one.precision.get(x) for x in THRESHOLDS)]
        cells = [_percent(share) for share in own], [_percent(best.miou), _percent(best.precision.get(THRESHOLDS[0]))]
        print(_line(name.ljust(width), str(one.count), *cells[0], "", *cells[1]), flush=True)
    if found.summary.n_acc is not None:
        print(
            f"N-acc (empty where nothing is meant) {_percent(found.summary.n_acc)}, "
            f"T-acc (not empty elsewhere) {_percent(found.summary.t_acc)}"
        )


def _percent(share: float | None) -> str:
    """A dash where a metric does not apply, as Pr@X where every sample is a no-target one."""
    return "-" if share is None else f"{100 * share:.2f}"[:5]  # 100.0 and not 100.00, for the column's sake


def _line(name: str, count: str, *cells: str) -> str:
    return " ".join([name, f"{count:>6}", *(f"{cell:>5}" for cell in cells)])
