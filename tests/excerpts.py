"""Excerpts of source files in the guide: ``python tests/excerpts.py`` renews them, and test_docs.py compares them.

A comment before a code block names the file. ``from`` and ``to`` quote parts of the first and the last line, ``before``
of the line after the last one.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXCERPT = re.compile(
    r'^<!-- excerpt: (?P<file>\S+)(?: from "(?P<first>[^"]*)")?(?: (?P<end>to|before) "(?P<last>[^"]*)")? -->\n'
    r"(?P<fence>```\w+\n).*?^```$",
    re.MULTILINE | re.DOTALL,
)


def excerpt(match: re.Match[str]) -> str:
    """Return the comment and the block, with the lines as the file has them now."""
    lines = (ROOT / match["file"]).read_text(encoding="utf-8").splitlines()
    if match["first"]:
        lines = lines[next(k for k, line in enumerate(lines) if match["first"] in line) :]
    if match["last"]:
        end = next(k for k, line in enumerate(lines) if match["last"] in line)
        lines = lines[: end + (match["end"] == "to")]
    comment = match[0].partition("\n")[0]
    return f"{comment}\n{match['fence']}{textwrap.dedent(chr(10).join(lines)).strip()}\n```"


def renewed(text: str) -> str:
    """Return a page with its excerpts as the files have them now."""
    return EXCERPT.sub(excerpt, text)


if __name__ == "__main__":
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if (now := renewed(text)) != text:
            page.write_text(now, encoding="utf-8")
            print(f"{page.name}: renewed")
