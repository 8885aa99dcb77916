"""torchdata's nodes: a `ParallelMapper` over batches, in threads of the program."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torchdata.nodes import Loader, ParallelMapper, Prefetcher, SamplerWrapper

from benchmarks.loaders.torch import Batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loaders import Row, Work

PACKAGES = ("torchdata", "torch")


@contextmanager
def epoch(work: Work, method: str = "thread", **options: Any) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    torch.set_num_threads(1)
    dataset = Batches(work)
    node = ParallelMapper(
        SamplerWrapper(range(len(dataset))),
        dataset.__getitem__,
        num_workers=work.num_workers,
        in_order=work.ordered,
        method=method,
        **options,
    )
    ahead = max(1, work.depth - work.num_workers)
    yield arrays(iter(Loader(Prefetcher(node, ahead))))


def arrays(batches: Iterator[Row]) -> Iterator[Row]:
    """Yield batches as NumPy arrays over the tensors' memory."""
    for batch in batches:
        yield {name: tensor.numpy() for name, tensor in batch.items()}
        del batch
