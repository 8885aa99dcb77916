"""The wire: whatever pickles arrives as it was sent, large things too, and leaves nothing open."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioloader._executors import wire
from aioloader._executors.wire import BULK_BYTES, INLINE_BYTES, SOCKET_KIND

if TYPE_CHECKING:
    from collections.abc import Iterator

EDGES = [0, 1, 8191, 8192, 8193, INLINE_BYTES - 64, INLINE_BYTES, INLINE_BYTES + 64, BULK_BYTES * 4]
bulky_or_not = pytest.mark.parametrize("bulky", [False, True], ids=["plain", "bulky"])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, SOCKET_KIND)
    with ours, theirs:
        yield ours, theirs


def through(value: Any, *, bulky: bool = False, tag: int = 0) -> Any:
    """Send a value from one socket to another."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, SOCKET_KIND)
    with ours, theirs:
        message = wire.encode(value, tag, bulky=bulky)
        wire.send(ours, message)
        message.close()
        packet, descriptor = wire.receive(theirs)
        assert wire.tag_of(packet) == tag
        return wire.decode(packet, descriptor)


def same(a: Any, b: Any) -> bool:
    """Compare values that may hold arrays, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def patterned(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + bytes(range(size % 256))


# What goes through --------------------------------------------------------------------------------


@bulky_or_not
@pytest.mark.parametrize("size", EDGES)
def test_bytes_of_every_size_arrive(size: int, bulky: bool) -> None:
    """Around each threshold between the ways that they may take."""
    data = patterned(size)
    array = np.frombuffer(data, "uint8")
    for value in (data, bytearray(data), array.copy(), array, (data, array.copy(), data), [data]):
        assert same(through(value, bulky=bulky), value)


@bulky_or_not
@pytest.mark.parametrize(
    "array",
    [
        np.arange(30_000, dtype="float64").reshape(100, 300),
        np.arange(30_000, dtype="float64").reshape(100, 300).T,
        np.arange(30_000, dtype="int32")[::-3],
        np.zeros((0, 5000)),
        np.float32(3),
        np.array(5, dtype="int16"),
        np.array(["a", "bcd"] * 9000),
        np.array([{"x": 1}, None] * 9000, dtype=object),
        np.zeros(5000, dtype=[("a", "int32"), ("b", "float64")]),
        np.arange("2020-01-01", "2060-01-01", dtype="datetime64[D]"),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_of_every_kind_arrive(array: Any, bulky: bool) -> None:
    """Contiguous or not, in either order, of any dtype, empty ones and scalars too."""
    assert same(through(array, bulky=bulky), array)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([0, 10, 8191, 8192, 40_000, 300_000]).map(patterned)
    | st.sampled_from([0, 10, 8191, 8192, 40_000, 300_000]).map(lambda n: bytearray(patterned(n)))
    | st.sampled_from([0, 10, 8191, 8192, 40_000]).map(lambda n: memoryview(patterned(n)))
    | st.sampled_from([0, 3, 1024, 1025, 5000, 40_000]).map(lambda n: np.arange(n, dtype="int64"))
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(values, st.booleans(), st.integers(0, 2**64 - 1))
def test_nested_values_arrive(value: Any, bulky: bool, tag: int) -> None:
    """Large bytes and arrays mixed in any order and depth, each in its place again."""
    assert same(through(value, bulky=bulky, tag=tag), value)


@bulky_or_not
def test_what_is_shared_is_shared_again(bulky: bool) -> None:
    """Two references to one array are, on the other side, two references to one array."""
    array = np.zeros(50_000)
    one, two = through([array, array], bulky=bulky)
    assert one is two
    ring: list[Any] = [np.zeros(50_000), patterned(50_000)]
    ring.append(ring)
    again = through(ring, bulky=bulky)
    assert again[2] is again
    assert again[1] == ring[1]


@bulky_or_not
def test_functions_without_a_name_travel(bulky: bool) -> None:
    """Lambdas and closures, with the large things that they hold."""
    weights = np.arange(50_000)
    blob = patterned(50_000)
    total, size = through((lambda x: x + int(weights.sum()), lambda: len(blob)), bulky=bulky)
    assert total(1) == 1 + sum(range(50_000))
    assert size() == 50_000


@dataclass
class Sample:
    """Something of the user's own."""

    name: str
    pixels: np.ndarray
    raw: bytes


