"""README and docs: their commands are valid, their Python runs, and every file and link that they name exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer
from shared import run_script

from vlformer_cli.app import app
from vlformer_cli.config import load_config

ROOT = Path(__file__).parents[1]
GENERATED, HISTORY = ROOT / "docs/commands.md", ROOT / "docs/log.md"
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("examples/**/README.md")),
    *(path for path in sorted(ROOT.glob("docs/*.md")) if path not in (GENERATED, HISTORY)),
]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
PLACES = ("benchmarks", "configs", "docs", "examples", "scripts", "tests", "vlformer_cli")
FILE = re.compile(rf"`((?:{'|'.join(PLACES)})/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)")
MOST_WORDS = 900


def blocks(path: Path) -> Iterator[list[str]]:
    """The indented code blocks of a page, without their indentation."""
    for is_code, lines in groupby(path.read_text().splitlines(), key=lambda line: line.startswith("    ")):
        if is_code:
            yield [line[4:] for line in lines]


def commands(path: Path, program: str) -> list[list[str]]:
    """The words after `program` of each line of code that calls it, without comments."""
    lines = (line for block in blocks(path) for line in block if line.startswith(f"{program} "))
    return [shlex.split(line, comments=True)[1:] for line in lines]


def parse(words: list[str]) -> dict[str, Any]:
    """The parameters of a command line; raises what Typer raises for one that is wrong, and runs nothing."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    with command.make_context(name, words) as context:
        return dict(context.params)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_its_commands_are_valid(page: Path) -> None:
    for words in commands(page, "vlformer"):
        given = parse(words)
        if words[0] == "train":
            load_config(ROOT / given["config"], given["overrides"] or ())
    for program in ("python", "bash", "sbatch"):
        for words in commands(page, program):
            assert (ROOT / words[0]).is_file(), words


def test_commands_are_found_and_wrong_ones_are_refused() -> None:
    assert sum(len(commands(page, "vlformer")) for page in PAGES) > 60
    assert parse(["data", "show", "--count", "3"])["count"] == 3
    for words in (["predict"], ["train", "--gpu", "2"], ["data", "show", "--count", "many"]):
        with pytest.raises(Exception, match=r"[Mm]issing|[Nn]o such option|valid integer"):
            parse(words)
    with pytest.raises(AssertionError, match="no command"):
        parse(["evaluate"])


@pytest.mark.parametrize("page", ["README.md", "docs/prediction.md"])
def test_its_python_runs(page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / page).read_text()
    (code,) = re.findall(r"^(?:    from vlformer_cli.*\n)(?:(?:    .*)?\n)*", text, re.MULTILINE)
    exec(re.sub(r"^    ", "", code, flags=re.MULTILINE), {})
    assert "(384, 384)" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text()
    for name in FILE.findall(text):
        assert (ROOT / name).exists(), name
    for target, anchor in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}, anchor


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


def test_the_file_tree_lists_every_file() -> None:
    tree = (ROOT / "docs/architecture.md").read_text().split("## File tree")[1].split("\n## ")[0]
    listed, folders = set(), list[str]()
    for line in tree.splitlines():
        names = re.match(r" {4}((?:  )*)((?:[\w.-]+/?(?:, )?)+)", line)
        if names is None:
            continue
        del folders[len(names[1]) // 2 :]
        for name in names[2].split(", "):
            listed.add("/".join([*(folder.rstrip("/") for folder in folders), name]))
        folders.append(names[2])
    written = {name for name in listed if not name.endswith("/")}
    package = {str(path.relative_to(ROOT)) for path in ROOT.glob("vlformer_cli/**/*.py") if path.stem != "__init__"}
    scripts = {str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/*.*")}
    assert written == package | scripts | {"vlformer_cli/__init__.py"}


def test_the_command_reference_is_up_to_date() -> None:
    done = run_script(ROOT / "scripts/command_reference.py", "--check")
    assert done.returncode == 0, done.stderr
