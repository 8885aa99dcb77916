"""Train on scikit-learn's handwritten digits: in memory, prefetched, sharded over two devices.

    python examples/digits.py

Ends with the share of held-out digits that it reads rightly, and with status 1 below 95 %.
"""

from __future__ import annotations

import os
import sys

# Two devices on any machine; JAX reads this when it starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from aioloader import InMemoryDataLoader, prefetching_map, run, sharding_map, wait_ready

EPOCHS, MINIBATCH, HIDDEN = 30, 64, 128
optimizer = optax.adam(2e-3)


def make_parameters(key):
    first, second = jax.random.split(key)
    return {
        "in": jax.random.normal(first, (64, HIDDEN)) * 0.1,
        "in_bias": jnp.zeros(HIDDEN),
        "out": jax.random.normal(second, (HIDDEN, 10)) * 0.1,
        "out_bias": jnp.zeros(10),
    }


def read(parameters, images):
    hidden = jax.nn.relu(images @ parameters["in"] + parameters["in_bias"])
    return hidden @ parameters["out"] + parameters["out_bias"]


@jax.jit
def step(parameters, state, minibatch):
    def loss_of(parameters):
        logits = read(parameters, minibatch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, minibatch["label"])
        return losses.mean()

    loss, gradient = jax.value_and_grad(loss_of)(parameters)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(parameters, updates), state, loss


def load_split():
    """Return training and test digits, images scaled to 0..1."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    data = {
        "image": (digits.data[order] / 16).astype(np.float32),
        "label": digits.target[order].astype(np.int32),
    }
    held_out = len(order) // 5
    return (
        {name: array[held_out:] for name, array in data.items()},
        {name: array[:held_out] for name, array in data.items()},
    )


async def main():
    training, test = load_split()
    mesh = Mesh(jax.devices(), ("batch",))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    parameters = jax.device_put(make_parameters(jax.random.key(0)), everywhere)
    state = jax.device_put(optimizer.init(parameters), everywhere)
    loader = InMemoryDataLoader(training, MINIBATCH)
    for epoch in range(EPOCHS):
        minibatches = sharding_map(loader.minibatches(shuffle_seed=epoch), rows)
        async for minibatch in prefetching_map(minibatches, buffer_size=2):
            parameters, state, loss = step(parameters, state, minibatch)
            await wait_ready(loss)  # the loop is free meanwhile
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {float(loss):.4f}")
    right = read(parameters, test["image"]).argmax(axis=1) == test["label"]
    accuracy = float(right.mean())
    print(f"devices={len(jax.devices())} test_accuracy={accuracy:.4f}")
    return 0 if accuracy > 0.95 else 1


if __name__ == "__main__":
    sys.exit(run(main()))
