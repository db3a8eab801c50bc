"""What makes the tests fast: files that all test processes share, and scripts run without starting Python anew."""

from __future__ import annotations

import importlib.util
import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from filelock import FileLock

from vlformer_cli.data.scenes.generate import generate_scenes

T = TypeVar("T")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """What `make` returns for a folder of this name. Of several test processes (xdist), the first one calls it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    made = root / f"{name}.pickle"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            (root / name).mkdir()
            made.write_bytes(pickle.dumps(make(root / name)))
    result: T = pickle.loads(made.read_bytes())
    return result


def drawn(factory: pytest.TempPathFactory, name: str, **how: Any) -> Path:
    """The folder of a drawn data set; `how` as for `generate_scenes`."""

    def make(folder: Path) -> Path:
        generate_scenes(folder / name, **how)
        return folder / name

    return made_once(factory, f"drawn-{name}", make)


def run_script(script: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    """As `python SCRIPT WORDS`, in this process: importing torch and the models takes seconds."""
    out, err, code = StringIO(), StringIO(), 0
    with patch.object(sys, "argv", [str(script), *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=err)
    return subprocess.CompletedProcess([str(script)], code, out.getvalue(), err.getvalue())


def load_script(script: Path) -> ModuleType:
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
