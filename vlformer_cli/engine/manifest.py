"""What a number or a weights file came from: command, config, code, packages, data. Written beside every result."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from vlformer_cli import __version__
from vlformer_cli.config import Config
from vlformer_cli.data.build import open_split
from vlformer_cli.data.store import read_manifest
from vlformer_cli.engine.checkpoint import write_atomically
from vlformer_cli.engine.distributed import World
from vlformer_cli.engine.precision import is_native
from vlformer_cli.engine.weights_table import Initialisation
from vlformer_cli.tree import to_tree
from vlformer_cli.types import SettledError

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "numpy",
    "opencv-python",
    "pillow",
    "pycocotools",
    "safetensors",
)


def run_manifest(
    config: Config, world: World, initialisation: Initialisation | None, *, asked_precision: str
) -> dict[str, Any]:
    """Everything that a training run depends on. `initialisation` is None where it is that of an earlier process.

    `asked_precision`: what `train.precision` was before `auto` was resolved.
    """
    used = config.train.precision
    sources = [] if config.data is None else [*config.data.train, *([config.data.val] if config.data.val else [])]
    return {
        **environment(),
        "config": to_tree(config),
        "seed": config.train.seed,
        "data": [_fingerprint(open_split(source).directory) for source in sources],
        "initialisation": None if initialisation is None else initialisation.to_json(),
        "processes": world.size,
        "precision": {
            "asked": asked_precision,
            "used": used,
            "native": is_native(used, world.device(config.train.device)),
        },
    }


def resumed_manifest(old: dict[str, Any], new: dict[str, Any], step: int, folder: Path) -> dict[str, Any]:
    """That of the run's beginning with what went on after `step` added; raises SettledError where the data changed."""
    changed = [
        after["name"]
        for before, after in zip(old["data"], new["data"], strict=True)
        if before["splits"] != after["splits"]
    ]
    if changed:
        raise SettledError(
            f"the data set {changed[0]} changed since the run in {folder} began: restore it, or change --output"
        )
    added = {name: new[name] for name in ("command", "time", "git", "packages", "machine", "processes", "precision")}
    return {**old, "config": new["config"], "resumed": [*old.get("resumed", []), {"after_step": step, **added}]}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """An indented JSON file, written atomically."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def environment() -> dict[str, Any]:
    """The command line, the code and the machine."""
    return {
        "vlformer_version": __version__,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": git_revision(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads {torch.get_num_threads()}",
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of what numbers depend on."""
    whole = [dist for dist in importlib.metadata.distributions() if dist.metadata["Name"]]  # others are half removed
    installed = {dist.metadata["Name"].lower(): dist.version for dist in whole}
    names = (*PACKAGES, "opencv-python-headless", "onnx", "onnxruntime", "openvino")
    return {name: installed[name.lower()] for name in names if name.lower() in installed}


def git_revision() -> dict[str, Any] | None:
    """Revision and dirty flag of the checkout that this package runs from; None where it is not one."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # or the checkout is one in which it is installed
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _fingerprint(directory: Path) -> dict[str, Any]:
    manifest = read_manifest(directory)
    name = f"{manifest['dataset']}-{manifest['split_by']}"
    return {"name": name, "splits": manifest["splits"]}
