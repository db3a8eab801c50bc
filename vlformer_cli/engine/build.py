"""From a Config to something that takes optimiser steps."""

from __future__ import annotations

import torch

from vlformer_cli.config import Config
from vlformer_cli.engine.device import keep_freed_memory, keep_many_primitives
from vlformer_cli.engine.distributed import World
from vlformer_cli.engine.initialise import initial_model
from vlformer_cli.engine.optim import average_of, build_optimizer
from vlformer_cli.engine.precision import with_precision
from vlformer_cli.engine.rng import seed_all
from vlformer_cli.engine.step import Stepper
from vlformer_cli.engine.tune import freeze, tune
from vlformer_cli.engine.weights_table import Initialisation
from vlformer_cli.loss.build import build_criterion
from vlformer_cli.model.build import build_model


def build_stepper(config: Config, world: World, *, anew: bool = True) -> tuple[Stepper, Initialisation | None]:
    """Model, criterion, optimiser and average on this process's device, seeded; and where the weights came from.

    `anew` False: the weights are about to be loaded, so that nothing pretrained is needed, and the second is None.
    """
    config = with_precision(config, world)
    device = world.device(config.train.device)
    if device.type == "cpu":
        keep_freed_memory()
        keep_many_primitives()
    torch.set_num_threads(world.threads(config.train.threads))
    seed_all(config.train.seed)
    model, initialisation = initial_model(config) if anew else (build_model(config.model, pretrained=False), None)
    freeze(model, config.train.frozen)
    model.to(device)
    stepper = Stepper(
        average=average_of(model, config.train.ema),  # a copy, made before the model is tuned
        optimizer=build_optimizer(model, config.train),
        model=tune(model, config.train, world, device),
        criterion=build_criterion(config.loss).to(device),
        config=config.train,
        world=world,
        device=device,
    )
    return stepper, initialisation
