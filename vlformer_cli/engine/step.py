"""One optimiser step, over any number of processes and accumulated forwards, in any precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from vlformer_cli.config import TrainConfig
from vlformer_cli.engine.distributed import World
from vlformer_cli.engine.graphed import GraphedObjective, why_not
from vlformer_cli.engine.objective import Objective
from vlformer_cli.engine.optim import Schedule
from vlformer_cli.loss.criterion import Counts, Criterion, Losses
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import Batch, VLFormerError


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step came to, over all processes."""

    gradient_norm: float
    """Before clipping."""
    total: float
    class_: float
    bce: float
    dice: float
    choice: float
    anchors: float

    @property
    def is_finite(self) -> bool:
        """Whether the losses are."""
        return all(math.isfinite(value) for value in self.losses.values())

    @property
    def losses(self) -> dict[str, float]:
        """By the names that logs use."""
        return {
            "loss": self.total,
            "class": self.class_,
            "bce": self.bce,
            "dice": self.dice,
            "choice": self.choice,
            "anchors": self.anchors,
        }


class Stepper:
    """Changes the model by one step at a time. A step with a loss or gradient that is not finite changes nothing."""

    def __init__(
        self,
        *,
        model: VLFormer,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        config: TrainConfig,
        world: World,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.average, self.config = model, optimizer, average, config
        self.world, self.device, self.schedule = world, device, Schedule(config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._plain = Objective(model=model, criterion=criterion, device_type=device.type, precision=config.precision)
        self.why_not_graphed = why_not(config, device, world.size, remembers_texts=model.text_encoder.remembers)
        """Why steps are not recorded as CUDA graphs; None: they are."""
        self._graphed = GraphedObjective(self._plain) if self.why_not_graphed is None else None
        if config.words_first and model.pixel_decoder.pointer is None:
            raise VLFormerError(
                f"train.words_first is {config.words_first}, and there is no pointer: set model.pointer"
            )
        if config.words_first and not model.pixel_decoder.mix_levels:
            raise VLFormerError(
                f"train.words_first is {config.words_first}, and the pointer sees one level alone: set model.mix_levels"
            )
        self._after_pointer = [p for p in model.after_pointer() if p.requires_grad]
        self.objective = self._arranged(points_only=False)

    def _arranged(self, *, points_only: bool) -> nn.Module:
        """The objective for a stage of the training. What it does not run gets no gradient, and DDP may know."""
        self._plain.points_only = points_only
        for parameter in self._after_pointer:
            parameter.requires_grad_(not points_only)
        if self.world.size == 1:
            return self._plain
        return DistributedDataParallel(
            self._plain,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            # with no_sync a static graph drops gradients (pytorch pull request 187732)
            static_graph=self.config.accumulate == 1,
        )

    @property
    def may_overflow(self) -> bool:
        """Whether float16 gradients that are not finite are no fault: the loss's scale is still being lowered."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def sizes(self) -> dict[str, int]:
        """Bytes of what training keeps beside activations, from the tensors themselves."""
        weights = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        trained = sum(parameter.nbytes for parameter in self._trained())
        average = weights if self.average is not None else 0
        return {"weights": weights, "gradients": trained, "AdamW": 2 * trained, "average": average}

    def take(self, step: int, batches: Sequence[Batch], counts: Counts) -> StepResult:
        """Step `step` (from 0). `counts` are those of the whole step, over all processes."""
        points_only = step < self.config.words_first
        if points_only != self._plain.points_only:
            self.objective = self._arranged(points_only=points_only)
        if self.average is not None and 0 < self.config.words_first == step:
            self.average.n_averaged.zero_()  # its next update copies: of most parts it holds what was never trained
        self.objective.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.schedule.scale(step)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._graphed(batches[0], counts) if self._graphed else self._computed(batches, counts)
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self._trained(), self.config.clip or math.inf))
        result = StepResult(norm, *self.world.sum(parts.tolist()))
        self._apply(result)
        return result

    def _computed(self, batches: Sequence[Batch], counts: Counts) -> Tensor:
        """The losses of several batches together; their gradients are in the parameters then."""
        parts = torch.zeros(len(fields(Losses)), device=self.device)
        for number, batch in enumerate(batches, 1):
            with self._talking(number == len(batches)):
                losses = self.objective(batch.to(self.device), counts)
                # DDP takes the mean over processes; the losses are already divided by counts over all of them
                self.scaler.scale(losses[0] * self.world.size).backward()
            parts += losses.detach()
        return parts

    def _talking(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the last backward of a step alone."""
        if isinstance(self.objective, DistributedDataParallel) and not is_last:
            context: AbstractContextManager[None] = self.objective.no_sync()
            return context
        return nullcontext()

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _apply(self, result: StepResult) -> None:
        """Gradients are the same in all processes, so that they decide the same."""
        scale = self.scaler.get_scale()
        if self.scaler.is_enabled():
            if result.is_finite:  # float16 logits that overflow give a loss that is not, and gradients that are
                self.scaler.step(self.optimizer)
            self.scaler.update()
            stepped = result.is_finite and self.scaler.get_scale() >= scale
        else:
            stepped = result.is_finite and math.isfinite(result.gradient_norm)
            if stepped:
                self.optimizer.step()
        if stepped and self.average is not None:
            self.average.update_parameters(self.model)
