"""Opening and random access of a prepared split of any size, and what workers keep in memory.

python benchmarks/prepared_format.py [--refs 10000000] [--workers 8] [--reads 2000] [--folder DIR]

Writes a synthetic split (about 330 bytes a ref) and reads it back: the time to open it, to read a ref at random, and
the resident memory of spawned worker processes before they open it and after they read at random. "Unique" leaves out
pages that processes share, such as those of the memory-mapped index.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from vlformer_cli.data.store import PreparedSplit

EXPRESSIONS_PER_REF, REFS_PER_IMAGE, CHUNK = 3, 2, 100_000


def write_split(folder: Path, refs: int) -> None:
    """Lines as `PreparedWriter` writes them, but without making 10 million objects for it."""
    folder.mkdir(parents=True)
    line = json.dumps(
        {
            "image": "IMAGE.jpg", "image_id": 0, "width": 640, "height": 480, "ref_id": 0, "ann_ids": [1],
            "category": "cup", "bbox": [10.0, 20.0, 60.0, 90.0],
            "segmentation": {"size": [480, 640], "counts": "d`P4" + "l0D;E" * 12},
            "expressions": ["red cup", "cup", "left cup"],
            "sent_ids": [0, 1, 2],
        },
        separators=(",", ":"),
    )  # fmt: skip
    offset = 0
    index = np.lib.format.open_memmap(folder / "train.index.npy", mode="w+", dtype=np.int64, shape=(refs, 3))
    with (folder / "train.jsonl").open("wb") as file:
        for first in range(0, refs, CHUNK):
            rows = range(first, min(first + CHUNK, refs))
            lines = [
                line.replace("IMAGE", str(r // REFS_PER_IMAGE), 1).replace('"ref_id":0', f'"ref_id":{r}', 1) + "\n"
                for r in rows
            ]
            starts = offset + np.cumsum([0, *map(len, lines)])
            index[first : rows.stop, 0] = starts[:-1]
            offset = int(starts[-1])
            file.write("".join(lines).encode())
    ordinal = np.arange(refs)
    index[:, 1], index[:, 2] = ordinal // REFS_PER_IMAGE, ordinal * EXPRESSIONS_PER_REF
    index.flush()
    counts = {"refs": refs, "images": int(index[-1, 1]) + 1, "expressions": refs * EXPRESSIONS_PER_REF}
    manifest = {"dataset": "synthetic", "split_by": "n", "image_root": "images", "splits": {"train": counts}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def memory_mib() -> dict[str, float]:
    """Resident and unique memory of this process (Linux)."""
    text = Path("/proc/self/smaps_rollup").read_text()
    fields = {row.split(":")[0]: int(row.split()[1]) / 1024 for row in text.splitlines()[1:]}
    return {"resident": fields["Rss"], "unique": fields["Private_Clean"] + fields["Private_Dirty"]}


def work(folder: Path, seed: int, reads: int) -> tuple[dict[str, float], dict[str, float]]:
    """Memory before opening and after `reads` random samples."""
    before = memory_mib()
    split = PreparedSplit(folder, "train")
    for number in np.random.default_rng(seed).integers(len(split), size=reads).tolist():
        split.sample(number)
    return before, memory_mib()


def timed(action: object, times: int) -> float:
    """Median of milliseconds."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        action()  # type: ignore[operator]
        took.append(1000 * (time.perf_counter() - start))
    return statistics.median(took)


def measure(folder: Path, refs: int, reads: int, workers: int) -> None:
    split = PreparedSplit(folder, "train")
    rng = np.random.default_rng(0)
    size = (folder / "train.jsonl").stat().st_size / 2**20
    print(f"{refs:,} refs, {len(split):,} samples, {size:,.0f} MiB of lines")
    print(f"open: {timed(lambda: PreparedSplit(folder, 'train'), 51):.2f} ms (median of 51)")
    print(f"a random ref: {timed(lambda: split.ref(int(rng.integers(refs))), reads):.3f} ms (median of {reads})")
    print(f"a random sample: {timed(lambda: split.sample(int(rng.integers(len(split)))), reads):.3f} ms")
    of_image = timed(lambda: split.image_samples(int(rng.integers(split.num_images))), reads)
    print(f"all samples of a random image: {of_image:.3f} ms")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.starmap(work, [(folder, seed, reads) for seed in range(workers)], chunksize=1)
    for name in ("resident", "unique"):
        before, after = ([pair[which][name] for pair in found] for which in (0, 1))
        print(
            f"{workers} workers, {name} memory each: {statistics.median(before):.0f} MiB before opening, "
            f"{statistics.median(after):.0f} MiB (most: {max(after):.0f}) after {reads} random samples"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refs", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}")
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        for refs in (1000, args.refs):
            folder = Path(root) / f"synthetic-{refs}"
            write_split(folder, refs)
            measure(folder, refs, args.reads, args.workers)


if __name__ == "__main__":
    main()
