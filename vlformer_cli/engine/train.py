"""Training: a loop one can read from top to bottom.

A run folder holds `config.yaml`, `manifest.json`, `metrics.jsonl`, `last.pt` (to resume from) and `model.safetensors`
(to use). A batch is a function of (seed, step), so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader

from vlformer_cli.config import Config, from_tree, to_tree
from vlformer_cli.data.build import build_training_data, open_split
from vlformer_cli.engine.checkpoint import (
    find_weights,
    load_state,
    load_weights,
    save_state,
    save_weights,
    write_atomically,
)
from vlformer_cli.engine.device import pick_device, set_threads
from vlformer_cli.engine.evaluate import evaluate
from vlformer_cli.engine.manifest import run_manifest
from vlformer_cli.engine.optim import Schedule, average_of, build_optimizer
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.loss.build import build_criterion
from vlformer_cli.loss.criterion import Losses
from vlformer_cli.model.build import build_model
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.report.progress import ProgressLine
from vlformer_cli.types import Batch, VLFormerError

MAX_BAD_STEPS = 10  # in a row, after which a run stops instead of going on with nothing learned


def train(config: Config, output: Path, *, resume: bool = False) -> Path:
    """Trains in the folder `output` and returns the path of the weights for use.

    Raises VLFormerError if `output` holds a run already and `resume` is False, or the config changed since.
    """
    run = Run(config, output, resume=resume)
    with ProgressLine("train", config.train.steps, start=run.step) as line:
        for batch in run.batches():
            losses = run.step_on(batch)
            line.update(run.step, run.note(losses))
            if run.due(config.train.log_every):
                run.log(
                    {
                        "loss": float(losses.total),
                        "class": float(losses.class_),
                        "bce": float(losses.bce),
                        "dice": float(losses.dice),
                        "lr": run.schedule.scale(run.step) * config.train.lr,
                    }
                )
            if run.due(config.train.save_every):
                run.save()
            if run.due(config.train.eval_every):
                run.save_for_use()
                run.evaluate()
    return run.save_for_use()


class Run:
    """The state of a training run: what `last.pt` holds, and the things that are built from the config."""

    def __init__(self, config: Config, output: Path, *, resume: bool) -> None:
        self.config, self.output, self.step, self.bad_steps = config, output, 0, 0
        self.data = build_training_data(config)
        self.device = pick_device(config.train.device)
        set_threads(config.train.threads)
        torch.manual_seed(config.train.seed)
        self.model = initial_model(config).to(self.device)
        self.criterion = build_criterion(config.loss).to(self.device)
        self.optimizer = build_optimizer(self.model, config.train)
        self.schedule = Schedule(config.train)
        self.average = average_of(self.model, config.train.ema)
        self.manifest = run_manifest(config)
        self._began, self._expressions, self._cut = time.monotonic(), 0, 0
        self._woke, self._first_expression = self._began, 0  # of this process, for its rate
        if resume and (output / "last.pt").exists():
            self._resume()
        else:
            self._start()

    def batches(self) -> Iterator[Batch]:
        """The batches of the steps that are left."""
        assert self.config.data is not None
        loader: DataLoader[Batch] = DataLoader(
            self.data,
            batch_size=None,
            sampler=range(self.step, self.config.train.steps),
            num_workers=self.config.data.workers,
            generator=torch.Generator(),  # its own, so that making the loader leaves the global one as it is
            worker_init_fn=_one_thread,
            # a fork would copy OpenCV's and OpenMP's thread pools without their threads, and hang on first use
            multiprocessing_context="spawn" if self.config.data.workers else None,
        )
        return iter(loader)

    def step_on(self, batch: Batch) -> Losses:
        """One optimiser step; a batch with a non-finite loss or gradient changes nothing."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.schedule.scale(self.step)
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            output = self.model(batch.images, batch.pixel_valid, batch.tokens, batch.image_index)
        losses: Losses = self.criterion(output, batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip or float("inf"))
        self._apply(bool(torch.isfinite(losses.total)) and bool(torch.isfinite(norm)))
        self.step += 1
        self._expressions += len(batch.samples)
        self._cut += batch.cut
        return losses.detached()

    def _apply(self, finite: bool) -> None:
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if self.bad_steps >= MAX_BAD_STEPS:
            raise VLFormerError(
                f"the loss was not finite in {MAX_BAD_STEPS} steps in a row: lower train.lr or train.clip"
            )
        if finite:
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens after this one."""
        return self.step % every == 0 or self.step == self.config.train.steps

    def note(self, losses: Losses) -> str:
        """A few words for the progress line."""
        cut = f", {self._cut} expressions cut" if self._cut else ""
        rate = (self._expressions - self._first_expression) / (time.monotonic() - self._woke)
        return f"loss {float(losses.total):.3f}, {rate:.1f} expressions/s{cut}"

    def log(self, row: dict[str, Any]) -> None:
        """Appends a line to `metrics.jsonl`."""
        row = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "expressions": self._expressions,
            "cut": self._cut,
            **row,
        }
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, that of earlier processes included."""
        return time.monotonic() - self._began

    @property
    def best_weights(self) -> VLFormer:
        """The moving average where there is one."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    def evaluate(self) -> None:
        """Evaluates the weights for use on the validation split and logs the result."""
        assert self.config.data is not None
        if self.config.data.val is None:
            return
        predictor = Predictor(self.best_weights, self.config.model)
        found = evaluate(predictor, open_split(self.config.data.val), limit=self.config.train.eval_samples, title="val")
        self.log({"val": found.to_json()})

    def save_for_use(self) -> Path:
        """Writes `model.safetensors`."""
        path = self.output / "model.safetensors"
        manifest = {**self.manifest, "step": self.step, "finished": self.step == self.config.train.steps}
        save_weights(path, self.best_weights, self.config.model, manifest)
        return path

    def save(self) -> None:
        """Writes `last.pt`: everything that the next step depends on."""
        state = {
            "config": to_tree(self.config),
            "step": self.step,
            "expressions": self._expressions,
            "cut": self._cut,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        save_state(self.output / "last.pt", state)

    def _start(self) -> None:
        if (self.output / "last.pt").exists() or (self.output / "metrics.jsonl").exists():
            raise VLFormerError(f"{self.output} holds a run already: add --resume, or give another --output")
        self.output.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self.output / "config.yaml", lambda p: p.write_text(yaml.safe_dump(to_tree(self.config), sort_keys=False))
        )
        write_atomically(self.output / "manifest.json", lambda p: p.write_text(json.dumps(self.manifest, indent=2)))

    def _resume(self) -> None:
        state = load_state(self.output / "last.pt")
        before = to_tree(
            from_tree(Config, state["config"], where=f"{self.output}/last.pt")
        )  # with newer fields' defaults
        changed = _differences(before, to_tree(self.config))
        if changed:
            raise VLFormerError(f"the config changed since {self.output}/last.pt was written: {'; '.join(changed)}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self._expressions = state["step"], state["expressions"]
        self._first_expression, self._cut = self._expressions, state.get("cut", 0)
        self._began -= state.get("seconds", 0.0)
        self._forget_later_rows()
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _forget_later_rows(self) -> None:
        """Drops what `metrics.jsonl` says of steps after the checkpoint, which are about to be taken again."""
        path = self.output / "metrics.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= self.step]
        write_atomically(path, lambda partial: partial.write_text("".join(kept), encoding="utf-8"))


def initial_model(config: Config) -> VLFormer:
    """A new model, or the weights of `config.init`, whose model config must be the same where weights depend on it."""
    if config.init is None:
        return build_model(config.model)
    loaded = load_weights(find_weights(config.init))
    skipped = {"name", "short_side", "max_side", "max_tokens"}
    changed = [d for d in _differences(to_tree(loaded.config), to_tree(config.model)) if d.split()[0] not in skipped]
    if changed:
        raise VLFormerError(f"init {config.init} is another model: {'; '.join(changed)}")
    return _start_anew(loaded.model, config) if config.init_except else loaded.model


def _start_anew(model: VLFormer, config: Config) -> VLFormer:
    """`model` with the parts that `init_except` names as in a new model."""
    fresh = build_model(config.model)
    state = model.state_dict()
    for beginning in config.init_except:
        names = [name for name in state if name.startswith(beginning)]
        if not names:
            raise VLFormerError(f"init_except: no parameter's name begins with {beginning!r}")
        state |= {name: fresh.state_dict()[name] for name in names}
    fresh.load_state_dict(state)
    return fresh


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """`field was X, is Y` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))]
    return [] if old == new else [f"{where} was {old!r}, is {new!r}"]


def _one_thread(_: int) -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
