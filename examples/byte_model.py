"""A small causal convolutional language model over bytes, in plain JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

WIDTH = 64
DILATIONS = (1, 2, 4, 8, 16, 32)
LEARNING_RATE = 3e-3
WARMUP_STEPS = 50

Params = Any
State = tuple[Params, optax.OptState]


@dataclass(frozen=True, slots=True)
class Model:
    """The compiled steps, and the state to begin with. ``train`` takes its state for good."""

    train: Callable[[State, jax.Array], tuple[State, jax.Array]]
    validate: Callable[[State, jax.Array], jax.Array]
    state: State


def make_model(batch_size: int, window: int, steps: int, seed: int) -> Model:
    """Initialise and compile. It takes a second or two: call it off the event loop."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, min(WARMUP_STEPS, steps // 4), max(steps, 2)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def train(state: State, text: jax.Array) -> tuple[State, jax.Array]:
        params, memory = state
        loss, gradients = jax.value_and_grad(loss_of)(params, text)
        updates, memory = optimizer.update(gradients, memory, params)
        return (optax.apply_updates(params, updates), memory), loss

    def validate(state: State, text: jax.Array) -> jax.Array:
        return loss_of(state[0], text)

    params = init_params(seed)
    state = (params, optimizer.init(params))
    text = jax.ShapeDtypeStruct((batch_size, window + 1), jnp.uint8)
    return Model(
        jax.jit(train, donate_argnums=0).lower(state, text).compile(),
        jax.jit(validate).lower(state, text).compile(),
        state,
    )


def replace_leaves(state: State, leaves: Sequence[np.ndarray]) -> State:
    """Return a state of the same structure, with leaves in memory of their own."""
    tree = jax.tree.structure(state)
    replaced: State = jax.tree.unflatten(tree, [jnp.array(leaf) for leaf in leaves])
    return replaced


def init_params(seed: int) -> Params:
    """Return parameters at random."""
    embed, head, *layers = jax.random.split(jax.random.key(seed), 2 + len(DILATIONS))
    normal = jax.random.normal
    return {
        "embed": normal(embed, (256, WIDTH)) * 0.3,
        "layers": [
            {
                "mix": normal(key, (2 * WIDTH, 2 * WIDTH)) * (2 * WIDTH) ** -0.5,
                "out": normal(jax.random.fold_in(key, 1), (2 * WIDTH, WIDTH)) * 0.03,
                "scale": jnp.ones(WIDTH),
            }
            for key in layers
        ],
        "head": normal(head, (WIDTH, 256)) * 0.03,
    }


def loss_of(params: Params, text: jax.Array) -> jax.Array:
    """Return the mean cross entropy, in nats per byte, of ``text`` (batch, window + 1)."""
    text = text.astype(jnp.int32)
    x = params["embed"][text[:, :-1]]
    for layer, dilation in zip(params["layers"], DILATIONS, strict=True):
        now = _normalize(x) * layer["scale"]
        past = jnp.pad(now, ((0, 0), (dilation, 0), (0, 0)))[:, : now.shape[1]]
        both = jnp.concatenate([past, now], axis=-1)
        x = x + jax.nn.gelu(both @ layer["mix"]) @ layer["out"]
    logits = _normalize(x) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


def _normalize(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
