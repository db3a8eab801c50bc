"""The scripts behind the README's numbers: what they compute, on inputs whose answer is known."""

from __future__ import annotations

import doctest
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, logit
from shared import load_script, run_script

from vlformer_cli.config import load_config
from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.store import PreparedSplit, file_sha256
from vlformer_cli.engine.checkpoint import load_weights
from vlformer_cli.engine.manifest import write_json

SCRIPTS = Path(__file__).parents[1] / "scripts"


def call(*words: object) -> str:
    """What a script, or Python with these words, prints."""
    if isinstance(words[0], Path):
        done = run_script(words[0], *words[1:])
    else:
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_command(path: Path, text: str) -> None:
    """A shell script that stands in for a command."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_benchmark_of_scenes_runs() -> None:
    said = call(SCRIPTS.parent / "benchmarks/scenes.py", "--size", 96, "--scenes", 2, "--repeats", 1)
    assert len(re.findall(r"(?:drawn|written), \w+ time: [\d.]+ scenes/s per core", said)) == 2


@pytest.mark.parametrize(
    ("there", "ensurepip", "asked"),
    [
        (False, "works", ["system -m venv --clear .venv"]),
        (True, "works", ["own -m ensurepip"]),  # another tool's environment, or half of one: its packages stay
        (True, "fails", ["own -m ensurepip", "system -m venv --clear .venv"]),
    ],
)
def test_an_environment_without_pip_is_mended_or_made_anew(
    tmp_path: Path, there: bool, ensurepip: str, asked: list[str]
) -> None:
    """With a python that only writes down what it is asked to do; once installed, nothing is asked any more."""
    answers = {
        "own": """case "$*" in
            *ensurepip) [ $ENSUREPIP = works ] && touch .venv/pip ;;
            *--version) [ -e .venv/pip ] ;;
        esac""",
        "system": 'case "$*" in *venv*) mkdir -p .venv/bin && cp own .venv/bin/python && touch .venv/pip ;; esac',
    }
    for name, text in answers.items():
        write_command(tmp_path / name, f'[ "$1" = -c ] || echo "{name} $*" >> asked\n{text}')
    if there:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        shutil.copy(tmp_path / "own", tmp_path / ".venv/bin/python")
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "setup.sh", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").touch()
    install = "own -m pip install --quiet --disable-pip-version-check -e .[dev]"
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", "source scripts/setup.sh dev"], capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHON": str(tmp_path / "system"), "ENSUREPIP": ensurepip},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    said = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in said if "--version" not in line] == [*asked, install]


@pytest.mark.parametrize("name", ["COCO", "STICKERS", "PHOTOS"])
def test_a_folder_that_is_not_there_is_said_before_hours_of_training(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", SCRIPTS / "train.sh"], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, name: "/no/such"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "train.sh: there is no folder /no/such\n"


def test_the_folder_of_the_run_is_said_once_for_training_and_evaluation(tmp_path: Path) -> None:
    for script, words in itertools.product(
        ("train.sh", "train.slurm"), (["--output", "x"], ["--output=x"], ["-o", "x"])
    ):
        done = subprocess.run(
            ["bash", SCRIPTS / script, *words], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (2, f"{script}: give the run's folder as OUTPUT=DIR\n")


@pytest.mark.parametrize(
    ("state", "code", "restarts", "again"),
    [
        ("stopped", 1, 0, True),  # by a signal
        ("stopped", 0, 19, True),  # by the time limit
        ("stopped", 1, 20, False),
        ("failed", 1, 0, False),
        ("finished", 0, 0, False),
        ("running", 137, 0, False),  # it was killed
        (None, 1, 0, False),  # it was refused before it began; the run's last job was stopped
    ],
)
def test_a_slurm_job_is_queued_again_where_it_can_go_on(
    tmp_path: Path, state: str | None, code: int, restarts: int, again: bool
) -> None:
    """By the state in the run's folder, whatever is said: that memory ran out, say, and to go on with --resume."""
    folder, said = tmp_path / "run", "vlformer: perhaps memory ran out; the run can go on with --resume"
    for name in {"old", state} - {None}:
        write_json(tmp_path / f"{name}.json", {"state": "stopped" if name == "old" else name, "step": 5})
    folder.mkdir()
    shutil.copy(tmp_path / "old.json", folder / "state.json")
    leave = f"cp {tmp_path}/{state}.json {folder}/state.json" if state else "true"
    commands = {"srun": f"echo {said!r} >&2; {leave}; exit {code}", "scontrol": f'echo "$@" >> {tmp_path}/asked'}
    for name, text in commands.items():
        write_command(tmp_path / name, text)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_RESTART_COUNT": str(restarts),
        "OUTPUT": str(folder),
    }
    done = subprocess.run(
        ["bash", SCRIPTS / "train.slurm"], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == code
    assert said in done.stdout  # the job's log
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked == ("requeue 77\n" if again else "")


def test_expressions_lose_their_words_of_place() -> None:
    failed, attempted = doctest.testmod(load_script(SCRIPTS / "controls.py"))
    assert (failed, attempted > 0) == (0, True)


def test_intervals_and_the_control_on_known_answers(small_scenes: Path, tmp_path: Path) -> None:
    """Every answer is right, so that the mean is sure and the control sees what others about the picture overlap."""
    split, overlaps, rows = PreparedSplit(small_scenes, "train"), [], 0
    with (tmp_path / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for image in range(split.num_images):
            samples = split.image_samples(image)
            for n, sample in enumerate(samples):
                row = {"image": sample.ref.image, "ref_id": sample.ref.ref_id, "kind": sample.kind, "iou": 1.0}
                file.write(json.dumps({**row, "segmentation": sample.ref.segmentation}) + "\n")
                following = [*samples[n + 1 :], *samples[:n]]
                other = next((one for one in following if one.ref.ref_id != sample.ref.ref_id), None)
                if other is not None:
                    mine, theirs = (decode_rle(one.ref.segmentation) for one in (sample, other))
                    overlaps.append((mine & theirs).sum() / (mine | theirs).sum())
                rows += 1
    said = call(SCRIPTS / "intervals.py", tmp_path / "predictions.jsonl", small_scenes, "train")
    assert f"| all | {rows} | 100.0 (100.0 to 100.0) | 100.0 |" in said
    sizes = re.findall(r"% of the picture \| (\d+) \|", said)
    objects = re.findall(r"objects in the picture \| (\d+) \|", said)
    assert sum(map(int, sizes)) == sum(map(int, objects)) == rows
    assert f"another expression about the picture: mIoU {100 * np.mean(overlaps):.1f}" in said


def test_the_interval_of_a_mean_is_that_of_independent_pictures() -> None:
    """Two samples of a picture that always agree count as one: standard error of 400 coins, 2.5 %."""
    picture = np.repeat(np.arange(400), 2)
    said = load_script(SCRIPTS / "intervals.py").interval((picture % 2).astype(float), picture)
    mean, low, high = map(float, re.findall(r"[\d.]+", said))
    assert mean == 50
    assert low == pytest.approx(50 - 1.96 * 2.5, abs=0.5)
    assert high == pytest.approx(50 + 1.96 * 2.5, abs=0.5)


def test_expressions_about_photographs_can_mean_one_thing_alone() -> None:
    code = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
from photographs import expressions
def thing(i, name, x, area=900, crowd=0):
    return {{"id": i, "name": name, "bbox": [x, 0, 10, 10], "area": area, "iscrowd": crowd}}
things = [thing(1, "dog", 50), thing(2, "cup", 70), thing(3, "cup", 10), thing(4, "cat", 10), thing(5, "cat", 20),
          thing(6, "bus", 0), thing(7, "bus", 40), thing(8, "bus", 80), thing(9, "key", 5, area=99),
          thing(10, "person", 0, crowd=1)]
print(list(expressions({{"width": 100, "height": 100}}, things)))
"""
    assert eval(call("-c", code)) == [
        (1, "the dog", "category"),  # the only one
        (3, "the cup on the left", "place"),
        (2, "the cup on the right", "place"),  # cats are too close, buses too many, the key too small
    ]


def test_calibrating_finds_the_temperature_and_the_threshold_and_is_stable(small_weights: Path, tmp_path: Path) -> None:
    weights, predictions = tmp_path / "w.safetensors", tmp_path / "predictions.jsonl"
    weights.write_bytes(small_weights.read_bytes())
    of = {"path": "w.safetensors", "sha256": file_sha256(weights)}  # also after the first calibration changed the file

    def write(temperature: float, shift: float) -> None:
        """Answers whose scores are too sure by 2.5, after what the model has already."""
        rng = np.random.default_rng(0)
        (tmp_path / "metrics.json").write_text(
            json.dumps({"min_score": 0, "temperature": temperature, "score_shift": shift, "weights": of})
        )
        with predictions.open("w", encoding="utf-8") as file:
            for number in range(6_000):
                means_nothing = number % 4 == 0
                true = float(rng.beta(1, 6) if means_nothing else rng.beta(5, 1))
                right = not means_nothing and rng.random() < true
                score = float(expit(logit(true) * 2.5 / temperature + shift))
                row = {"image": f"{number}.jpg", "truth_area": 0 if means_nothing else 9}
                file.write(json.dumps({**row, "iou": 0.8 if right else 0.1, "score": score}) + "\n")

    write(1.0, 0.0)
    said = call(SCRIPTS / "calibrate.py", weights, predictions, "--diagram", tmp_path / "diagram.png", "--dry-run")
    assert load_weights(weights).config.temperature == 1.0  # nothing was written
    assert "written" not in said
    assert cv2.imread(str(tmp_path / "diagram.png")) is not None
    call(SCRIPTS / "calibrate.py", weights, predictions)
    first = load_weights(weights).config
    before, after = map(float, re.findall(r"ECE ([\d.]+) %.*, ([\d.]+) %", said)[0])
    assert after < 5 < before
    assert 0.01 < first.min_score < 0.8
    call(SCRIPTS / "calibrate.py", weights, predictions)
    assert load_weights(weights).config == first  # the same answers say the same
    write(first.temperature, first.score_shift)
    call(SCRIPTS / "calibrate.py", weights, predictions)
    again = load_weights(weights).config
    assert again.temperature == pytest.approx(first.temperature, rel=0.02)
    assert again.score_shift == pytest.approx(first.score_shift, abs=0.02)
    of["sha256"] = "0" * 64
    write(1.0, 0.0)
    done = run_script(SCRIPTS / "calibrate.py", weights, predictions)
    assert done.returncode == 1
    assert f"these are answers of w.safetensors (SHA-256 {'0' * 64}) and not of {weights}" in done.stderr


def test_stickers_are_made_of_emoji_and_icons(tmp_path: Path) -> None:
    wanted = call("-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import stickers; print(stickers.EMOJI)")
    codes = [code for codes in eval(wanted).values() for code in codes.split()]
    for folder in ("emoji", "others"):
        (tmp_path / folder).mkdir()
    half_red = np.zeros((8, 8, 4), dtype=np.uint8)
    half_red[:, 4:] = (255, 0, 0, 255)
    for code in codes:
        (tmp_path / "emoji" / f"{code}.png").write_bytes(b"")
        Image.fromarray(half_red).save(tmp_path / "others" / f"{code}.webp", lossless=True)
    said = call(SCRIPTS / "stickers.py", tmp_path / "out", "--emoji", tmp_path / "emoji", tmp_path / "others")
    assert f"{2 * len(codes)} emoji, 0 icons" in said
    made = list((tmp_path / "out").glob("*/*.png"))
    assert len(made) == 2 * len(codes)
    drawn = [np.asarray(Image.open(path)) for path in made if path.stem.endswith("-1")]
    assert len(drawn) == len(codes)
    assert all((picture[10, 10, 3], *picture[10, -10]) == (0, 255, 0, 0, 255) for picture in drawn)
    (tmp_path / "others" / f"{codes[-1]}.webp").unlink()
    failed = run_script(SCRIPTS / "stickers.py", tmp_path / "new", "--emoji", tmp_path / "others")
    assert failed.returncode == 1
    assert f"no {tmp_path / 'others' / codes[-1]}.png, .webp or .svg" in failed.stderr


def test_icons_are_drawn_with_the_glyphs_that_the_style_sheet_names(tmp_path: Path) -> None:
    """With a font that is there anyway, and its letters in place of icons."""
    wanted = call("-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import stickers; print(stickers.ICONS)")
    names = [name for names in eval(wanted).values() for name in names.split()]
    (tmp_path / "css").mkdir()
    (tmp_path / "fonts").mkdir()
    rules = "".join(
        f'.mdi-{name}::before {{\n  content: "\\{ord("I" if name == "key" else "M"):X}";\n}}\n' for name in names
    )
    (tmp_path / "css/materialdesignicons.css").write_text(rules, encoding="utf-8")
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    (tmp_path / "fonts/materialdesignicons-webfont.ttf").write_bytes(font.read_bytes())
    call(SCRIPTS / "stickers.py", tmp_path / "out", "--icons", tmp_path)
    drawn = {
        path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., 3] > 127 for path in (tmp_path / "out").glob("*/*")
    }
    assert len(drawn) == len(names)
    widths = {name: int(np.ptp(np.flatnonzero(solid.any(0)))) for name, solid in drawn.items()}
    assert widths["mdi-key"] < widths["mdi-kite"] / 2  # an I beside an M


def test_the_slurm_example_has_a_picture_for_each_task() -> None:
    script = (SCRIPTS / "train.slurm").read_text()
    nodes, tasks = (int(re.findall(rf"#SBATCH --{name}=(\d+)", script)[0]) for name in ("nodes", "ntasks-per-node"))
    (config,) = re.findall(r"CONFIG:-([^}]+)\}", script)
    data = load_config(SCRIPTS.parent / config).data
    assert data is not None
    assert data.images_per_step >= nodes * tasks
