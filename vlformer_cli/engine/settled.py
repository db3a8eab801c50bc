"""Errors after which torchrun need not start a job again, as it would end the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vlformer_cli.engine.attempt import attempt_folder
from vlformer_cli.engine.distributed import World
from vlformer_cli.types import SettledError


@contextmanager
def said_again(world: World, environment: Mapping[str, str]) -> Iterator[None]:
    """A SettledError raised inside is raised again, by all processes and at once, if torchrun starts them anew.

    It knows no exit code for "do not", and what was refused must not become a resumed run because of a restart.
    """
    note = _note(environment)
    said = [text for text in world.gather(note.read_text() if note and note.exists() else "") if text]
    if said:
        raise SettledError(said[0])
    try:
        yield
    except SettledError as error:
        if note:
            note.write_text(str(error))
        raise


def _note(environment: Mapping[str, str]) -> Path | None:
    """In the job's own folder; None where there is no such job."""
    folder = attempt_folder(environment)
    return folder.parent / "settled.txt" if folder else None
