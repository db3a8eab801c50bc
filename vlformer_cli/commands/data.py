"""`vlformer data stats|check|show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlformer_cli.commands.common import Data, Dataset, Json, print_json, say
from vlformer_cli.types import UsageError, VLFormerError

if TYPE_CHECKING:
    from vlformer_cli.data.store import PreparedSplit

data = typer.Typer(no_args_is_help=True, help="Look at a prepared data set: stats, check, show.")

Split = Annotated[str | None, typer.Option("--split", help="One split. (default: all of them)")]


@data.command()
def stats(
    directory: Data = None,
    dataset: Dataset = None,
    split: Split = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write the histograms as a picture too.")] = None,
    as_json: Json = False,
) -> None:
    """Counts, expression lengths, categories and mask areas."""
    from vlformer_cli.data.stats import split_stats
    from vlformer_cli.report.charts import save_charts, share_bars, text_bars

    if png is not None and png.suffix.lower() != ".png":
        raise UsageError(f"--png {png}: give a name that ends in .png")
    found = [split_stats(one) for one in open_splits(directory, dataset, split)]
    charts = {}
    for one in found:
        charts[f"{one.name}: words per expression"] = {str(n): one.words[n] for n in sorted(one.words)}
        charts[f"{one.name}: refs by category"] = dict(one.categories.most_common())
        charts[f"{one.name}: mask area, share of the picture"] = share_bars(one.mask_shares)
    if as_json:
        print_json({"splits": [one.to_json() for one in found]})
    else:
        for one in found:
            print(
                f"{one.name}: {one.images} images, {one.refs} refs, {one.expressions} expressions, of which "
                f"{one.no_target} mean nothing and {one.multi_target} several objects"
                + "".join(f", {count} {kind}" for kind, count in sorted(one.kinds.items()))
            )
        print("\n\n".join(text_bars(title, bars) for title, bars in charts.items()))
    if png is not None:
        save_charts(charts, png)
        say(f"written: {png}")


@data.command()
def check(
    directory: Data = None,
    dataset: Dataset = None,
    split: Split = None,
    decode: Annotated[bool, typer.Option("--check-images", help="Decode every picture, not its header alone.")] = False,
) -> None:
    """Report everything that is wrong with a prepared data set; exit code 1 if there is anything."""
    from vlformer_cli.data.check import check_split

    count = 0
    for one in open_splits(directory, dataset, split):
        for problem in check_split(one, decode_images=decode):
            count += 1
            print(problem)
        say(f"{one.name}: {one.num_refs} refs checked")
    say(f"{count} problem{'s' * (count != 1)}")
    if count:
        raise typer.Exit(1)


@data.command()
def show(
    directory: Data = None,
    dataset: Dataset = None,
    split: Annotated[str, typer.Option("--split", help="val, testA, testB, test, train.")] = "val",
    refs: Annotated[list[int] | None, typer.Option("--ref", help="A ref_id; repeatable.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="Or so many refs at random.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which ones.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture.")] = Path("outputs/data.png"),
) -> None:
    """Draw refs over their pictures, with their expressions, as a contact sheet."""
    from vlformer_cli.data.choose import random_refs, refs_by_id
    from vlformer_cli.data.dataset import ref_image, ref_mask
    from vlformer_cli.report.overlay import save_image
    from vlformer_cli.report.sheet import contact_sheet

    (one,) = open_splits(directory, dataset, split)
    chosen = refs_by_id(one, refs) if refs else random_refs(one, count, seed)
    rows, failures = [], []
    for ref in chosen:
        try:
            rows.append(("\n".join([f"ref {ref.ref_id}", *ref.expressions]), ref_image(one, ref), ref_mask(ref)))
        except VLFormerError as error:
            failures.append(f"ref {ref.ref_id}: {error}")
    if rows:
        save_image(contact_sheet(rows, panel="overlay"), output)
        say(f"{one.name}: {len(rows)} refs drawn in {output}")
    for failure in failures:
        say(f"vlformer: left out: {failure}")
    if failures:
        raise typer.Exit(1)


def open_splits(directory: Path | None, dataset: str | None, split: str | None) -> list[PreparedSplit]:
    """The named split, or all of the data set's."""
    from vlformer_cli.data.build import find_dataset
    from vlformer_cli.data.store import PreparedSplit, read_manifest

    folder = find_dataset(directory, dataset)
    return [PreparedSplit(folder, name) for name in ([split] if split else read_manifest(folder)["splits"])]
