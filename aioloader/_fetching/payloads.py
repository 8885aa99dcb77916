"""Payloads: how many bytes something fetched holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

__all__ = ["payload_bytes"]


def payload_bytes(payload: object, levels: int = 4) -> int:
    """Return the bytes of buffers and strings in ``payload``, in containers too.

    >>> payload_bytes({"jpg": b"12345", "label": (3, memoryview(b"67"))})
    7
    """
    if isinstance(payload, bytes | bytearray | str):
        return len(payload)
    if isinstance(payload, memoryview | np.ndarray):
        return payload.nbytes
    if levels == 0 or payload is None:
        return 0
    if isinstance(payload, Mapping):
        return sum(payload_bytes(part, levels - 1) for part in payload.values())
    if isinstance(payload, tuple | list):
        return sum(payload_bytes(part, levels - 1) for part in payload)
    if dataclasses.is_dataclass(payload) and not isinstance(payload, type):
        parts = (getattr(payload, field.name) for field in dataclasses.fields(payload))
        return sum(payload_bytes(part, levels - 1) for part in parts)
    try:
        return memoryview(payload).nbytes  # type: ignore[arg-type]
    except TypeError:
        return 0
