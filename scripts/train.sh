#!/usr/bin/env bash
# Trains vlformer-tiny from nothing (the embedded model came of two such runs, see docs/log.md): draws its data, trains (or goes on with) configs/tiny.yaml, evaluates on unseen scenes.
# Hours on two cores; interrupt it at any time and run it again. To ship the result: cp runs/vlformer-tiny/model.safetensors
# vlformer_cli/assets/vlformer-tiny.safetensors
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
data="${VLFORMER_DATA:-data}"
[ -d "$data/scenes-directions-seed0" ] || .venv/bin/vlformer prepare-data scenes --scenario directions --images 3000 --seed 0
[ -d "$data/scenes-seed0" ] || .venv/bin/vlformer prepare-data scenes --images 9000 --seed 0
[ -d "$data/scenes-seed1000" ] || .venv/bin/vlformer prepare-data scenes --images 2000 --seed 1000
.venv/bin/vlformer train --config configs/tiny.yaml --output runs/vlformer-tiny --resume "$@"
.venv/bin/vlformer eval --weights runs/vlformer-tiny/model.safetensors --dataset scenes-seed1000 --split train --output runs/vlformer-tiny/eval
