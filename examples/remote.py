"""Train on images that live behind HTTP, 20 ms away, or in S3.

    python examples/remote.py                 # a web server of its own, each answer after 20 ms
    python examples/remote.py --s3            # moto's S3 server (pip install 'moto[server]')

Images are made first, of stripes that run down or across, and served by a process of its own.
`ObjectStoreSource` keeps dozens of requests in flight on the event loop, repeats what fails, and
asks a second time where an answer is late; workers decode what has come meanwhile, and a small
network learns to tell the two apart. It ends with one line of figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from urllib.request import Request, urlopen

import jax
import numpy as np
import optax
from images import decode
from PIL import Image

from aioloader import DataGroup, FetchPolicy, Loader, run, wait_ready
from aioloader.sources import ObjectStoreSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SIDE = 32
LATENCY = 0.02
ARRAYS = {"image": ((SIDE, SIDE, 3), "uint8", "uint8"), "label": ((), "int32", "int32")}
KINDS = ("down", "across")
S3_OPTIONS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}


# In workers ---------------------------------------------------------------------------------------


def load(payload: tuple[int, memoryview], arrays: Mapping[str, np.ndarray], seed: int) -> None:
    """Decode an object into its row, mirrored or not as the seed says."""
    number, content = payload
    pixels = np.asarray(decode(bytes(content), SIDE).resize((SIDE, SIDE)))
    arrays["image"][...] = pixels[:, ::-1] if seed % 2 else pixels
    arrays["label"][...] = number % len(KINDS)


# Servers ------------------------------------------------------------------------------------------


async def serve(folder: Path) -> None:
    """Serve files on a free port, which is printed, until stdin ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                path = folder / unquote(request.split(b" ", 2)[1].decode()).lstrip("/")
                await asyncio.sleep(LATENCY)
                body = path.read_bytes() if path.is_file() else b""
                status = "200 OK" if body else "404 Not Found"
                head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a web server; yields its URL, and no options."""
    command = (sys.executable, __file__, "--serve", str(folder))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", {}
        finally:
            process.terminate()


@contextlib.contextmanager
def in_s3(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start an S3 server and fill a bucket; yields its URL, and what the client has to know."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would tell of each request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        endpoint = f"http://{host}:{port}"
        urlopen(Request(f"{endpoint}/images", method="PUT")).close()
        for path in folder.iterdir():
            put = Request(f"{endpoint}/images/{path.name}", path.read_bytes(), method="PUT")
            put.add_header("Content-Type", "application/octet-stream")
            urlopen(put).close()
        options = {**S3_OPTIONS, "aws_endpoint": endpoint, "aws_region": "us-east-1"}
        yield "s3://images", options
    finally:
        server.stop()


# Training -----------------------------------------------------------------------------------------


def generate(folder: Path, count: int) -> list[str]:
    """Write images of noisy stripes in random colours, JPEG and PNG; returns their names."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        kind = number % 2
        width = rng.integers(3, 9)
        stripes = (np.arange(96) // width % 2)[:, None] * np.ones(96)
        pixels = (stripes if kind else stripes.T)[..., None] * rng.uniform(60, 255, 3)
        pixels += rng.normal(0, 30, (96, 96, 3))
        names.append(f"{KINDS[kind]}-{number:05}.{('jpg', 'png')[number // 2 % 2]}")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / names[-1])
    return names


def predict(weights: Any, images: jax.Array) -> jax.Array:
    """Return logits, by two convolutions and a mean."""
    x = images / 128.0 - 1.0
    for kernel in weights["kernels"]:
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.mean(axis=(1, 2)) @ weights["out"]


optimizer = optax.adam(3e-3)


@jax.jit
def step(weights: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Make one step; returns the weights, the optimizer's state and the share that was right."""

    def loss(weights: Any) -> tuple[jax.Array, jax.Array]:
        logits = predict(weights, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(-1) == labels).mean()

    grads, right = jax.grad(loss, has_aux=True)(weights)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(weights, updates), state, right


def initial() -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((5, 5, 3, 16), (3, 3, 16, 32))
    kernels = [
        jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:3]))
        for key, shape in zip(keys, shapes, strict=False)
    ]
    return {"kernels": kernels, "out": jax.random.normal(keys[2], (32, 2)) / 6}


async def train(source: ObjectStoreSource, options: argparse.Namespace) -> str:
    """Train for some steps, and return the line of figures."""
    group = DataGroup(
        options.batch_size,
        range(len(source)),
        loader_arrays=ARRAYS,
        shuffle_first=True,
        shuffle_later="itemwise",
    )
    settings = {"num_workers": options.workers, "end_at": ("batch", options.steps)}
    weights, in_flight, right = initial(), 0, []
    state = optimizer.init(weights)
    # What `load` gets are pairs of a number and an object: the number tells the label.
    async with source, Loader(load, group, fetch=source.fetch.paired(), **settings) as loader:
        async for batch in loader:
            with batch:
                images, labels = batch.arrays["image"], batch.arrays["label"]
                weights, state, share = step(weights, state, images, labels)
            await wait_ready(share)
            right.append(float(share))
            in_flight = max(in_flight, source.statistics().in_flight)
        figures = loader.statistics()
    last = right[-max(len(right) // 4, 1) :]
    return (
        f"objects={figures.rows} objects_per_s={figures.rows_per_second:.0f} "
        f"in_flight={in_flight} retries={figures.fetch.retries} "
        f"p50_ms={figures.fetch.p50_seconds * 1e3:.1f} idle={figures.idle_share:.2%} "
        f"bound_by={figures.bound_by} accuracy={sum(last) / len(last):.3f}"
    )


# The program --------------------------------------------------------------------------------------


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train on images that are far away.")
    add_option = parser.add_argument
    add_option("--s3", action="store_true", help="serve them by moto's S3 server")
    add_option("--items", type=int, default=2000, help="images (2000)")
    add_option("--steps", type=int, default=200, help="batches to train on (200)")
    add_option("--batch-size", type=int, default=32, help="images in a batch (32)")
    add_option("--workers", type=int, default=1, help="worker processes (1); 0 is a thread")
    add_option("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("items", "steps", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} is not positive")
    if options.items < options.batch_size:
        parser.error(f"--items {options.items} make no batch of {options.batch_size}")
    return options


def main(options: argparse.Namespace) -> None:
    """Make images, serve them, and train."""
    policy = FetchPolicy(concurrency=64, hedge_quantile=0.95)
    with tempfile.TemporaryDirectory() as name:
        keys = generate(Path(name), options.items)
        server = in_s3 if options.s3 else served
        with server(Path(name)) as (url, access):
            source = ObjectStoreSource(url, keys=keys, policy=policy, options=access)
            print(f"{len(source)} images at {url}")
            print(run(train(source, options)))


if __name__ == "__main__":
    chosen = parse_options()
    try:
        asyncio.run(serve(chosen.serve)) if chosen.serve else main(chosen)
    except KeyboardInterrupt:
        sys.exit(130)
