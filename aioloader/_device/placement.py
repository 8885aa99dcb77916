"""Placement: the one place that knows how host memory becomes ``jax.Array`` s, and back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, final

import anyio
import jax
import numpy as np

from aioloader._device.putting import is_started, prepare, put, put_at_once
from aioloader.errors import LayoutError

if TYPE_CHECKING:
    from aioloader.protocols import Arrays, Extras, Layouts

__all__ = ["Placer", "check_placed", "reclaim", "wait_ready"]

T = TypeVar("T")

_ALWAYS_COPIED = frozenset(("int2", "int4", "uint2", "uint4", "float4_e2m1fn"))
_UNKNOWN = frozenset(("float6_e2m3fn", "float6_e3m2fn"))  # numpy has them, JAX has not
_QUICK_COPY_BYTES = 64 * 1024


_block_until_ready: Callable[[Any], Any] = jax.block_until_ready


@functools.cache
def _first_device() -> jax.Device:
    return jax.local_devices()[0]


def reclaim() -> None:
    """Have JAX let go of host buffers whose last array is gone; it does so only when called."""
    _first_device().memory_stats()


async def wait_ready(tree: T) -> T:
    """Wait until the ``jax.Array`` s in ``tree`` are computed, without blocking the event loop.

    Returns ``tree``. Errors of the computation are raised here.

    >>> import anyio, jax.numpy as jnp
    >>> int(anyio.run(wait_ready, jnp.arange(3) * 2)[2])
    4
    """
    arrays: list[Any] = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    arrays = [x for x in arrays if not x.is_deleted()]  # asking a deleted array would crash
    keys = [x for x in arrays if not isinstance(x.dtype, np.dtype)]  # these cannot be asked
    if not keys and all(x.is_ready() for x in arrays):
        _block_until_ready(arrays)  # does not block, and raises what the computation raised
        return tree
    await anyio.to_thread.run_sync(_block_until_ready, arrays, abandon_on_cancel=True)
    return tree


@final
class Placer:
    """Turns a batch's host arrays into ``jax.Array`` s by one strategy.

    ``place`` is None for the default device, uncommitted; a device or a sharding for each
    array; or a function (see :class:`aioloader.protocols.Placement`). On the CPU backend
    the arrays are the slot's memory itself where nothing has to be converted. On others the
    transfer is complete when `place` returns, and the slot is free.
    """

    def __init__(self, place: object) -> None:
        self._quick: dict[int, tuple[Layouts, bool]] = {}
        if place is None or isinstance(place, jax.Device | jax.sharding.Sharding):
            self._target = place
            self._function: Callable[..., Any] | None = None
        elif callable(place):
            self._function = place
        else:
            raise TypeError(
                f"place={place!r} must be None, a jax.Device, a jax.sharding.Sharding, or a "
                "function place(arrays, layouts, additional, group)"
            )

    @property
    def is_custom(self) -> bool:
        """Whether the strategy is a function of the user's."""
        return self._function is not None

    def preparation(self) -> Callable[[], object] | None:
        """Return what is to be called in a thread before anything is placed, if JAX has to start.

        Where it has started already, what takes a millisecond is done here.
        """
        if not is_started():
            return self._prepare
        self._prepare()
        return None

    def _prepare(self) -> None:
        # What fails here fails again where it is needed, and is told there.
        with contextlib.suppress(Exception):
            _first_device()
            if self._target is None and self._function is None:
                prepare()

    def check(self, layouts: Layouts, where: str) -> None:
        """Raise :class:`LayoutError` for jax dtypes that this JAX is set not to have."""
        for name, layout in layouts.items():
            canonical = jax.dtypes.canonicalize_dtype(layout.jax_dtype)
            for dtype in (layout.numpy_dtype, layout.jax_dtype):
                if dtype.name in _UNKNOWN:
                    raise LayoutError(f"{where}: JAX has no arrays of {name!r}'s dtype {dtype}")
            if canonical != layout.jax_dtype:
                raise LayoutError(
                    f"{where}: array {name!r} wants the jax dtype {layout.jax_dtype}, which JAX "
                    f"turns into {canonical}: say {str(canonical)!r} in its place, or set "
                    "jax_enable_x64"
                )

    def is_quick(self, layouts: Layouts) -> bool:
        """Tell whether placing takes well under a millisecond, so that the loop may do it."""
        if self._function is not None or self._target is not None:
            return False
        known = self._quick.get(id(layouts))
        if known is None or known[0] is not layouts:
            quick = self._is_free(layouts) and jax.default_backend() == "cpu"
            known = self._quick[id(layouts)] = layouts, quick
        return known[1]

    def _is_free(self, layouts: Layouts) -> bool:
        if any(a.numpy_dtype != a.jax_dtype for a in layouts.values()):
            return False
        copied = sum(a.count for a in layouts.values() if a.jax_dtype.name in _ALWAYS_COPIED)
        return copied <= _QUICK_COPY_BYTES

    def place(
        self, arrays: Arrays, layouts: Layouts, additional: Extras, group: object
    ) -> Mapping[str, jax.Array]:
        """Place a batch; blocks until nothing but jax arrays of the CPU reads the slot."""
        if self.is_quick(layouts) and (at_once := put_at_once(arrays)) is not None:
            return at_once
        if self._function is not None:
            placed = self._function(arrays, layouts, additional, group)
            some = [x for x in jax.tree.leaves(placed) if isinstance(x, jax.Array)]
        else:
            placed = put(_presentable(arrays, layouts), self._target)
            for name, layout in layouts.items():
                if placed[name].dtype != layout.jax_dtype:
                    placed[name] = placed[name].astype(layout.jax_dtype)
            some = list(placed.values())[:1]  # the others are where this one is
        if any(device.platform != "cpu" for array in some for device in array.devices()):
            _block_until_ready(placed)
        return placed  # type: ignore[no-any-return]


def check_placed(placed: object, candidates: Mapping[str, Layouts], what: str) -> str:
    """Return the name of the layouts that ``placed`` has, or raise what it lacks of each."""
    if not isinstance(placed, Mapping):
        raise LayoutError(f"{what} is a {type(placed).__name__} and no mapping of arrays")
    faults = []
    for name, layouts in candidates.items():
        fault = _fault(placed, layouts)
        if fault is None:
            return name
        faults.append(f"it does not match {name}: {fault}")
    raise LayoutError(f"{what} is not as declared; {'; '.join(faults)}")


def _presentable(arrays: Arrays, layouts: Layouts) -> dict[str, np.ndarray]:
    return {name: _converted(array, layouts[name].jax_dtype) for name, array in arrays.items()}


def _converted(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    # What JAX would cut down to 32 bits first is converted here, where no bit is lost.
    if array.dtype == dtype or array.dtype == jax.dtypes.canonicalize_dtype(array.dtype):
        return array
    return array.astype(dtype)


def _fault(placed: Mapping[str, Any], layouts: Layouts) -> str | None:
    if set(placed) != set(layouts):
        return f"it has the arrays {sorted(placed)}, and {sorted(layouts)} are declared"
    for name, layout in layouts.items():
        array = placed[name]
        if not isinstance(array, jax.Array):
            return f"{name!r} is a {type(array).__name__} and no jax.Array"
        if array.shape != layout.shape or np.dtype(array.dtype) != layout.jax_dtype:
            return (
                f"{name!r} is {array.dtype}{list(array.shape)}, and "
                f"{layout.jax_dtype}{list(layout.shape)} is declared"
            )
    return None
