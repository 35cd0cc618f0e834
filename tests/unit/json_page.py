"""What docs/json.md says."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


def documented(title: str) -> set[str]:
    """The fields in the table of a section."""
    section = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)}
