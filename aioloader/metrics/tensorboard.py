"""TensorBoard: figures as event files, written by tensorboardX."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, final

try:
    from tensorboardX import SummaryWriter
except ImportError as error:
    raise ImportError(
        "TensorBoardSink writes with tensorboardX: pip install 'aioloader[tensorboard]'"
    ) from error

if TYPE_CHECKING:
    from typing import Self

__all__ = ["TensorBoardSink"]


@final
class TensorBoardSink:
    """Write figures for TensorBoard (see :class:`aioloader.metrics.MetricsSink`).

    Args:
        target: The directory of the event files, or a ``tensorboardX.SummaryWriter`` that the
            program has already. A writer that was made here is closed by `close`, or at the
            end of ``with``; a writer of the program's is flushed.
    """

    def __init__(self, target: str | os.PathLike[str] | SummaryWriter) -> None:
        self._owned = isinstance(target, str | os.PathLike)
        self._writer: Any = SummaryWriter(os.fspath(target)) if self._owned else target

    def __repr__(self) -> str:
        return f"<TensorBoardSink: {self._writer.logdir}>"

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Hand one figure to the thread that writes."""
        self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Have everything written; harmless to repeat."""
        if self._owned:
            self._writer.close()
        else:
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
