"""Orders and numbers that Grain 0.2.18 gave, as they were recorded (see `golden.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("golden.json").read_text()
)

EXTRAS: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("golden_extras.json").read_text()
)
"""The same of what it has beside its methods."""
