"""From exceptions to one clear line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from vlformer_cli.types import VLFormerError

DEBUG_VARIABLE = "VLFORMER_DEBUG"
LIBRARY_REMEDIES = {
    "libGL": "install it (Debian: apt-get install libgl1), or: pip install --force-reinstall --no-deps opencv-python-headless",
    "libgthread": "install it (Debian: apt-get install libglib2.0-0), or: pip install --force-reinstall --no-deps opencv-python-headless",
}


def show_tracebacks(wanted: bool) -> None:
    """`--debug`: an error's traceback is printed too, in this process and those that it starts."""
    if wanted:
        os.environ[DEBUG_VARIABLE] = "1"


def run(app: Callable[[], object]) -> int:
    """Runs the app and returns its exit code; Typer has answered wrong usage with 2 by itself."""
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return fail("interrupted")
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # so that nothing is flushed into the closed pipe at exit
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: everything a user sees goes through here
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        return fail(_message(error))
    return 0


def fail(message: str) -> int:
    """Prints one line and returns exit code 1."""
    print(f"vlformer: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _message(error: Exception) -> str:
    if isinstance(error, VLFormerError):
        return str(error)
    text = str(error)
    if isinstance(error, ImportError):
        for library, remedy in LIBRARY_REMEDIES.items():
            if library in text:
                return f"a system library that opencv-python needs is missing ({text}): {remedy}"
        return f"a package is missing or broken ({text}): pip install vlformer again"
    if isinstance(error, OSError):
        return text
    return f"{type(error).__name__}: {text} (this is a bug; run it again with `vlformer --debug ...` for the traceback)"
