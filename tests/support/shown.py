"""What Markdown pages show: links, headings, and the commands of their blocks as a shell takes them apart."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^()\s]+)\)")
SHELL = {"", "sh", "bash"}
PROGRAMS = {"fedmedseg", "nvflare", "make", "python"}
OPERATOR = re.compile(r"[();<>|&]+")
LEADING = {"do", "until", "then", "while", "if", "!"}


def prose(text: str) -> str:
    """A page without its blocks."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "", prose(text)))


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links, as GitHub makes it."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w -]", "", words).replace(" ", "-")
        number = sum(1 for one in found if one == name or re.fullmatch(rf"{re.escape(name)}-\d+", one))
        found.add(f"{name}-{number}" if number else name)
    return found


def typed(text: str) -> Iterator[tuple[str, list[str]]]:
    """Program and words of every command of ours in a page's blocks."""
    for language, block in FENCE.findall(text):
        if language in SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                yield from commands(line)


def commands(line: str) -> Iterator[tuple[str, list[str]]]:
    """The same of one line; a command may stand in ``$( )``, in ``bash -c "..."`` and behind another."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not OPERATOR.fullmatch(word):
            words.append(word)
            continue
        yield from _one(words)
        words = []


def _one(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    while words and (words[0] in LEADING or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    if not words:
        return
    program = words[0].rpartition("/")[2]
    if program in PROGRAMS:
        yield program, words[1:]
        return
    for word in words[1:]:
        if re.search(r"\s", word) and any(name in word for name in PROGRAMS):
            yield from commands(word)