@bulky_or_not
def test_instances_of_classes_travel(bulky: bool) -> None:
    sample = Sample("cat", np.arange(20_000), patterned(20_000))
    received = through([sample, sample], bulky=bulky)
    assert received[0] is received[1]
    assert type(received[0]) is Sample
    assert (received[0].name, received[0].raw) == ("cat", sample.raw)
    assert same(received[0].pixels, sample.pixels)


@pytest.mark.parametrize("size", [100, 50_000])
def test_received_arrays_may_be_written_and_changes_stay_here(size: int) -> None:
    """As with an array of one's own; and the message may be sent once more, unchanged."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, SOCKET_KIND)
    message = wire.encode(np.zeros(size, "int64"), bulky=True)
    with ours, theirs:
        for _ in range(2):
            wire.send(ours, message)
            received = wire.decode(*wire.receive(theirs))
            assert not received.any()
            received[...] = 1
    message.close()


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "complex128"])
def test_received_arrays_are_aligned(dtype: str) -> None:
    """However the bytes before them end: much compiled code refuses arrays that are not."""
    value = [(np.zeros(5001 * n, "uint8"), patterned(9001), np.ones(3000, dtype)) for n in (2, 3)]
    aligned = [array.flags.aligned for _, _, array in through(value, bulky=True)]
    assert aligned == [True, True]


# Views --------------------------------------------------------------------------------------------


@bulky_or_not
@pytest.mark.parametrize("size", EDGES)
def test_views_arrive_as_views_that_are_read_only(size: int, bulky: bool) -> None:
    """Of whatever they are; large and small, and wherever they lie."""
    data = patterned(size)
    for view in (
        memoryview(data),
        memoryview(bytearray(data)),
        memoryview(b"1" + data + b"2")[1:-1],
    ):
        for value in (view, (view, data, view), {"jpg": view, "n": 3}, [{"a": (view, None)}]):
            received = through(value, bulky=bulky)
            assert same(received, value)
        received = through([view], bulky=bulky)[0]
        assert received.readonly
        with pytest.raises(TypeError):
            received[:1] = b"x"


@bulky_or_not
@pytest.mark.parametrize(
    "array",
    [
        np.arange(5000, dtype="float64").reshape(50, 100),
        np.arange(12, dtype="int16"),
        np.arange(50_000, dtype="uint8")[::3],
        np.arange(5000, dtype="float64").reshape(50, 100).T,
        np.arange(3, dtype="uint8")[:0],
        np.ones(3, "bool"),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_views_keep_their_form(array: Any, bulky: bool) -> None:
    """Elements and shape; those with gaps arrive without."""
    received = through(memoryview(array), bulky=bulky)
    assert (received.format, received.shape) == (memoryview(array).format, array.shape)
    assert received.tolist() == array.tolist()


def test_large_views_lie_in_the_message_and_keep_it() -> None:
    """They are not copied on the way out of it."""
    received = [
        through({"x": memoryview(patterned(BULK_BYTES))}, bulky=True)["x"] for _ in range(3)
    ]
    gc.collect()
    assert all(view == patterned(BULK_BYTES) for view in received)
    assert all(isinstance(view.obj, mmap.mmap) for view in received)


def test_views_in_what_only_cloudpickle_can_name() -> None:
    view = memoryview(patterned(50_000))
    function, other = through((lambda: 5, view), bulky=True)
    assert (function(), other) == (5, view)
    small = memoryview(b"abc")
    function, other = through((lambda: 5, small))
    assert (function(), other, type(other)) == (5, small, memoryview)


# How it goes through ------------------------------------------------------------------------------


@pytest.mark.parametrize("bulky", [False, True], ids=["plain", "bulky"])
@pytest.mark.parametrize("size", [10, INLINE_BYTES * 2])
def test_the_tag_can_be_read_without_decoding(size: int, bulky: bool) -> None:
    """Even where decoding fails; and the largest number fits."""
    message = wire.encode((BreaksOnLoad(), bytes(size)), 2**64 - 1, bulky=bulky)
    ours, theirs = socket.socketpair(socket.AF_UNIX, SOCKET_KIND)
    with ours, theirs:
        wire.send(ours, message)
        packet, descriptor = wire.receive(theirs)
    assert wire.tag_of(packet) == 2**64 - 1
    with pytest.raises(ZeroDivisionError):
        wire.decode(packet, descriptor)
    message.close()


class BreaksOnLoad:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)


class BreaksOnDump:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("not to be pickled")


@bulky_or_not
@pytest.mark.parametrize("size", [10, BULK_BYTES])
def test_nothing_stays_open_when_a_value_does_not_pickle(size: int, bulky: bool) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ZeroDivisionError, match="not to be pickled"):
        wire.encode([bytes(size), BreaksOnDump()], bulky=bulky)
    assert os.listdir("/proc/self/fd") == before


def test_nothing_stays_open_when_a_large_value_does_not_unpickle() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            through([bytes(BULK_BYTES), np.zeros(BULK_BYTES), BreaksOnLoad()], bulky=True)
    gc.collect()
    assert os.listdir("/proc/self/fd") == before


def test_large_values_stay_readable_when_the_message_is_closed() -> None:
    """The receiver's mapping keeps the memory, as long as an array in it lives."""
    received = [through(np.full(BULK_BYTES, n), bulky=True) for n in range(4)]
    gc.collect()
    assert [(int(a.min()), int(a.max())) for a in received] == [(n, n) for n in range(4)]


