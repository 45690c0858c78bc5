"""Samples of webdataset tars, found by their 512-byte headers in a memory map.

A sample is a run of members that share a name up to the first dot; what follows is the extension.
"""

import contextlib
import io
import json
import mmap
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
_END = bytes(BLOCK)
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_REGULAR = (b"0", b"\0", b"7")


class Member(NamedTuple):
    """One file of a sample.

    Attributes:
      header: where its header block starts.
      offset: where its bytes start.
      size: how many they are.
    """

    header: int
    offset: int
    size: int


class TarSample(NamedTuple):
    """Files of one name.

    Attributes:
      key: the name up to the first dot, folders included.
      members: by extension, in lower case.
    """

    key: str
    members: dict[str, Member]


class TarIndex(NamedTuple):
    """What a tar holds.

    Attributes:
      samples: in the order of the file.
      error: why the tar could not be read to its end, or None.
      n_cut: 1 if that cut a sample off, which is left out, else 0.
      n_others: members that are no file, or whose name has no extension.
    """

    samples: list[TarSample]
    error: str | None
    n_cut: int
    n_others: int


@contextlib.contextmanager
def map_file(path: str | os.PathLike) -> Iterator[memoryview]:
    """Maps a file read-only; an empty one is an empty view."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            yield view


def index_tar(source: str | os.PathLike | memoryview) -> TarIndex:
    """Walks the headers of a tar; ustar, GNU and PAX, long names and sizes included.

    Nothing is raised for what the file holds: a tar that ends too early, or whose headers are
    damaged, gives the samples before that place. Its last one is left out if its extensions are
    not those of the sample before it, for then some of it is missing.

    Args:
      source: a path, or the bytes.

    Returns:
      TarIndex.

    Raises:
      OSError: the file cannot be opened.
    """
    if not isinstance(source, memoryview):
        with map_file(source) as data:
            return index_tar(data)
    samples: list[TarSample] = []
    n_others, error = 0, None
    try:
        for name, member in _members(source):
            match = _NAME.fullmatch(name) if member is not None else None
            if match is None:
                n_others += 1
                continue
            key, extension = match[1], match[2].lower()
            if not samples or samples[-1].key != key or extension in samples[-1].members:
                samples.append(TarSample(key, {}))
            samples[-1].members[extension] = member
    except ValueError as broken:
        error = str(broken)
    n_cut = 0
    if error is not None and samples:
        before = samples[-2].members.keys() if len(samples) > 1 else None
        if samples[-1].members.keys() != before:
            samples.pop()
            n_cut = 1
    return TarIndex(samples, error, n_cut, n_others)


def _members(data: memoryview) -> Iterator[tuple[str, Member | None]]:
    """Yields names and places, None for what is no file; raises ValueError where it ends badly."""
    position, size_of_file = 0, len(data)
    name = size = None  # from an extended header, for the next member
    sparse = False
    while True:
        head = bytes(data[position : position + BLOCK])
        if len(head) < BLOCK:
            raise ValueError(f"the tar ends at byte {position} without its end mark")
        if head == _END:
            return
        _check(head, position)
        kind, length = head[156:157], _number(head[124:136])
        if size is not None and kind in _REGULAR:
            length = size
        if length < 0:
            raise ValueError(f"the tar has a member of {length} bytes at byte {position}")
        start = position + BLOCK
        after = start + length + -length % BLOCK
        if start + length > size_of_file:
            raise ValueError(f"the tar ends inside the member at byte {position}")
        if kind in b"LKxg":
            if kind == b"L":
                name = bytes(data[start : start + length]).split(b"\0", 1)[0]
            elif kind == b"x":
                records = _pax(bytes(data[start : start + length]))
                name = records.get(b"path", name)
                size = int(records[b"size"]) if b"size" in records else size
                sparse = any(key.startswith(b"GNU.sparse") for key in records)
        else:
            if name is None:
                name = head[:100].partition(b"\0")[0]
                if head[257:263] == b"ustar\0" and head[345]:
                    name = head[345:500].partition(b"\0")[0] + b"/" + name
            regular = kind in _REGULAR and not sparse
            text = name.decode("utf-8", "surrogateescape")
            yield text, Member(position, start, length) if regular else None
            name, size, sparse = None, None, False
        position = after


def _check(head: bytes, position: int) -> None:
    stored = _number(head[148:156])
    total = _sum(head) - _sum(head[148:156]) + 8 * ord(" ")
    if stored != total:
        # Some old writers summed signed bytes.
        high = sum(b > 127 for b in head[:148]) + sum(b > 127 for b in head[156:])
        if stored != total - 256 * high:
            raise ValueError(f"there is no tar header at byte {position}")


def _sum(block: bytes | bytearray) -> int:
    # Most bytes of a header are zeros, and dropping them is faster than adding them.
    return sum(block.translate(None, b"\0"))


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: large numbers in base 256
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise ValueError(f"a tar header holds {field!r} in place of a number") from None


def _pax(body: bytes) -> dict[bytes, bytes]:
    """Reads ``length key=value`` records; raises ValueError where there is none."""
    records, position = {}, 0
    while position < len(body) and body[position]:
        digits = body[position : body.index(b" ", position)]
        end = position + int(digits)
        key, equals, value = body[position + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or end <= position or end > len(body):
            raise ValueError("a PAX header is damaged")
        records[key], position = value, end
    return records


def renamed_header(data: memoryview, member: Member, name: str) -> bytes:
    """Returns the header blocks of a member under a new name, everything else as it was."""
    encoded, head = name.encode(), bytearray(data[member.header : member.offset])
    if len(encoded) > 100 or member.size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size = member.size
        return info.tobuf(tarfile.GNU_FORMAT)
    head[:100] = encoded.ljust(100, b"\0")
    head[124:136] = b"%011o\0" % member.size
    head[345:500] = bytes(155)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % _sum(head)
    return bytes(head)


def read_shard(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields the samples of a tar as ``(key, {extension: bytes})``, complete ones only."""
    with map_file(path) as data:
        for sample in index_tar(data).samples:
            yield (
                sample.key,
                {e: bytes(data[m.offset : m.offset + m.size]) for e, m in sample.members.items()},
            )


def write_shard(
    path: str | os.PathLike,
    samples: Iterable[tuple[str, Mapping[str, bytes | str | Mapping]]],
) -> None:
    """Writes a webdataset tar, whole or not at all.

    Args:
      path: of the tar, replaced if it exists; missing folders are made.
      samples: ``(key, {extension: value})``: bytes, text for UTF-8, a mapping for JSON.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(temporary, "w") as tar:
            for key, members in samples:
                for extension, value in members.items():
                    if isinstance(value, Mapping):
                        value = json.dumps(value)
                    value = value.encode() if isinstance(value, str) else value
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(value)
                    tar.addfile(info, io.BytesIO(value))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
