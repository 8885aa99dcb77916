"""The wire: messages between the loader and its workers, large ones by descriptor."""

from __future__ import annotations

import copyreg
import io
import mmap
import os
import pickle
import socket
import struct
from collections import ChainMap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import cloudpickle

from aioloader._memory.mapping import anonymous_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["BULK_BYTES", "Message", "SOCKET_KIND", "decode", "encode", "receive", "send", "tag_of"]

# Each message is one packet, so that any number of workers may read from one queue and the
# kernel hands every packet to exactly one of them, in order.
SOCKET_KIND = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)

INLINE_BYTES = 32 * 1024
"""A larger message lies in memory of its own, and its packet carries the descriptor."""

BULK_BYTES = 256 * 1024
"""A message with more than this should be encoded off the event loop."""

_APART_BYTES = 8 * 1024
_TAG = struct.Struct("<BQ")  # a mark, and a number that can be read without decoding
_PARCEL = struct.Struct("<BQQQ")  # the same, the bytes of the parcel, the bytes of its head
_MARK_INLINE, _MARK_PARCEL = 0, 1
_DESCRIPTOR = struct.Struct("@i")
_ANCILLARY_BYTES = socket.CMSG_LEN(_DESCRIPTOR.size)
_PACKET_BYTES = INLINE_BYTES + 64
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)  # a program may not ignore SIGPIPE
_IOV_MAX = 512
_ALIGNMENT = 64

# Workers have another ``__main__``: what refers to it has to travel by value.
_MAIN = b"__main__"


