"""Processes: which of a distributed program's processes this one is."""

from __future__ import annotations

import jax

__all__ = ["process_file"]


def process_file() -> str:
    """Return the name of the file with this process's state in a checkpoint."""
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"
