"""Documents: what measurements write between two marks of a page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["END", "put"]

END = "<!-- end -->"


def put(page: Path, mark: str, *parts: str) -> None:
    """Replace what stands between ``mark`` and the next `END`; raises SystemExit without them."""
    marked = re.escape(mark) + ".*?" + re.escape(END)
    between = "\n\n".join((mark, *parts, END))
    after, count = re.subn(marked, lambda _: between, page.read_text(), flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page.name} has no place for it: {mark} {END}")
    page.write_text(after)