@final
@dataclass(slots=True)
class Message:
    """An encoded message; it may be sent again for as long as it is not closed."""

    packet: bytes
    descriptor: int | None = None
    nbytes: int = field(default=0)

    def close(self) -> None:
        """Give back the memory of a large message."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def encode(value: object, tag: int = 0, *, bulky: bool = False) -> Message:
    """Encode ``value`` under ``tag``; say ``bulky`` where large bytes or arrays are likely.

    Those are then not copied through pickle, which would hold the GIL meanwhile. A
    ``memoryview`` of any size arrives as one that is read-only. Falls back on cloudpickle, so
    that lambdas and what ``__main__`` defines travel too. Raises whatever pickling raises.
    """
    if not bulky:
        try:
            plain = pickle.dumps(value, 5)
        except Exception:  # views are for the picklers below, and lambdas too
            plain = b""
        if _MAIN in plain:
            plain = cloudpickle.dumps(value, 5)
        if 0 < len(plain) <= INLINE_BYTES:
            return Message(_TAG.pack(_MARK_INLINE, tag) + plain, None, len(plain))
    try:
        head, buffers = _dump(_Pickler, value)
    except Exception:
        head, buffers = _MAIN, []
    if _MAIN in head:
        head, buffers = _dump(_CloudPickler, value)
    if not buffers and len(head) <= INLINE_BYTES:
        return Message(_TAG.pack(_MARK_INLINE, tag) + head, None, len(head))
    sizes = struct.pack(f"<{len(buffers) + 1}Q", len(buffers), *(len(b) for b in buffers))
    return _parcel(tag, sizes + head, buffers)


def send(sock: socket.socket, message: Message) -> None:
    """Send ``message``; raises :class:`BlockingIOError` where a non-blocking queue is full."""
    if message.descriptor is None:
        sock.send(message.packet, _SEND_FLAGS)
    else:
        rights = _DESCRIPTOR.pack(message.descriptor)
        sock.sendmsg(
            [message.packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], _SEND_FLAGS
        )


def receive(sock: socket.socket) -> tuple[bytes, int | None]:
    """Receive one packet and the descriptor that came with it; ``b""`` is the end."""
    packet, ancillary, _flags, _address = sock.recvmsg(_PACKET_BYTES, _ANCILLARY_BYTES)
    if not ancillary:
        return packet, None
    (descriptor,) = _DESCRIPTOR.unpack_from(ancillary[0][2])
    return packet, descriptor


def tag_of(packet: bytes) -> int:
    """Return the tag of a packet, which can be read even where its value does not decode."""
    tag: int = _TAG.unpack_from(packet)[1]
    return tag


def decode(packet: bytes, descriptor: int | None) -> Any:
    """Decode a packet; arrays and views of a large message lie in its memory, and keep it."""
    if packet[0] == _MARK_INLINE:
        return pickle.loads(memoryview(packet)[_TAG.size :])
    assert descriptor is not None
    _mark, _tag, nbytes, head_bytes = _PARCEL.unpack(packet)
    try:
        # A private mapping: what a user's code writes to a received array stays its own.
        parcel = memoryview(mmap.mmap(descriptor, nbytes, mmap.MAP_PRIVATE))
    finally:
        os.close(descriptor)
    (count,) = struct.unpack_from("<Q", parcel)
    sizes = struct.unpack_from(f"<{count}Q", parcel, 8)
    buffers, offset = [], head_bytes
    for size in sizes:
        offset += -offset % _ALIGNMENT
        buffers.append(parcel[offset : offset + size])
        offset += size
    head = io.BytesIO(parcel[8 + 8 * count : head_bytes])
    return _Unpickler(head, buffers).load()


def _dump(pickler: type[pickle.Pickler], value: object) -> tuple[bytes, list[memoryview]]:
    head = io.BytesIO()
    buffers: list[memoryview] = []

    def apart(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if len(raw) < _APART_BYTES:
            return True
        buffers.append(raw)
        return False

    writer = pickler(head, 5, buffer_callback=apart)
    writer.apart = buffers  # type: ignore[attr-defined]
    writer.dump(value)
    return head.getvalue(), buffers


class _Apart:
    """Lets large ``bytes`` and views travel beside the pickle: it would have copies of them."""

    apart: list[memoryview]

    def persistent_id(self, obj: object) -> object:
        if type(obj) is bytes and len(obj) >= _APART_BYTES:
            self.apart.append(memoryview(obj))
            return len(self.apart) - 1
        if type(obj) is memoryview and obj.nbytes >= _APART_BYTES and obj.c_contiguous:
            self.apart.append(obj.cast("B"))
            return len(self.apart) - 1, obj.format, obj.shape
        return None


def _view(content: bytes | memoryview, format_: str, shape: tuple[int, ...]) -> memoryview:
    """Return a view of bytes as a view was of others."""
    view = memoryview(content).toreadonly()
    is_plain = format_ == "B" and len(shape) == 1
    return view if is_plain else view.cast(format_, shape)  # type: ignore[call-overload]


def _reduce_view(view: memoryview) -> tuple[Any, ...]:
    return _view, (view.tobytes(), view.format, view.shape)


_VIEWS: dict[Any, Any] = {memoryview: _reduce_view}
_TABLE: Any = ChainMap(_VIEWS, copyreg.dispatch_table)
_CLOUD_TABLE: Any = ChainMap(_VIEWS, cloudpickle.Pickler.dispatch_table)


class _Pickler(_Apart, pickle.Pickler):
    dispatch_table = _TABLE


class _CloudPickler(_Apart, cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table = _CLOUD_TABLE


class _Apartments:
    """The buffers beside a pickle, in the order in which it asks for them.

    Bytes and views are asked for by number, arrays' buffers one after another, from one list.
    """

    def __init__(self, buffers: list[memoryview]) -> None:
        self._buffers = buffers
        self._next = 0

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        self._next += 1
        return self._buffers[self._next - 1]

    def take(self, number: int) -> memoryview:
        self._next = number + 1
        return self._buffers[number]


class _Unpickler(pickle.Unpickler):
    def __init__(self, head: io.BytesIO, buffers: list[memoryview]) -> None:
        self._apartments = _Apartments(buffers)
        super().__init__(head, buffers=self._apartments)

    def persistent_load(self, pid: Any) -> bytes | memoryview:
        if isinstance(pid, tuple):
            number, format_, shape = pid
            return _view(self._apartments.take(number), format_, shape)
        return bytes(self._apartments.take(pid))


def _parcel(tag: int, head: bytes, buffers: Sequence[memoryview]) -> Message:
    pieces, nbytes = [memoryview(head)], len(head)
    for buffer in buffers:
        padding = memoryview(bytes(-nbytes % _ALIGNMENT))
        pieces += [padding, buffer]
        nbytes += len(padding) + len(buffer)
    descriptor = anonymous_file("aioloader-parcel")
    try:
        _write_all(descriptor, pieces)
    except BaseException:
        os.close(descriptor)
        raise
    return Message(_PARCEL.pack(_MARK_PARCEL, tag, nbytes, len(head)), descriptor, nbytes)


def _write_all(descriptor: int, buffers: Sequence[memoryview]) -> None:
    pending = [b for b in buffers if len(b)]
    while pending:
        written = os.writev(descriptor, pending[:_IOV_MAX])
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if written:
            pending[0] = pending[0][written:]
