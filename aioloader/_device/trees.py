"""Trees as JAX sees them: containers registered with it, and arrays of any kind as leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["leaves_with_paths", "map_leaves"]


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return each leaf of a pytree with where it is, as one would write it."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the pytree of ``function(leaf)``."""
    return jax.tree.map(function, tree)
