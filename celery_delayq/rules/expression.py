"""Regular expressions as the rules' files have them: in the syntax of Rust's ``regex`` crate.

Most of it means the same to Python. What does not is refused, with a word on what to write instead; only ``$``, which
in Python also matches before a last line feed, is made to mean what it means in Rust. What Python knows and Rust does
not (look-around, references back) is let pass.
"""

from __future__ import annotations

import re

#: What differs, where it stands outside a class; what to write instead.
_OUTSIDE = [
    (re.compile(r"\(\?<(?![=!])([^>]*)>"), r"(?<{0}>…) is written (?P<{0}>…) here"),
    (re.compile(r"\\z"), r"\z is written \Z here"),
    (re.compile(r"\\b\{[^}]*\}?|\\[<>]"), r"{all} is written \b here"),
    (re.compile(r"(?:[*+?]|\{\d*,?\d*\})\+"), r"{all} is possessive here: write (?:…)+ around what is repeated"),
    (re.compile(r"\{(?=[\d,\s]*\s)\s*\d+\s*(?:,\s*\d*\s*)?\}"), "{all} is a text here: write it without spaces"),
    (re.compile(r"\(\?[a-zA-Z]*[UR][a-zA-Z-]*[:)]"), "the flags U and R are unknown here: write *? for a lazy repeat"),
    (re.compile(r"\(\?[a-zA-Z]*-[a-zA-Z]*u[a-zA-Z]*[:)]"), "(?-u) is unknown here: write [0-9A-Za-z_] for \\w"),
    (re.compile(r"\(\?[a-zA-Z]*x[a-zA-Z-]*[:)]"), "the flag x differs here: write no spaces and no comments"),
    (re.compile(r"(?<=[\s\S])\(\?[a-zA-Z]+\)"), "flags within an expression hold for a group only here: write (?i:…)"),
    (re.compile(r"\(\?[a-zA-Z]*-[a-zA-Z]+\)"), "flags are taken back for a group only here: write (?-i:…)"),
]

#: The same, inside a class.
_INSIDE = [
    (re.compile(r"\[:\^?\w+:\]"), "{all} is unknown here: write the characters, as [A-Za-z]"),
    (re.compile(r"&&|--|~~"), "{all} in a class is unknown here: write the characters that are left"),
    (re.compile(r"\|\|"), "|| in a class is to mean something else in Python one day: write | once"),
    (re.compile(r"\["), "a class in a class is unknown here: write \\[ for the character"),
]

#: The same, anywhere.
_ANYWHERE = [
    (re.compile(r"\\[pP](?:\{[^}]*\}|\w)"), "{all} is unknown here: write the characters, as [A-Za-z], or \\w"),
    (re.compile(r"(\\[xuU]\{([0-9A-Fa-f]+)\})"), r"{0} is written \U{1:0>8} here"),
]

_FLAGS = re.compile(r"\(\?([a-zA-Z]*)-?([a-zA-Z]*)([:)])")


def compile_expression(text: str) -> re.Pattern[str]:
    r"""The expression as Rust would read it; it is looked for anywhere in an event, unless it has ``^`` and ``$``.

    Raises:
        ValueError: it is none, or means something else in Python; the message says what to write instead.
    """
    try:
        return re.compile(_translated(text))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression: {error}") from None


def _translated(text: str) -> str:
    r"""*text* with ``\Z`` for each ``$`` that does not stand for the ends of lines."""
    translated: list[str] = []
    multiline = [False]  # in the whole, and in each group that is open
    position, in_class = 0, False
    while position < len(text):
        _refuse_what_differs(text, position, in_class)
        length = _length(text, position, in_class)
        part = text[position : position + length]
        if in_class:
            in_class = part != "]"
        elif part.startswith("["):
            in_class = True
        elif part.startswith("("):
            flags = _FLAGS.fullmatch(part)
            here = multiline[-1] if flags is None or "m" not in flags[1] + flags[2] else "m" in flags[1]
            if part.endswith(")"):
                multiline[-1] = here
            else:
                multiline.append(here)
        elif part == ")":
            multiline[1:] = multiline[1:-1]
        elif part == "$" and not multiline[-1]:
            part = r"\Z"
        translated.append(part)
        position += length
    return "".join(translated)


def _refuse_what_differs(text: str, position: int, in_class: bool) -> None:
    for known, instead in [*_ANYWHERE, *(_INSIDE if in_class else _OUTSIDE)]:
        if found := known.match(text, position):
            raise ValueError(instead.format(*found.groups(), all=found.group()) + f" (at character {position + 1})")


def _length(text: str, position: int, in_class: bool) -> int:
    """How long what stands there is: an escape, flags, what opens a class, or a character."""
    if text[position] == "\\":
        return 2
    if in_class:
        return 1
    if text[position] == "[":
        opening = 2 if text.startswith("[^", position) else 1
        return opening + text.startswith("]", position + opening)  # there a bracket is a character
    flags = _FLAGS.match(text, position)
    return len(flags.group()) if flags else 1
