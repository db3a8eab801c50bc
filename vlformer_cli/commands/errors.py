"""From exceptions to one clear line on stderr and an exit code."""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Callable

from vlformer_cli.engine.attempt import attempt_folder
from vlformer_cli.types import UsageError, VLFormerError, one_line

DEBUG_VARIABLE = "VLFORMER_DEBUG"
INTERRUPTED = 130  # what Typer makes of Ctrl-C inside a command
HEADLESS = "pip uninstall opencv-python, then pip install opencv-python-headless"
LIBRARY_PACKAGES = {"libGL": "libgl1", "libgthread": "libglib2.0-0", "libglib": "libglib2.0-0", "libxcb": "libxcb1"}
"""Libraries that opencv-python needs and bare servers lack -> the Debian package that holds each."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "failed to allocate memory")
LESS_MEMORY = (
    "in training, set data.images_per_step lower, train.accumulate higher or train.checkpoint_activations=true; "
    "else --device cpu, or smaller weights"
)


def show_tracebacks(wanted: bool) -> None:
    """`--debug`: an error's traceback is printed too, in this process and those that it starts."""
    if wanted:
        os.environ[DEBUG_VARIABLE] = "1"


def run(app: Callable[[], object]) -> int:
    """Runs the app and returns its exit code; Typer has answered wrong usage with 2 by itself."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            return fail("interrupted")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return fail("interrupted")
    except BrokenPipeError:
        sys.stdout = None  # so that nothing is flushed into the closed pipe at exit
        return 1
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        message = _message(error)
        code = 2 if isinstance(error, UsageError) else 1
        return fail(message, code) if _is_first_to_say(message) else code
    return 0


def _is_first_to_say(message: str) -> bool:
    """False in a process of a torchrun job for what another one of this machine has said already."""
    attempt = attempt_folder(os.environ)
    if attempt is None:
        return True
    try:
        (attempt / f"said-{hashlib.sha256(message.encode()).hexdigest()}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def fail(message: str, code: int = 1) -> int:
    """Prints the message, one line but for the tables that an error of ours may hold, and returns the exit code."""
    print(f"vlformer: {message}", file=sys.stderr)
    return code


def _message(error: Exception) -> str:
    if isinstance(error, VLFormerError):
        return str(error)
    text = one_line(error)
    if isinstance(error, ImportError):
        for library, package in LIBRARY_PACKAGES.items():
            if library in text:
                return f"opencv-python needs a system library ({text}): apt-get install {package}; or {HEADLESS}"
        return f"a package is missing or broken ({text}): pip install vlformer again"
    if isinstance(error, OSError):
        return text
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in OUT_OF_MEMORY):
        return f"memory ran out ({text}): {LESS_MEMORY}"
    return f"{type(error).__name__}: {text} (this is a bug; run it again with `vlformer --debug ...` for the traceback)"
