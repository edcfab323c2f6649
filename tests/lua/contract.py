"""The headers of the scripts as data: keys, arguments, replies and moves, as the tests and docs/lua.md need them.

``python -m tests.lua.contract`` writes the part of docs/lua.md that is made of the headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

#: Where docs/lua.md is, and how the parts of it that are written here begin and end.
DOCS = Path(__file__).parents[2] / "docs" / "lua.md"
BEGIN, END = "<!-- {}: python -m tests.lua.contract -->", "<!-- end of the {} -->"

#: In what order the docs tell of the verbs: what every client needs, what some do, what is Celery's side's alone.
ORDER = (
    ("put", "delete", "move", "reserve", "ack", "release", "extend", "requeue", "pull", "dispatch", "version"),
    ("tick", "page", "pause", "resume", "purge", "revive", "discard", "dispatch_zset"),
    ("restore", "adopt", "drain", "claim", "forget"),
)

#: Keys that each topic has, and those that are not ours.
OF_TOPIC = {"schedule", "jobs", "ties", "steps", "firsts", "graces"} | {"attempts", "leases", "tickets", "reserved"}
OF_TOPIC |= {"dead", "letters", "causes"}
OTHERS = {"ready", "delayed", "unacked", "delivered"}

_ENTRY = re.compile(r"-- (?:(?:KEYS|ARGV)\[(\d+)\] {1,2}| {9})(\w+) +(\S+)(?: +(.*))?$")


@dataclass(frozen=True)
class Entry:
    """One key or one argument.

    Attributes:
        number: its number; None for what comes as often as its group.
        name, text: what the header calls it, and says of it.
        kind: of a key its type in Redis, of an argument what it may be; with "?" at the end it may also be empty.
    """

    number: int | None
    name: str
    kind: str
    text: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The words of which it is one."""
        listed = re.match(r"'\w+'(?: \| '\w+')*", self.text)
        return tuple(re.findall(r"'(\w+)'", listed[0])) if listed else ()


@dataclass(frozen=True)
class Group:
    """Keys or arguments that come together.

    Attributes:
        phrase: what the header says of it; "" for those that are always there.
    """

    phrase: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Reply:
    """One reply: its shape, or the word that an error begins with; and what the header says of it."""

    shape: str
    text: str

    @property
    def error(self) -> str | None:
        """The word of an error."""
        return self.shape.split()[1] if self.shape.startswith("error ") else None


@dataclass(frozen=True)
class Header:
    """What the header of one script says.

    Attributes:
        moves: pairs of states.
    """

    verb: str
    text: str
    keys: tuple[Group, ...]
    args: tuple[Group, ...]
    replies: tuple[Reply, ...]
    moves: tuple[tuple[str, str], ...]

    @property
    def changes_nothing(self) -> bool:
        """Whether it says so."""
        return "Changes nothing." in self.text.replace("\n", " ")


SOURCES = {
    file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
    for file in files("celery_delayq.lua").iterdir()
    if file.name.endswith(".lua")
}


def header_lines(source: str) -> list[str]:
    """The comment block at the top."""
    lines = source.splitlines()
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("--"))]


@cache
def header(verb: str) -> Header:
    """What the header of that verb says."""
    return parse(verb, SOURCES[verb])


def parse(verb: str, source: str) -> Header:
    """Read the header of *source*."""
    lines = header_lines(source)
    parts: list[list[str]] = [[]]
    for line in lines:
        if line == "--":
            parts.append([])
        else:
            parts[-1].append(line)
    return Header(
        verb,
        "\n".join(line[3:] for line in lines).strip(),
        tuple(_groups(next(part for part in parts if part and part[0].startswith("-- KEYS[1]")))),
        tuple(_groups(next(part for part in parts if part and part[0].startswith("-- ARGV[1]")))),
        tuple(_replies(next(part for part in parts if part and part[0].startswith("-- Returns")))),
        tuple(_moves(lines)),
    )


