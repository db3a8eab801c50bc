"""How many pictures a second one loader worker makes ready for training, beside how many the model takes.

python benchmarks/loading.py --coco DIR [--config configs/vlformer-r50.yaml] [--expressions 5] [--steps 40] [--cache]

DIR holds COCO's layout: `images/` and `instances.json`. Every annotation becomes a ref with its category as expression.
A worker is one process with one thread that makes whole batches: reads, decodes, augments, masks, tokens, collation.
What the model takes is measured by whole training steps on such batches, with random weights; `--no-model` leaves that
out. Files are in the page cache after the first pass, which is not counted: it is the processor's work, not the disk's.
Times are processor time of one thread, which what else runs on the machine hardly changes; of a GPU's steps, wall time.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import PIL
import torch

from vlformer_cli.config import Config, DataConfig, DataSource, load_config
from vlformer_cli.data.build import build_training_data
from vlformer_cli.data.dataset import TrainingBatches
from vlformer_cli.data.images import image_size
from vlformer_cli.data.rle import polygons_to_rle, rle_bbox
from vlformer_cli.data.store import PreparedWriter
from vlformer_cli.engine.build import build_stepper
from vlformer_cli.engine.distributed import ALONE
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.types import Ref

ROUNDS = 3  # of all steps; the median counts


def prepare(coco: Path, folder: Path) -> Path:
    """The data set in `coco` as a prepared one."""
    content = json.loads((coco / "instances.json").read_text(encoding="utf-8"))
    categories = {category["id"]: category["name"] for category in content["categories"]}
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    refs = []
    for picture in content["images"]:
        path = coco / "images" / picture["file_name"]
        height, width = image_size(path)
        for annotation in of_image[picture["id"]]:
            rle, ident = polygons_to_rle(annotation["segmentation"], height, width), int(annotation["id"])
            name = categories[annotation["category_id"]]
            refs.append(Ref(str(path.resolve()), picture["id"], width, height, ident, (ident,), name,
                            rle_bbox(rle), rle, (f"the {name}",), (ident,)))  # fmt: skip
    with PreparedWriter(folder, dataset="coco", split_by="benchmark") as writer:
        writer.write_split("train", refs)
    return folder


def seconds_of_pictures(data: TrainingBatches, steps: int) -> float:
    """For one picture, of a worker."""
    for step in range(steps):
        data[step]  # into the page cache, and into ours
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for step in range(steps):
            data[step]
        rounds.append(time.process_time() - began)
    return statistics.median(rounds) / (steps * data.images_per_step)


def seconds_of_a_step(config: Config, data: TrainingBatches, count: int) -> tuple[float, torch.device]:
    """Of the model, forwards and backwards."""
    stepper, _ = build_stepper(config, ALONE)
    clock = time.process_time if stepper.device.type == "cpu" else time.perf_counter
    times = []
    for step in range(count + 1):
        batches = data[step]
        counts = Counts.from_numbers(*Counts.on_host(batches)).to(stepper.device)
        began = clock()
        stepper.take(step, batches, counts)
        if stepper.device.type == "cuda":
            torch.cuda.synchronize(stepper.device)
        times.append(clock() - began)
    return statistics.median(times[1:]), stepper.device


def without_pretrained(config: Config) -> Config:
    """Speed does not depend on the weights."""
    model = config.model
    text = replace(model.text, weights="none") if model.text.name != "small" else model.text
    return replace(config, model=replace(model, backbone=replace(model.backbone, weights="none"), text=text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/vlformer-r50.yaml"))
    parser.add_argument("--expressions", type=int, default=5, help="about each picture, at most")
    parser.add_argument("--images", type=int, default=8, help="of a step")
    parser.add_argument("--steps", type=int, default=40, help="that the loader makes ready")
    parser.add_argument("--model-steps", type=int, default=3)
    parser.add_argument("--cache", action="store_true", help="also measure with data.cache, once it is filled")
    parser.add_argument("--no-model", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    loaded = without_pretrained(load_config(args.config))
    with tempfile.TemporaryDirectory() as root:
        source = DataSource(str(prepare(args.coco, Path(root) / "coco-benchmark")))
        data = replace(loaded.data or DataConfig(train=()), train=(source,), val=None, images_per_step=args.images,
                       expressions_per_image=args.expressions)  # fmt: skip
        config = replace(loaded, data=data, train=replace(loaded.train, steps=100_000, threads=1, accumulate=1))
        batches = build_training_data(config)
        sides = data.short_sides or (config.model.short_side,)
        versions = f"Python {platform.python_version()}, torch {torch.__version__}, Pillow {PIL.__version__}"
        print(f"{config.model.name}, short sides {sides}, {args.images} pictures a step with up to {args.expressions} "
              f"expressions; {versions}, OpenCV {cv2.__version__}, {platform.machine()}")  # fmt: skip
        rates = {"a worker": 1 / seconds_of_pictures(batches, args.steps)}
        if args.cache:
            cached = replace(config, data=replace(data, cache=str(Path(root) / "cache")))
            rates["a worker, cached"] = 1 / seconds_of_pictures(build_training_data(cached), args.steps)
            sizes = [path.stat().st_size for path in (Path(root) / "cache").rglob("*.safetensors")]
            print(f"cache: {len(sizes)} pictures, {sum(sizes) / len(sizes) / 1e6:.2f} MB each")
        for name, rate in rates.items():
            print(f"{name} makes ready {rate:.1f} pictures/s ({1000 / rate:.2f} ms each)")
        if not args.no_model:
            seconds, device = seconds_of_a_step(config, batches, args.model_steps)
            need = args.images / seconds
            print(f"the model takes {need:.2f} pictures/s on {device} ({seconds:.2f} s a step, 1 thread on a CPU): "
                  f"{math.ceil(need / rates['a worker'])} worker(s) needed, each {rates['a worker'] / need:.1f} "
                  "times as fast as that")  # fmt: skip


if __name__ == "__main__":
    main()
