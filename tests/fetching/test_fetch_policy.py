"""The policy: its arguments are checked at once, and it is a value."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from aioloader import FetchPolicy


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("concurrency", 0, ValueError),
        ("concurrency", 2.5, TypeError),
        ("concurrency", True, TypeError),
        ("attempt_timeout", 0, ValueError),
        ("attempt_timeout", math.nan, ValueError),
        ("attempt_timeout", math.inf, ValueError),
        ("item_timeout", -1.0, ValueError),
        ("item_timeout", "5", TypeError),
        ("retries", -1, ValueError),
        ("retries", None, TypeError),
        ("backoff", -0.1, ValueError),
        ("max_backoff", math.inf, ValueError),
        ("retry_budget", -1, ValueError),
        ("hedge_quantile", 0.0, ValueError),
        ("hedge_quantile", 1.0, ValueError),
        ("max_bytes", 0, ValueError),
        ("max_bytes", 1.5, TypeError),
        ("retry_on", "errors", TypeError),
    ],
)
def test_wrong_arguments_are_named(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name}="):
        FetchPolicy(**{name: value})


def test_it_is_a_value() -> None:
    policy = FetchPolicy(concurrency=9, hedge_quantile=0.9, attempt_timeout=None)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(dataclasses.replace(policy, concurrency=9)) == hash(policy)
    assert repr(policy) == "FetchPolicy(concurrency=9, attempt_timeout=None, hedge_quantile=0.9)"
    assert repr(FetchPolicy()) == "FetchPolicy()"
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.retries = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        FetchPolicy(64)  # type: ignore[misc]
