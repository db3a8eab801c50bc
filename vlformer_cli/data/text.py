"""Expressions as plain words: no quotation marks, no brackets, no invisible characters, no punctuation at the end.

RefCOCO's cleaned sentences have none of these, so a model has learned nothing about them: '"red cup."' has to read
as "red cup". Ordinary expressions, apostrophes inside words included, pass unchanged.
"""

from __future__ import annotations

import html
import re

APOSTROPHES = str.maketrans(dict.fromkeys("‘’‚‛′`´ʼ", "'"))
"""Marks that people type for an apostrophe or a single quotation mark."""

AROUND_WORDS = str.maketrans(dict.fromkeys('"“”„‟″«»‹›()[]{}<>（）［］｛｝＜＞「」『』【】〈〉《》\u200b', " "))
"""Double quotation marks, brackets, and the space of no width. Without < and > no text spells the tokenizer's own
marks, such as `<end_of_text>`."""

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u180e\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\u3164\ufeff\uffa0]"
)
"""Soft hyphens, direction marks, joiners of words, byte order marks, and the empty letters of Hangul."""

SPECIAL = re.compile(r"<\|(\w+)\|>")  # the form of such marks in other tokenizers: <|endoftext|>
QUOTED = re.compile(r"(?<!\w)'(?=\S)(.+?)(?<=\S)'(?!\w)")  # 'red', but not the apostrophe of "man's" or "dogs' bowl"
ALONE = re.compile(r"'{2,}|^\s*'+|(?<!s)'+\s*$")  # what is left of quotation marks; "the dogs'" keeps its apostrophe
AT_THE_END = re.compile(r"[\s.,;:!?…。、]+$")


def plain_words(text: str) -> str:
    """The words of an expression; the text itself where no letter or digit is left.

    >>> plain_words("the 'red' ball"), plain_words("[red ball]."), plain_words("the man's dogs' bowl")
    ('the red ball', 'red ball', "the man's dogs' bowl")
    >>> plain_words("cup<end_of_text>"), plain_words("...")
    ('cup end_of_text', '...')
    """
    words = SPECIAL.sub(r" \1 ", INVISIBLE.sub("", text))
    words = words.translate(AROUND_WORDS).translate(APOSTROPHES)
    words = ALONE.sub(" ", QUOTED.sub(r"\1", words))
    words = " ".join(AT_THE_END.sub("", words).split())
    return words if any(map(str.isalnum, words)) else text


def has_words(text: str) -> bool:
    """Whether a letter or a digit is left for the model to read.

    >>> has_words("12"), has_words(" ... "), has_words("\u200b"), has_words("&nbsp;")
    (True, False, False, False)
    """
    return any(map(str.isalnum, INVISIBLE.sub("", html.unescape(html.unescape(text)))))