def test_descriptors_do_not_leak_over_many_messages() -> None:
    """Nor does mapped memory."""
    before = os.listdir("/proc/self/fd")
    for number in range(300):
        assert through([np.full(9000, number)], bulky=True)[0][-1] == number
    gc.collect()
    assert os.listdir("/proc/self/fd") == before
    with open("/proc/self/maps") as maps:
        assert "aioloader-parcel" not in maps.read()


def test_a_small_message_needs_no_descriptor_and_a_large_one_has_a_small_packet() -> None:
    small, large = wire.encode(bytes(100)), wire.encode(bytes(BULK_BYTES), bulky=True)
    assert small.descriptor is None
    assert large.descriptor is not None
    assert len(large.packet) < 100
    assert large.nbytes >= BULK_BYTES
    large.close()
    large.close()
    assert large.descriptor is None


def test_many_large_values_make_one_message() -> None:
    """More of them than the system writes at once."""
    value = [patterned(9000 + n) for n in range(1500)]
    assert through(value, bulky=True) == value


def test_messages_arrive_whole_and_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    """A full queue says so, and takes more when it has been read from."""
    ours, theirs = pair
    ours.setblocking(False)
    received: list[int] = []
    for number in range(2000):
        message = wire.encode((number, bytes(2000)))
        while True:
            try:
                wire.send(ours, message)
                break
            except BlockingIOError:
                received.append(wire.decode(*wire.receive(theirs))[0])
    ours.shutdown(socket.SHUT_RDWR)
    while (got := wire.receive(theirs))[0]:
        received.append(wire.decode(*got)[0])
    assert received == list(range(2000))


def test_an_ended_queue_reads_as_empty(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    assert wire.receive(theirs) == (b"", None)


def test_a_message_that_is_never_received_is_given_back_with_its_queue() -> None:
    before = os.listdir("/proc/self/fd")
    ours, theirs = socket.socketpair(socket.AF_UNIX, SOCKET_KIND)
    message = wire.encode(bytes(BULK_BYTES), bulky=True)
    with ours, theirs:
        wire.send(ours, message)
        message.close()
    assert os.listdir("/proc/self/fd") == before


def test_values_that_only_the_sender_can_name_travel_by_value() -> None:
    """A class that the receiver could not import is taken along."""
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("class Local:\n    n = 7", namespace)
    blob = wire.encode(namespace["Local"]())
    assert b"nowhere" in blob.packet
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(namespace["Local"]())
    assert through(namespace["Local"]()).n == 7
