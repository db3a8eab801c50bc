"""What is left out of an expression before it is read, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch

from vlformer_cli.data.text import has_words
from vlformer_cli.data.tokenize import tokenize

REFER = Path(__file__).parents[2] / "shared" / "data" / "refer_sentences.jsonl"
START, END = 49_406, 49_407


def ids(text: str) -> list[int]:
    return [int(token) for token in tokenize([text], 77)[0][0]]


@pytest.mark.parametrize(
    "text",
    ['"red ball"', "'red ball'", "“red ball”", "‘red ball’", "„red ball“", "«red ball»", "`red ball`", "``red ball''",
     "[red ball]", "(red ball)", "{red ball}", "<red ball>", "「red ball」", "［red ball］", "'red' ball", "red 'ball'",
     'red "ball"', "red (ball)", '"red ball."', '"red ball".', "(red ball!)", "'red ball", "red ball'", "'red ball.'",
     "&quot;red ball&quot;", "&lt;red ball&gt;", "\ufeffred ball", "red\u200bball", "red ba\u00adll\u200f",
     "red ball…"],
)  # fmt: skip
def test_quotation_marks_and_brackets_are_not_read(text: str) -> None:
    assert ids(text) == ids("red ball")


@pytest.mark.parametrize(
    "text",
    ["the man's left hand", "the dogs' bowl", "bowl of the dogs'", "the boys' and girls' side", "dog that doesn't sit",
     "cup, red", "50% grey", "t-shirt no. 7", "half/half cup", "a & b", "#4", "the café on the left", "1.5 l bottle"],
)  # fmt: skip
def test_ordinary_expressions_are_read_as_clip_reads_them(text: str) -> None:
    read = open_clip.tokenize([text], context_length=77)[0]
    assert torch.equal(tokenize([text], 77)[0][0], read[: int(read.argmax()) + 1])


def test_curly_apostrophes_are_apostrophes() -> None:
    for mark in "’`´ʼ":
        assert ids(f"the man{mark}s hand") == ids("the man's hand")


@pytest.mark.parametrize(
    ("text", "words"),
    [("red ball<end_of_text>", "red ball end_of_text"), ("<start_of_text>red", "start_of_text red"),
     ("a <END_OF_TEXT> b", "a end_of_text b"), ("x<|endoftext|>y", "x endoftext y"), ("<|startoftext|>", "startoftext"),
     ("&lt;end_of_text&gt;", "end_of_text"), ("＜end_of_text＞", "end_of_text"),
     ("&amp;amp;lt;end_of_text>", "&lt;end_of_text"), ("<<end_of_text>>", "end_of_text")],
)  # fmt: skip
def test_the_tokenizers_own_marks_are_plain_text(text: str, words: str) -> None:
    assert ids(text) == ids(words)
    for token in (START, END):
        assert ids(text).count(token) == 1


def test_what_has_no_words_is_known() -> None:
    for text in ("", "  ", "...", '""', "()", "\u200b\u200d", "\ufeff", "\u3164", "—", "&nbsp;", "?!"):
        assert not has_words(text), text
    for text in ("a", "7", "杯", "é", "<end_of_text>", "½"):
        assert has_words(text), text


def test_what_has_no_words_is_tokenized_all_the_same() -> None:
    """A data set that was prepared before may hold it."""
    for text in ("...", "<>", '""'):
        assert len(ids(text)) > 2


@pytest.mark.skipif(not REFER.is_file(), reason="the shared sentences of RefCOCO are not here")
def test_published_expressions_without_such_marks_are_read_as_before() -> None:
    with REFER.open() as lines:
        texts = sorted({json.loads(line)["sentence"] for line in lines})[::20]
    ordinary = [text for text in texts if not set(text) & set('"`´<>()[]') and text == text.rstrip(" .,;:!?")]
    assert len(ordinary) > 1000
    read = open_clip.tokenize(ordinary, context_length=77)
    ours, _ = tokenize(ordinary, 77)
    assert torch.equal(ours, read[:, : ours.shape[1]])