def _groups(lines: list[str]) -> Iterator[Group]:
    phrase, entries = "", list[Entry]()
    for line in lines:
        if line.startswith(("-- then", "-- or,")):
            yield Group(phrase, tuple(entries))
            phrase, entries = line[3:].rstrip(":"), []
        elif found := _ENTRY.match(line):
            number, name, kind, text = found.groups()
            entries.append(Entry(int(number) if number else None, name, kind, text or ""))
        elif re.match(r"-- {12}", line):
            last = entries[-1]
            entries[-1] = Entry(last.number, last.name, last.kind, f"{last.text} {line[2:].strip()}")
        else:
            raise ValueError(f"neither a group nor an entry: {line}")
    yield Group(phrase, tuple(entries))


def _replies(lines: list[str]) -> Iterator[Reply]:
    shape, text = "", list[str]()
    for line in lines:
        if found := re.match(r"-- (?:Returns|       )  (\S.*?)(?: {2,}(\S.*))?$", line):
            if shape:
                yield Reply(shape, " ".join(text))
            shape, text = found[1], [found[2]] if found[2] else []
        else:
            text.append(line[2:].strip())
    yield Reply(shape, " ".join(text))


def _moves(lines: list[str]) -> Iterator[tuple[str, str]]:
    inside = False
    for line in lines:
        inside = line.startswith("-- Moves") or (inside and line.startswith("--      "))
        if inside:
            for before, after, other in re.findall(r"(\w+|\(nothing\)) -> (\w+|\(nothing\))(?: or (\w+))?", line):
                yield before, after
                if other:
                    yield before, other


def _keys() -> list[str]:
    """A table of all keys."""
    texts: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    users: dict[str, list[str]] = {}
    for verb in (verb for verbs in ORDER for verb in verbs):
        for entry in (entry for group in header(verb).keys for entry in group.entries):
            kinds[entry.name] = entry.kind
            texts.setdefault(entry.name, []).append(entry.text.removesuffix(" (opaque here)"))
            users.setdefault(entry.name, []).append(verb)
    rows = ["| key | type | what | scripts that take it |", "|---|---|---|---|"]
    for name in (name for name in kinds if name not in OTHERS):
        ending = f"{name}:<topic>" if name in OF_TOPIC else f"{name}:<name>" if name == "journal" else name
        text = max(texts[name], key=len)
        if name == "totals":  # each script tells what it counts
            counted = sorted({word for text in texts[name] for word in re.findall(r"'\w+:'", text)})
            text = f"{', '.join(counted)} and topic -> how many jobs"
        rows.append(f"| `{ending}` | {kinds[name]} | {text} | {', '.join(dict.fromkeys(users[name]))} |")
    return rows


def _verbs() -> list[str]:
    """A table of all verbs."""
    rows = ["| verb | what it does | from -> to | cost |", "|---|---|---|---|"]
    for verbs in ORDER:
        for verb in verbs:
            text = header(verb).text
            purpose = re.sub(r"\s+", " ", text.partition("\n\n")[0]).partition(": ")[2]
            cost = re.sub(r"\s+", " ", re.search(r"^Cost +(.*?)(?:\n\n|\Z)", text, re.M | re.S)[1])  # type: ignore[index]
            moves = "<br>".join(f"{before} -> {after}" for before, after in dict.fromkeys(header(verb).moves))
            rows.append(f"| [`{verb}`](#{verb}) | {purpose} | {moves} | {cost} |")
    return rows


def _headers() -> list[str]:
    """All headers."""
    said = []
    for verbs in ORDER:
        for verb in verbs:
            said += [f"### {verb}", "", "```text", header(verb).text, "```", ""]
    return said[:-1]


def written(text: str) -> str:
    """The text of docs/lua.md as it is to be."""
    for name, make in (("keys", _keys), ("verbs", _verbs), ("headers", _headers)):
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"no {begin} and {end}")
        text = "\n".join([before + begin, "", *make(), "", end + after])
    return text


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
