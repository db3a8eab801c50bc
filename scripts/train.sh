#!/usr/bin/env bash
# Trains vlformer-tiny from nothing: draws its data, trains (or goes on with) configs/tiny.yaml, evaluates on unseen scenes.
# Hours on two cores; interrupt it at any time and run it again. To ship the result: python scripts/calibrate.py (it says how), then
# cp runs/vlformer-tiny/model.safetensors vlformer_cli/assets/vlformer-tiny.safetensors
#
#   STICKERS=DIR COCO=DIR bash scripts/train.sh [options of `vlformer train`]
#
# STICKERS: what scripts/stickers.py made; COCO: a folder with images/ and instances.json (coco128 was used). Without one of them
# the source that needs it is left out, and the model knows other drawings or photographs less well. Data sets that are there
# already are not drawn again: remove them after a change of STICKERS or COCO. OUTPUT: the run's folder, if not runs/vlformer-tiny.
output="${OUTPUT:-runs/vlformer-tiny}"
for word in "$@"; do
  case "$word" in --output* | -o*) echo "train.sh: give the run's folder as OUTPUT=DIR" >&2; exit 2 ;; esac
done
for folder in "${COCO:-.}" "${STICKERS:-.}"; do
  [ -d "$folder" ] || { echo "train.sh: there is no folder $folder" >&2; exit 2; }
done
COCO="${COCO:+$(realpath "$COCO")}" STICKERS="${STICKERS:+$(realpath "$STICKERS")}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""  # "": not this script's own arguments
data="${VLFORMER_DATA:-data}"
prepare() { [ -d "$data/$1" ] || .venv/bin/vlformer prepare-data scenes "${@:2}"; }
prepare scenes-directions-seed0 --scenario directions --images 3000 --seed 0 --reworded 0.3
prepare scenes-near-seed0 --scenario near --images 5000 --seed 0 --reworded 0.3
prepare scenes-seed0 --images 12000 --seed 0
prepare scenes-seed1000 --images 2000 --seed 1000
sources='{path: scenes-seed0, weight: 0.22}, {path: scenes-directions-seed0, weight: 0.06}, {path: scenes-near-seed0, weight: 0.12}'
varied=(--images 18000 --seed 4 --size 256 --bent 1 --no-target 0.12 --reworded 0.5)
prepare scenes-seed4 "${varied[@]}" ${STICKERS:+--stickers "$STICKERS"}
sources+=', {path: scenes-seed4, weight: 0.3}'
if [ -n "${COCO:-}" ]; then
  .venv/bin/python scripts/photographs.py "$COCO" "$data/photographs"
  photos=(--scenario photos --from "$data/photographs/training" --images 14000 --seed 1 --size 256 --bent 1)
  photos+=(--no-target 0.12 --reworded 0.5)
  prepare scenes-photos-seed1 "${photos[@]}" ${STICKERS:+--stickers "$STICKERS"}
  sources+=', {path: scenes-photos-seed1, weight: 0.3}'
fi
.venv/bin/vlformer train --config configs/tiny.yaml --set "data.train=[$sources]" --output "$output" --resume "$@"
.venv/bin/vlformer eval --weights "$output/model.safetensors" --dataset scenes-seed1000 --split train --output "$output/eval"
