"""Pages, docstrings and comments are plain English: no phrase that readers stumble over. codespell checks spelling."""

from __future__ import annotations

import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for folder in ("", "bench", "cpp", "docs", "examples", "python", "tests")
    for path in (ROOT / folder).glob("**/*" if folder else "*")
    if path.suffix in {".c", ".cpp", ".h", ".hpp", ".md", ".py"} and (ROOT / "docs" / "gallery") not in path.parents
]

INSTEAD = {
    r"\bbut for\b": "except",
    r"(?<![-.`'\"])\balone\b(?!\()": "only",
    r"\bin place of\b": "instead of",
    r", for (?:it|they|that|there|to|he|she|we|you)\b": "because",
    r"\bit follows that\b": "so",
    r"(?:^|\. )(?:Of the|Of these|What is not)\b": "a sentence that begins with its subject",
    r"\bis there none\b|\bthat there is none of\b": "unknown, missing",
    r"\bwith which no\b|\bwhich no\b": "no ... that",
    r"\b(?:one|[nµ]s|(?:micro|nano)seconds|bytes|lines|times) an? (?:array|call|element|line|rule|step)\b": "per",
}


def read(path: Path) -> Iterator[tuple[int, str]]:
    """Yield pieces of text for readers, with the lines where they begin."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and '"""' in token.string[:4]):
                yield token.start[0], token.string
    elif path.suffix == ".md":
        yield (
            1,
            re.sub(
                r"^```\w+\n.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE
            ),
        )
    else:
        for comment in re.finditer(r"//[^\n]*|/\*.*?\*/", text, re.DOTALL):
            yield text.count("\n", 0, comment.start()) + 1, comment[0]


@functools.cache
def prose(path: Path) -> list[tuple[int, str]]:
    return list(read(path))


@pytest.mark.parametrize(("phrase", "instead"), INSTEAD.items())
def test_plain_words(phrase: str, instead: str) -> None:
    pattern = re.compile(phrase, re.IGNORECASE if phrase.islower() else 0)
    found = [
        f"{path.relative_to(ROOT)}, line {line + text.count(chr(10), 0, match.start())}: {match[0]!r}"
        for path in FILES
        if path.name != Path(__file__).name
        for line, text in prose(path)
        for match in pattern.finditer(text)
    ]
    assert not found, f"write {instead!r} instead of\n" + "\n".join(found)


def test_every_kind_of_text_is_read() -> None:
    assert {path.suffix for path in FILES if any(prose(path))} == {".c", ".cpp", ".h", ".hpp", ".md", ".py"}
