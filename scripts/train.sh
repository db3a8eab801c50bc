#!/usr/bin/env bash
# Trains vlformer-tiny from nothing in two stages: drawings (configs/tiny.yaml), then photographs (configs/photos.yaml).
# Each stage takes hours on two cores. Interrupt it at any time and run it again: it resumes.
#
#   PHOTOS=DIR [STICKERS=DIR] [COCO=DIR] bash scripts/train.sh [options of `vlformer train`]
#
# PHOTOS: photographs with annotations, as `prepare-data photos` reads them; without it only the first stage runs.
# STICKERS: what scripts/stickers.py made. COCO: a folder with images/ and instances.json (coco128 was used). Without one of
# these two, the drawn sources that need it are left out. Data sets that exist are not made again: remove them after a change.
# OUTPUT: the runs' folder (default: runs); the stages are OUTPUT/drawings and OUTPUT/photos.
#
# To ship the result: python scripts/calibrate.py (it says how), then
# cp runs/photos/model.safetensors vlformer_cli/assets/vlformer-tiny.safetensors
output="${OUTPUT:-runs}"
for word in "$@"; do
  case "$word" in --output* | -o*) echo "train.sh: give the run's folder as OUTPUT=DIR" >&2; exit 2 ;; esac
done
for folder in "${PHOTOS:-.}" "${COCO:-.}" "${STICKERS:-.}"; do
  [ -d "$folder" ] || { echo "train.sh: there is no folder $folder" >&2; exit 2; }
done
PHOTOS="${PHOTOS:+$(realpath "$PHOTOS")}" COCO="${COCO:+$(realpath "$COCO")}" STICKERS="${STICKERS:+$(realpath "$STICKERS")}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""  # "": not this script's own arguments
data="${VLFORMER_DATA:-data}"
prepare() { [ -d "$data/$1" ] || .venv/bin/vlformer prepare-data "${@:2}"; }

prepare scenes-directions-seed0 scenes --scenario directions --images 3000 --seed 0 --reworded 0.3
prepare scenes-near-seed0 scenes --scenario near --images 5000 --seed 0 --reworded 0.3
prepare scenes-seed0 scenes --images 12000 --seed 0
prepare scenes-seed1000 scenes --images 2000 --seed 1000
sources='{path: scenes-seed0, weight: 0.22}, {path: scenes-directions-seed0, weight: 0.06}, {path: scenes-near-seed0, weight: 0.12}'
varied=(--images 18000 --seed 4 --size 256 --bent 1 --no-target 0.12 --reworded 0.5)
prepare scenes-seed4 scenes "${varied[@]}" ${STICKERS:+--stickers "$STICKERS"}
sources+=', {path: scenes-seed4, weight: 0.3}'
if [ -n "${COCO:-}" ]; then
  .venv/bin/python scripts/photographs.py "$COCO" "$data/photographs"
  photos=(--scenario photos --from "$data/photographs/training" --images 14000 --seed 1 --size 256 --bent 1)
  photos+=(--no-target 0.12 --reworded 0.5)
  prepare scenes-photos-seed1 scenes "${photos[@]}" ${STICKERS:+--stickers "$STICKERS"}
  sources+=', {path: scenes-photos-seed1, weight: 0.3}'
fi
.venv/bin/vlformer train --config configs/tiny.yaml --set "data.train=[$sources]" --output "$output/drawings" --resume "$@"
weights="$output/drawings/model.safetensors"

if [ -n "${PHOTOS:-}" ]; then
  prepare photos-whole photos --from "$PHOTOS" --trust-annotated
  prepare photos-seed1 photos --from "$PHOTOS" --trust-annotated --views 24000 --seed 1
  .venv/bin/vlformer train --config configs/photos.yaml --init "$weights" --output "$output/photos" --resume "$@"
  weights="$output/photos/model.safetensors"
  .venv/bin/vlformer eval --weights "$weights" --dataset photos-whole --split val --output "$output/photos/eval-photos"
fi
.venv/bin/vlformer eval --weights "$weights" --dataset scenes-seed1000 --split train --output "$output/eval-scenes"
