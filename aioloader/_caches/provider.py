"""The provider: what rows come from, and whether the configuration wants them kept."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

__all__ = ["is_coroutine_function", "resolver_of", "rows_in", "switch", "whole_number"]


def switch(config: object, name: str) -> bool:
    """Return ``config["data_set"][name]``, or say what is missing or wrong.

    >>> switch({"data_set": {"use_cache": True}}, "use_cache")
    True
    """
    where = "config['data_set']"
    if not isinstance(config, Mapping):
        raise TypeError(f"config={config!r} must be a mapping that has ['data_set'][{name!r}]")
    if "data_set" not in config:
        raise KeyError(f"{where} is missing: it must have 'use_cache' and 'preload_cache'")
    section = config["data_set"]
    if not isinstance(section, Mapping):
        raise TypeError(f"{where}={section!r} must be a mapping that has {name!r}")
    if name not in section:
        raise KeyError(f"{where}[{name!r}] is missing: it must be True or False")
    value = section[name]
    if not isinstance(value, bool):
        raise TypeError(f"{where}[{name!r}]={value!r} must be True or False")
    return value


def resolver_of(provider: Any) -> Callable[[int], Any]:
    """Return what loads a row: ``resolve_data`` of the provider, or else its subscription."""
    resolve = getattr(provider, "resolve_data", None)
    if resolve is None:
        resolve = getattr(provider, "__getitem__", None)
    if not callable(resolve):
        raise TypeError(f"data_provider={provider!r} must have resolve_data(idx) or __getitem__")
    return cast("Callable[[int], Any]", resolve)


def rows_in(provider: Any) -> int:
    """Return how many rows a provider has."""
    try:
        return len(provider)
    except TypeError as error:
        raise TypeError(f"data_provider={provider!r} must have a length: {error}") from None


def is_coroutine_function(function: Any) -> bool:
    """Tell whether calls of ``function`` have to be awaited."""
    while isinstance(function, functools.partial):
        function = function.func
    called = vars(type(function)).get("__call__")
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def whole_number(name: str, value: Any, *, at_least: int = 0) -> int:
    """Return ``value`` as a plain ``int``; NumPy's integers are accepted, bools are not.

    >>> whole_number("max_bytes", 1.5)
    Traceback (most recent call last):
    TypeError: max_bytes=1.5 must be a whole number
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a whole number")
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    return number
