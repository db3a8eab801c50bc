"""The state of a training run: the things built from its config, and everything that the next step depends on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from vlformer_cli.config import Config
from vlformer_cli.data.build import build_training_data, open_split
from vlformer_cli.engine.build import build_stepper
from vlformer_cli.engine.checkpoint import save_weights, write_atomically
from vlformer_cli.engine.device import memory_used
from vlformer_cli.engine.distributed import World
from vlformer_cli.engine.evaluate import evaluate
from vlformer_cli.engine.loader import load
from vlformer_cli.engine.manifest import resumed_manifest, run_manifest, write_json
from vlformer_cli.engine.precision import with_precision
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.engine.resume import state_to_start_from
from vlformer_cli.engine.rng import restore_rng, rng_state
from vlformer_cli.engine.run_folder import WEIGHTS, Checkpoints, read_rows, save_batches
from vlformer_cli.engine.run_log import RunLog
from vlformer_cli.engine.step import StepResult
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.report.curves import save_curves
from vlformer_cli.report.live import Now
from vlformer_cli.report.say import say
from vlformer_cli.tree import to_tree
from vlformer_cli.types import Batch, SettledError, VLFormerError


class Run:
    """`with Run(...) as run`: a run in its folder, new or resumed. Each process of a job has one; the first writes."""

    def __init__(self, config: Config, output: Path, world: World, *, resume: bool) -> None:
        """Raises VLFormerError if `output` holds a run and `resume` is False, or the config changed since."""
        self.output, self.world, self.asked_precision = output, world, config.train.precision
        self.step = self.expressions = self.cut = self.unreadable = self.skipped = self._bad_in_a_row = 0
        self.best: tuple[float, int] | None = None
        self._began = time.monotonic()
        self.checkpoints = Checkpoints(output / "checkpoints", config.train.keep)
        self.data = build_training_data(config, rank=world.rank, size=world.size)
        self.val = open_split(config.data.val) if config.data and config.data.val else None
        if self.val is not None and not len(self.val):
            raise SettledError(
                f"{self.val.directory}: split {self.val.split} is empty: draw more, or set data.val=null"
            )
        state = state_to_start_from(self.checkpoints, config, output, world, resume=resume)
        began_with = None if state is None else state["config"]["train"]["precision"]
        self.config = config = with_precision(config, world, began_with)
        self.stepper, self.initialisation = build_stepper(config, world, anew=state is None)
        self.model, self.device = self.stepper.model, self.stepper.device
        self.optimizer, self.average = self.stepper.optimizer, self.stepper.average
        self.manifest = run_manifest(config, world, self.initialisation, asked_precision=self.asked_precision)
        self._saved_at: int | None = None
        if state is not None:
            self._load(state)
        if world.is_first:
            self._write_folder()

    def __enter__(self) -> Run:
        self._log = RunLog(self.output, self.config.train, resumed_at=self.step) if self.world.is_first else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._log is not None:
            self._log.close()

    @property
    def is_finished(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.config.train.steps

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, that of earlier processes included."""
        return time.monotonic() - self._began

    @property
    def state_bytes(self) -> int:
        """About the size of a checkpoint."""
        sizes = self.stepper.sizes()
        return sum(sizes.values()) - sizes["gradients"]

    @property
    def evaluated_samples(self) -> int:
        """Samples of the validation split that an evaluation takes."""
        count = 0 if self.val is None else len(self.val)
        return min(count, self.config.train.eval_samples or count)

    @property
    def best_weights(self) -> VLFormer:
        """The moving average where there is one."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    def batches(self, has_to_stop: Callable[[], bool] = lambda: False) -> Generator[tuple[Batch, ...], None, None]:
        """This process's part of each of the steps that are left; to be closed. See `load` for `has_to_stop`."""
        assert self.config.data is not None
        steps = range(self.step, self.config.train.steps)
        workers = self.config.data.workers
        return load(self.data, steps, workers=workers, device=self.device, has_to_stop=has_to_stop)

    def take(self, batches: Sequence[Batch], counts: Counts, *, cut: int = 0, unreadable: int = 0) -> StepResult:
        """The next step; `counts`, `cut` (expressions) and `unreadable` (pictures) are of all processes.

        Raises VLFormerError after too many in a row whose loss is not finite.
        """
        result = self.stepper.take(self.step, batches, counts.to(self.device))
        is_bad = not result.is_finite or (not math.isfinite(result.gradient_norm) and not self.stepper.may_overflow)
        self.skipped += is_bad
        self._bad_in_a_row = self._bad_in_a_row + 1 if is_bad else 0
        if self._bad_in_a_row >= self.config.train.max_bad_steps:
            self._give_up(batches)
        self.step += 1
        self.expressions += int(counts.expressions)
        self.cut += cut
        self._count_unreadable(unreadable, [message for batch in batches for message in batch.unreadable])
        return result

    def _count_unreadable(self, count: int, messages: Sequence[str]) -> None:
        """Says so of the first ones; the display and the log have how many there were."""
        if messages and not self.unreadable:
            say(f"data: {messages[0]}; another picture stands in for it, and from now on for each like it")
        self.unreadable += count

    def due(self, every: int, *, after: int = 0) -> bool:
        """Whether what happens every so many steps (0: at the end alone) happens now, or `after` more steps."""
        step = self.step + after
        return (every > 0 and step % every == 0) or step == self.config.train.steps

    def now(self, result: StepResult) -> Now:
        """What the display shows."""
        counts = {"steps skipped": self.skipped, "expressions cut": self.cut, "pictures unreadable": self.unreadable}
        notes = [f"{count} {what}" for what, count in counts.items() if count]
        notes += [f"best {self.best_text}"] * bool(self.best_text)
        return Now(self.step, result.losses, self._lr(), self.expressions, memory_used(self.device), ", ".join(notes))

    def log_step(self, result: StepResult, rate: float) -> None:
        """A row of losses."""
        rest = {"lr": self._lr(), "gradient_norm": result.gradient_norm, "expressions_per_second": round(rate, 2)}
        self._write({name: _finite(value) for name, value in {**result.losses, **rest}.items()})

    def draw_curves(self) -> None:
        """`curves.png`, from all of `metrics.jsonl`."""
        path, title = self.output / "curves.png", f"{self.config.model.name}: {self.output}"
        try:
            rows = read_rows(self.output / "metrics.jsonl")
        except VLFormerError as error:  # all else of the run is whole
            say(f"curves: not drawn, {error}")
            return
        if rows:
            self._try(lambda: write_atomically(path, lambda partial: save_curves(rows, partial, title)))

    def evaluate(self) -> float:
        """Writes the weights for use, evaluates them, keeps the best; returns the seconds that took.

        While words come first, most of the model is not trained, and there is nothing to evaluate.
        """
        began = time.monotonic()
        self.save_for_use()
        if self.val is not None and self.step > self.config.train.words_first:
            predictor, limit = (
                Predictor(self.best_weights, self.config.model, min_score=0.0),
                self.config.train.eval_samples,
            )
            try:
                found = evaluate(predictor, self.val, limit=limit, title="val", world=self.world)
            except VLFormerError as error:  # all processes get it; a run of days does not end for it
                if self.world.is_first:
                    say(f"evaluation: left out, {error}; the run goes on")
                return time.monotonic() - began
            if self._is_best(float(getattr(found.summary, self.config.train.best_by))):
                self.save_for_use("best.safetensors")
            self._write({"val": found.to_json()})  # last: whoever reads it knows that the best weights are there
        return time.monotonic() - began

    def catch_up(self) -> float:
        """After a resume: the evaluation that came after the checkpoint was written, from the log or done now.

        Returns the seconds that it took, 0 where there was none to do.
        """
        if self.step <= self.config.train.words_first or not self.due(self.config.train.eval_every):
            return 0.0
        rows = read_rows(self.output / "metrics.jsonl", up_to=self.step) if self.world.is_first else []
        known = [row["val"] for row in rows if row["step"] == self.step and "val" in row]
        (known, *_) = self.world.gather(known)
        if known:
            self._is_best(float(known[-1]["chosen_query"][self.config.train.best_by]))
            return 0.0
        return self.evaluate()

    def _is_best(self, value: float) -> bool:
        """Whether an evaluation at this step found more than any before; it is noted then."""
        if self.best is not None and value <= self.best[0]:
            return False
        self.best = (value, self.step)
        return True

    @property
    def best_text(self) -> str:
        """Metric, value in percent, data and step of the best weights; empty before the first evaluation."""
        if self.best is None:
            return ""
        value, step = self.best
        return f"{self.config.train.best_by} {100 * value:.2f} on {self.val.name if self.val else '?'} at step {step}"

    def save_for_use(self, name: str = WEIGHTS, *, needed: bool = False) -> Path:
        """Writes the weights for use; the first process does. A full disk is an error where they are `needed`."""
        path = self.output / name
        manifest = {**self.manifest, "step": self.step, "finished": self.is_finished}
        if self.world.is_first:
            weights = self.best_weights
            self._try(lambda: save_weights(path, weights, self.config.model, manifest), needed=needed)
        return path

    def save(self, *, needed: bool = False) -> float:
        """Writes a checkpoint and returns the seconds that took. A full disk costs the checkpoint, not the run.

        `needed`: it is the last thing that the run does, so that OSError is raised instead.
        """
        began = time.monotonic()
        states = self.world.gather(rng_state())
        if self.world.is_first and self._saved_at != self.step:
            self._try(lambda: self._save(states), needed=needed)
        return time.monotonic() - began

    def _save(self, rng_states: list[dict[str, Any]]) -> None:
        self.checkpoints.save(self.step, self._state(rng_states))
        self._saved_at = self.step

    def _state(self, rng_states: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "config": to_tree(self.config),
            "manifest": self.manifest,
            "step": self.step,
            "counters": [self.expressions, self.cut, self.skipped, self._bad_in_a_row],
            "unreadable": self.unreadable,
            "best": self.best,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "rng": rng_states,
        }

    def _write_folder(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(to_tree(self.config), sort_keys=False)
        write_atomically(self.output / "config.yaml", lambda p: p.write_text(text, encoding="utf-8"))
        write_json(self.output / "manifest.json", self.manifest)

    def _load(self, state: dict[str, Any]) -> None:
        self.manifest = resumed_manifest(state["manifest"], self.manifest, state["step"], self.output)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step = state["step"]
        self.expressions, self.cut, self.skipped, self._bad_in_a_row = state["counters"]
        self.unreadable = state.get("unreadable", 0)  # checkpoints of before 2026-11-27 do not know
        self.best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self._began -= state["seconds"]
        self._saved_at = self.step
        restore_rng(state["rng"][self.world.rank % len(state["rng"])])

    def _give_up(self, batches: Sequence[Batch]) -> None:
        """Keeps the batch that this process saw last, and ends the run."""
        path = self.output / f"bad-batch-{self.world.rank}.pt"
        self._try(lambda: save_batches(path, self.step, batches))
        raise SettledError(
            f"the loss was not finite in {self._bad_in_a_row} steps in a row, to step {self.step}: begin anew "
            f"with a lower train.lr or train.clip; the last batch is in {path.with_name('bad-batch-*.pt')} (torch.load)"
        )

    def _try(self, write: Callable[[], object], *, needed: bool = False) -> None:
        try:
            write()
        except OSError as error:
            if needed:
                raise
            say(f"step {self.step}: {error}; the run goes on")

    def _write(self, row: dict[str, Any]) -> None:
        if self._log is not None:
            counters = {
                "expressions": self.expressions,
                "cut": self.cut,
                "unreadable": self.unreadable,
                "skipped": self.skipped,
            }
            self._log.write({"step": self.step, "seconds": round(self.seconds, 1), **counters, **row})

    def _lr(self) -> float:
        """Of the step that was taken last."""
        return self.stepper.schedule.scale(max(0, self.step - 1)) * self.config.train.lr


def _finite(value: float) -> float | None:
    """JSON knows no other numbers."""
    return value if math.isfinite(value) else None
