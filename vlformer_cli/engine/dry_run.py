"""What a run would be, before it is one: config, parameters, memory, and the time of a step, measured."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np
import torch
import yaml

from vlformer_cli.config import Config
from vlformer_cli.data.build import build_training_data, first_stage_of
from vlformer_cli.data.dataset import Deal, collate
from vlformer_cli.data.transforms import fitted_size
from vlformer_cli.engine.build import build_stepper
from vlformer_cli.engine.device import memory_used
from vlformer_cli.engine.distributed import ALONE
from vlformer_cli.engine.precision import describe_precision, with_precision
from vlformer_cli.engine.step import Stepper
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.report.live import duration
from vlformer_cli.tree import to_tree
from vlformer_cli.types import Batch, ImageGroup, NotPreparedError, Ref, Sample

STEPS = 3
"""So many are timed after one that is not; the median counts."""
PARTS = ("backbone", "text_encoder", "pixel_decoder", "decoder")
MADE_UP_SIZE = (480, 640)  # pixels of most of COCO's pictures


def dry_run(config: Config) -> str:
    """A report on `train` with this config in one process, as text; nothing is written. Raises VLFormerError."""
    asked, config = config.train.precision, with_precision(config, ALONE)
    stepper, initialisation = build_stepper(config, ALONE)
    assert initialisation is not None
    batches, where = _batches(config, config.train.words_first)
    seconds, expressions = _seconds(stepper, config.train.words_first, batches), _expressions(batches)
    first = first_stage_of(config).steps
    total, words_first = (config.train.steps - first) * seconds, []
    if first:
        early, _ = _batches(config, 0)
        before = _seconds(stepper, 0, early)
        total += first * before
        rate = _expressions(early) / before
        words_first = [f"a step while words come first: {before:.2f} s, {rate:.1f} expressions/s"]
    return "\n".join(
        [
            yaml.safe_dump(to_tree(config), sort_keys=False),
            f"initialisation: {initialisation.summary}",
            *describe_precision(asked, config.train.precision, stepper.device),
            *_parameter_lines(stepper.model),
            _state_line(stepper),
            f"a step, on {where}: {len(batches)} forward(s), {sum(len(b.images) for b in batches)} pictures, "
            f"{expressions} expressions: {seconds:.2f} s, {expressions / seconds:.1f} expressions/s, {stepper.device}",
            *words_first,
            f"peak memory: {memory_used(stepper.device)}",
            f"all {config.train.steps} steps in one such process, without evaluations: {duration(total)}",
        ]
    )


def _expressions(batches: tuple[Batch, ...]) -> int:
    return sum(len(batch.samples) for batch in batches)


def _seconds(stepper: Stepper, first: int, batches: tuple[Batch, ...]) -> float:
    """Of a step, from step `first` on."""
    _time(stepper, first, batches)
    return statistics.median(_time(stepper, step, batches) for step in range(first + 1, first + STEPS + 1))


def _time(stepper: Stepper, step: int, batches: tuple[Batch, ...]) -> float:
    began = time.monotonic()
    stepper.take(step, batches, Counts.from_numbers(*Counts.on_host(batches)).to(stepper.device))
    if stepper.device.type == "cuda":
        torch.cuda.synchronize(stepper.device)
    return time.monotonic() - began


def _batches(config: Config, step: int) -> tuple[tuple[Batch, ...], str]:
    """The batches of a step, and what they are: of the training data, or made up where that is not there."""
    uncached = None if config.data is None else replace(config.data, cache="")
    try:
        return build_training_data(replace(config, data=uncached))[step], "training data"
    except NotPreparedError as error:
        return _made_up(config, step), f"made-up pictures ({error})"


def _made_up(config: Config, step: int) -> tuple[Batch, ...]:
    """Noise of the configured sizes and counts, with twelve tokens an expression."""
    assert config.data is not None
    data, model, rng = config.data, config.model, np.random.default_rng(config.train.seed)
    height, width = fitted_size(
        *MADE_UP_SIZE, max(data.short_sides or (model.short_side,)), data.max_side or model.max_side
    )
    deal, stage = Deal(forwards=config.train.accumulate), first_stage_of(config)
    deal.refuse_too_few(data.images_per_step, stage)
    count = data.expressions_per_image
    masks = np.zeros((count, height, width), dtype=np.bool_)
    masks[:, : height // 3, : width // 3] = True
    ref = Ref("", 0, width, height, 0, (0,), "", (0, 0, width // 3, height // 3), None, (), ())
    samples = tuple(Sample(ref, f"the {n} red cup left of the big brown bottle", n, "") for n in range(count))
    forwards = [
        [ImageGroup(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), masks, samples) for _ in slots]
        for slots in deal.slots(stage.pictures(step, data.images_per_step)[0])
    ]
    return tuple(collate(groups, model.max_tokens) for groups in forwards)


def _parameter_lines(model: VLFormer) -> list[str]:
    counts = {name: _count(getattr(model, name)) for name in PARTS}
    counts["all"] = _count(model)
    lines = [
        f"  {name:<14} {total / 1e6:>7.2f} M, {trained / 1e6:>7.2f} M trained"
        for name, (total, trained) in counts.items()
    ]
    return ["parameters:", *lines]


def _count(module: torch.nn.Module) -> tuple[int, int]:
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _state_line(stepper: Stepper) -> str:
    sizes = stepper.sizes()
    parts = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.items())
    return f"memory for what does not depend on the batch: {sum(sizes.values()) / 2**20:.0f} MiB ({parts})"
