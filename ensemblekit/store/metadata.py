"""HDF5's own structures as they stand in a file, looked at before libhdf5 follows them.

libhdf5 trusts what it reads: it walks a collection of texts without end where an entry has no size, and a tree again and
again where its nodes point to each other. What is looked at here: object headers and their continuations, the collections
("global heaps") of variable-length texts and of virtual datasets' sources, the trees of groups and of chunks of the first
version. Not looked at: trees of the second version and fractal heaps, which carry checksums.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

SIGNATURE = b"\x89HDF\r\n\x1a\n"
STORED_OUTSIDE, LAYOUT, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, ATTRIBUTES_ELSEWHERE = 0x07, 0x08, 0x0C, 0x10, 0x11, 0x15
LEADING = {STORED_OUTSIDE, LAYOUT, SYMBOL_TABLE}
PLAIN = {b"\3\0", b"\3\1", b"\3\2"}     # layouts of values in this file
BLOCK = 512                     # bytes that every HDF5 file of use has
LARGEST_HEADER = 16 << 20       # bytes of one object's header
LARGEST_HEAP = 64 << 20         # bytes of one collection of texts
MOST_SEARCHED = 64 << 20        # bytes of a file in which collections are searched
MOST_SUMMED = 1 << 20          # bytes of which a checksum is made here, as that is slow
WORD = 0xFFFFFFFF
FARTHEST = 1 << 62
UNDEFINED = (1 << 64) - 1


def metadata_of(fd: int) -> Metadata | None:
    """The structures of an open file; None where it is no HDF5 file, or one with addresses of another width."""
    size, base = os.fstat(fd).st_size, 0
    while base + BLOCK // 8 <= size:
        head = os.pread(fd, 16, base)
        if head[:8] == SIGNATURE:
            widths = head[13:15] if head[8] < 2 else head[9:11]
            return Metadata(fd, base) if head[8] < 4 and widths == b"\x08\x08" else None
        base = 2 * base or BLOCK
    return None


class Metadata:
    """The structures of one open file, of addresses and lengths of 8 bytes each. Errors are ValueErrors."""

    def __init__(self, fd: int, base: int):
        self.fd, self.base = fd, base
        self.seen: set[int] = set()         # objects that were looked at
        self.elsewhere: set[int] = set()    # objects whose values may stand elsewhere
        self.nodes: set[int] = set()        # of trees: each has one parent

    def read(self, at: int, n: int) -> bytes:
        at += self.base
        data = b"" if at > FARTHEST else os.pread(self.fd, n, at)
        if len(data) < n:
            raise ValueError(f"{n} bytes at {at} lie behind the end of the file")
        return data

    def check_superblock(self) -> None:
        """Look at the objects that libhdf5 reads when it opens the file. Raises ValueError."""
        head = self.read(0, 48)
        if head[8] < 2:
            head = self.read(0, 96)
            at = 56 if head[8] == 0 else 60
            root, cached, tree, heap = struct.unpack_from("<8xQI4xQQ", head, at)
            if cached == 1:
                self.check_tree(tree, 0, 8)
                self.check_names(heap)
                self.nodes.clear()      # the root's header names them again
        else:
            extension, _, root = struct.unpack_from("<QQQ", head, 20)
            if extension != UNDEFINED:
                self.check_object(extension)
        self.check_object(root)

    def check_object(self, address: int) -> bool:
        """Look at an object's header and at what it leads to: whether its values may stand elsewhere. Raises ValueError."""
        if address in self.seen:
            return address in self.elsewhere
        self.seen.add(address)
        for kind, flags, data in self.messages(address):
            if kind == STORED_OUTSIDE or (kind == LAYOUT and data[:2] not in PLAIN):
                self.elsewhere.add(address)
            if kind not in LEADING or flags & 2:       # a shared one stands in a structure with a checksum
                continue
            if kind == LAYOUT and len(data) >= 14 and data[0] >= 3:
                if data[:2] == b"\4\3":
                    self.check_sources(*struct.unpack_from("<QI", data, 2))
                elif data[:2] == b"\3\2":
                    rank, root = struct.unpack_from("<BQ", data, 2)
                    self.check_tree(root, 1, 8 + 8 * rank)
            elif kind == LAYOUT and len(data) >= 16 and data[2] == 2:
                self.check_tree(struct.unpack_from("<Q", data, 8)[0], 1, 8 + 8 * data[1])
            elif kind == SYMBOL_TABLE and len(data) >= 16:
                tree, heap = struct.unpack_from("<QQ", data)
                self.check_tree(tree, 0, 8)
                self.check_names(heap)
            elif kind == STORED_OUTSIDE and len(data) >= 16:
                self.check_names(struct.unpack_from("<Q", data, 8)[0])
        return address in self.elsewhere

    def messages(self, address: int) -> Iterator[tuple[int, int, bytes]]:
        """(kind, flags, bytes) of each message of an object header of either version."""
        head = self.read(address, 16)
        if head[0] == 1:
            first, skip, entry, tail = address + 16, 0, 8, 0
            length = int.from_bytes(head[8:12], "little")
        elif head[:5] == b"OHDR\2":
            flags = head[5]
            at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            length = int.from_bytes(self.read(address + at, width), "little")
            first, skip, entry, tail = address + at + width, 4, 6 if flags & 4 else 4, 4
        else:
            raise ValueError(f"no object's header stands at {address}")
        blocks, begun, total = [(first, length, 0)], set(), 0
        while blocks:
            start, length, at = blocks.pop(0)
            total += length
            if start in begun or total > LARGEST_HEADER:
                raise ValueError(f"the header at {address} continues in itself, or without end")
            begun.add(start)
            body = self.read(start, length)
            while at + entry <= len(body):
                if entry == 8:
                    kind, size, flags = struct.unpack_from("<HHB", body, at)
                else:
                    kind, size, flags = struct.unpack_from("<BHB", body, at)
                data = body[at + entry:at + entry + size]
                if kind == CONTINUATION and len(data) >= 16:
                    where, n = struct.unpack_from("<QQ", data)
                    blocks.append((where, max(0, n - tail), skip))
                yield kind, flags, data
                at += entry + size

    def check_text(self, address: int, name: bytes, most: int) -> None:
        """Look at where the text of an attribute stands. Raises ValueError, also where it is longer than `most` bytes."""
        for kind, flags, data in self.messages(address):
            outside = kind == ATTRIBUTES_ELSEWHERE and data[2 + 2 * (data[1] & 1):][:8] != b"\xff" * 8
            if outside or (kind == ATTRIBUTE and flags & 2):
                self.check_all_texts()
            if kind != ATTRIBUTE or len(data) < 9 or flags & 2:
                continue
            version, named, typed, spaced = data[0], *struct.unpack_from("<HHH", data, 2)
            at = 9 if version == 3 else 8
            if data[at:at + named].rstrip(b"\0") != name:
                continue
            padded = (-(-n // 8) * 8 for n in (named, typed, spaced)) if version == 1 else (named, typed, spaced)
            value = data[at + sum(padded):]
            if len(value) < 16:
                raise ValueError(f"the attribute {name!r} is cut off")
            heaps: dict[int, dict[int, tuple[int, int]]] = {}
            for place in range(0, len(value) - 15, 16):
                length, collection, number = struct.unpack_from("<IQI", value, place)
                if collection not in heaps:
                    heaps[collection] = self.check_heap(collection)
                if length > min(most, heaps[collection].get(number, (0, 0))[1]):
                    raise ValueError(f"the attribute {name!r} says it has {length} bytes: too many, or not in the file")

    def check_all_texts(self) -> None:
        """Look at every collection of texts of a file that is not large, where it is not known which one is meant."""
        if 0 in self.seen or os.fstat(self.fd).st_size > MOST_SEARCHED:
            return
        self.seen.add(0)
        with mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ) as whole:
            at = whole.find(b"GCOL\1\0\0\0")
            while at >= 0:
                self.check_heap(at - self.base)
                at = whole.find(b"GCOL\1\0\0\0", at + 8)

    def check_sources(self, address: int, number: int) -> None:
        """Look at the sources of a virtual dataset, which libhdf5 takes apart before it compares their checksum."""
        begin, length = self.check_heap(address).get(number, (0, 0))
        if not 0 < length <= MOST_SUMMED:
            return
        block = self.read(address + begin, length)
        if len(block) < 4 or checksum(block[:-4]) != int.from_bytes(block[-4:], "little"):
            raise ValueError("the sources of its virtual dataset are damaged")

    def check_heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Number -> (place, bytes) of the entries of a collection ("global heap"). Raises ValueError."""
        if address in (0, UNDEFINED):
            return {}
        head = self.read(address, 16)
        size = int.from_bytes(head[8:], "little")
        if head[:4] != b"GCOL" or not 16 <= size <= LARGEST_HEAP:
            raise ValueError(f"no collection of texts stands at {address}")
        body, at = self.read(address, size), 16
        entries: dict[int, tuple[int, int]] = {}
        while at + 16 <= size:
            number, _, length = struct.unpack_from("<HH4xQ", body, at)
            # The entry of number 0 is what is free, itself and all; one that says 0 would be walked forever.
            step = 16 + -(-length // 8) * 8 if number else length
            if step < (16 if number else 1) or at + step > size or number in entries:
                raise ValueError(f"the collection of texts at {address} is damaged")
            if number:
                entries[number] = at + 16, length
            at += step
        return entries

    def check_names(self, address: int) -> None:
        """Look at a heap of names ("local heap"). Raises ValueError where its list of free places does not end."""
        head = self.read(address, 32)
        size, free, begin = struct.unpack_from("<QQQ", head, 8)
        if head[:4] != b"HEAP" or size > LARGEST_HEAP:
            raise ValueError(f"no heap of names stands at {address}")
        seen = set()
        while free not in (1, UNDEFINED):
            if free in seen or free + 16 > size:
                raise ValueError(f"the heap of names at {address} is damaged")
            seen.add(free)
            free = int.from_bytes(self.read(begin + free, 8), "little")

    def check_tree(self, root: int, kind: int, key: int) -> None:
        """Look at a tree of the first version. Raises ValueError where a node is met twice, or stands at the wrong height."""
        below = [(root, -1)]
        while below:
            address, height = below.pop()
            if address == UNDEFINED:
                continue
            head = self.read(address, 24)
            level, entries = head[5], int.from_bytes(head[6:8], "little")
            if head[:5] != b"TREE" + bytes([kind]) or height not in (-1, level) or address in self.nodes:
                raise ValueError(f"the tree at {root} is damaged")
            self.nodes.add(address)
            if level:
                body = self.read(address + 24, entries * (key + 8))
                below += [(int.from_bytes(body[at:at + 8], "little"), level - 1) for at in range(key, len(body), key + 8)]


def checksum(data: bytes) -> int:
    """Jenkins' lookup3 hash of HDF5's metadata."""
    def rot(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & WORD

    a = b = c = (0xDEADBEEF + len(data)) & WORD
    if not data:
        return c
    last = (len(data) - 1) // 12 * 12
    for x, y, z in struct.iter_unpack("<3I", data[:last]):
        a, b, c = (a + x) & WORD, (b + y) & WORD, (c + z) & WORD
        for k in (4, 6, 8, 16, 19, 4):      # the three change places each time
            a, c = ((a - c) & WORD) ^ rot(c, k), (c + b) & WORD
            a, b, c = b, c, a
    x, y, z = struct.unpack("<3I", data[last:].ljust(12, b"\0"))
    a, b, c = (a + x) & WORD, (b + y) & WORD, (c + z) & WORD
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rot(b, k)) & WORD
        a, b, c = b, c, a
    return b
