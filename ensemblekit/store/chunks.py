"""The chunk index of a dataset, HDF5's version 1 B-tree, grown in place: chunks are added behind the last one.

Nothing of it carries a checksum, and a node counts only as many children as its header says. So a chunk is added by
writing its address first and the number of children last: whoever reads meanwhile sees the tree before, or after.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Sequence

import numpy as np

FANOUT = 64             # children of a node: twice HDF5's K for chunk indexes, 32 by default
HEADER = 24
UNDEFINED = (1 << 64) - 1
END_OF_FILE_AT = 40     # byte of the end of the file in a version 0 superblock
SIGNATURE = b"\x89HDF\r\n\x1a\n"


class ChunkTree:
    """The B-tree of one dataset whose chunks are allocated in order.

    Arguments:
        root: address of the root node in the file.
        shape: of a row.
        chunk: rows of a chunk, then its item axes.
        itemsize: bytes of a number.
        rows: the most rows there will ever be; they fix the height of the tree.
    """

    def __init__(self, root: int, shape: Sequence[int], chunk: Sequence[int], itemsize: int, rows: int):
        self.root = root
        self.chunk = tuple(chunk)
        self.grid = tuple(-(-n // c) for n, c in zip(shape, chunk[1:], strict=True))
        self.tiles = math.prod(self.grid)
        """Chunks of one stack of rows."""
        self.nbytes = math.prod(chunk) * itemsize
        most = max(1, -(-rows // chunk[0]) * self.tiles)
        self.top = 0
        while FANOUT ** (self.top + 1) < most:
            self.top += 1
        self.entry = np.dtype([("child", "<u8"), ("nbytes", "<u4"), ("mask", "<u4"), ("offset", "<u8", (len(chunk) + 1,))])
        self.key = self.entry.itemsize - 8
        self.size = HEADER + self.key + FANOUT * self.entry.itemsize
        """Bytes of a node."""
        self.n = 0
        """Chunks that the tree holds."""
        self._nodes = {(level, 0): root + (self.top - level) * self.size for level in range(self.top + 1)}

    def node(self, level: int, number: int, left: int, children: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of a node, all its keys in place."""
        span = FANOUT ** level
        numbers = (number * FANOUT + np.arange(FANOUT + 1)) * span
        entries = np.zeros(FANOUT + 1, self.entry)
        rest = numbers
        for axis in range(len(self.grid), 0, -1):
            entries["offset"][:, axis] = rest % self.grid[axis - 1] * self.chunk[axis]
            rest = rest // self.grid[axis - 1]
        entries["offset"][:, 0] = rest * self.chunk[0]
        entries["nbytes"] = self.nbytes
        entries["child"] = UNDEFINED
        entries["child"][1:len(children) + 1] = children        # a key, then the child right of it
        head = struct.pack("<4sBBHQQ", b"TREE", 1, level, len(children), left, UNDEFINED)
        return head + entries.tobytes()[8:]

    def empty(self) -> bytes:
        """The tree without chunks: the root and below it the first node of every level, as HDF5 goes down by them."""
        return b"".join(self.node(level, 0, UNDEFINED, [self._nodes[level - 1, 0]] if level else [])
                        for level in range(self.top, -1, -1))

    def nodes_for(self, n: int) -> int:
        """Nodes that are to be made before the tree can hold n chunks."""
        new = 0
        for level in range(self.top):       # the first of each level is there from the beginning
            span = FANOUT ** (level + 1)
            new += max(1, -(-n // span)) - max(1, -(-self.n // span))
        return new

    def _address(self, fd: int, level: int, number: int) -> int:
        """Where a node stands that is in the tree already."""
        if (level, number) not in self._nodes:
            above = self._address(fd, level + 1, number // FANOUT)
            at = above + HEADER + self.key + number % FANOUT * self.entry.itemsize
            self._nodes[level, number] = struct.unpack("<Q", os.pread(fd, 8, at))[0]
        return self._nodes[level, number]

    def add(self, fd: int, addresses: np.ndarray, new_node: Callable[[int], int]) -> list[tuple[bytes, int]]:
        """Add chunks behind the last one; `new_node(size)` gives the place of a new node.

        Returns the writes, (bytes, at), that are still to be done, in this order, for the chunks to be seen.
        """
        done, late = 0, list[tuple[bytes, int]]()
        while done < len(addresses):
            number, first = divmod(self.n, FANOUT)
            some = addresses[done:done + FANOUT - first]
            self._put(fd, 0, number, first, some, new_node, late)
            done += len(some)
            self.n += len(some)
        return late

    def _put(self, fd: int, level: int, number: int, first: int, children: np.ndarray, new_node: Callable[[int], int],
             late: list[tuple[bytes, int]]) -> None:
        if first or number == 0:      # the node is there: its children, then how many
            at = self._address(fd, level, number)
            node = self.node(level, number, UNDEFINED, [0] * first + list(children))
            start = HEADER + self.key + first * self.entry.itemsize
            os.pwrite(fd, node[start:start + len(children) * self.entry.itemsize], at + start)
            late.append((struct.pack("<H", first + len(children)), at + 6))
            return
        at = new_node(self.size)
        before = self._address(fd, level, number - 1)
        os.pwrite(fd, self.node(level, number, before, children), at)
        late.append((struct.pack("<Q", at), before + 16))
        self._nodes[level, number] = at
        self._put(fd, level + 1, number // FANOUT, number % FANOUT, np.array([at], np.uint64), new_node, late)

    def cut(self, fd: int, n: int) -> None:
        """Keep the first n chunks, whatever the nodes say beyond; what is above first."""
        for level in range(self.top, -1, -1):
            span = FANOUT ** level
            entries = max(-(-n // span), 1 if level else 0)
            number = (entries - 1) // FANOUT if entries else 0
            at = self._address(fd, level, number)
            used = struct.pack("<H", entries - number * FANOUT)
            if os.pread(fd, 2, at + 6) != used:
                os.pwrite(fd, used, at + 6)
        self._nodes = {(level, number): at for (level, number), at in self._nodes.items()
                       if number == 0 or number < -(-n // FANOUT ** (level + 1))}
        self.n = n
