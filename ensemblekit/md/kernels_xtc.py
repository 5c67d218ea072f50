"""Loops that unpack XTC frames, compiled. Parallel work is the engine's affair.

The format packs whole numbers: each atom's place on a grid, either as one mixed-radix number of all three axes, or, for
runs of neighbours, as a small difference to the atom before. Bits are read from a 64-bit window over the bytes, and a
mixed-radix number is divided as one 64-bit integer, where the usual readers go byte by byte.
"""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

HEADER = 52
"""Bytes of magic number, atoms, step, time and box; the packed coordinates follow."""

RADICES = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 101, 128, 161, 203, 256, 322,
                    406, 512, 645, 812, 1024, 1290, 1625, 2048, 2580, 3250, 4096, 5060, 6501, 8192, 10321, 13003, 16384,
                    20642, 26007, 32768, 41285, 52015, 65536, 82570, 104031, 131072, 165140, 208063, 262144, 330280,
                    416127, 524287, 660561, 832255, 1048576, 1321122, 1664510, 2097152, 2642245, 3329021, 4194304,
                    5284491, 6658042, 8388607, 10568983, 13316085, 16777216], np.int64)
"""The format's sizes of small differences: about 2^(k/3)."""
FIRST = 9
OK, BROKEN, HUGE = 0, 1, 2
"""What became of a frame: read; not what the format allows; numbers of more than 64 bits, for another reader."""


@kernel
def big_int(data, at):
    """Four bytes, most significant first, as a signed number."""
    value = (np.int64(data[at]) << 24) | (np.int64(data[at + 1]) << 16) | (np.int64(data[at + 2]) << 8) | np.int64(data[at + 3])
    return value - (np.int64(1) << 32) if value >= np.int64(1) << 31 else value


@kernel
def frame_bytes(data, at, end):
    """(bytes of the frame that begins at `at`, its atoms); (-1, 0) where no frame begins, (0, atoms) where it is cut off."""
    if at + HEADER + 4 > end:
        return np.int64(0), np.int64(0)
    magic = big_int(data, at)
    if magic != 1995 and magic != 2023:
        return np.int64(-1), np.int64(0)
    atoms = big_int(data, at + 4)
    if atoms < 0 or big_int(data, at + HEADER) != atoms:
        return np.int64(-1), atoms
    if atoms <= 9:
        size = HEADER + 4 + 12 * atoms
    else:
        wide = 8 if magic == 2023 else 4
        place = at + HEADER + 4 + 32
        if place + wide > end:
            return np.int64(0), atoms
        packed = big_int(data, place)
        if wide == 8:
            packed = (packed << 32) | (big_int(data, place + 4) & 0xFFFFFFFF)
        if packed < 0:
            return np.int64(-1), atoms
        size = HEADER + 4 + 32 + wide + (packed + 3) // 4 * 4
    if at + size > end:
        return np.int64(0), atoms
    return size, atoms


@kernel
def find_frames(data, at, offsets):
    """Fill offsets with where frames begin, from `at` on; (frames found, where the search stands, what ended it).

    Ended by 0: no room left in offsets, 1: the end of the file, 2: a frame that is cut off, 3: bytes that are no frame.
    """
    end = len(data)
    n = 0
    while True:
        if at == end:
            return n, at, 1
        if n == len(offsets):
            return n, at, 0
        size, _ = frame_bytes(data, at, end)
        if size <= 0:
            return n, at, 2 if size == 0 else 3
        offsets[n] = at
        n += 1
        at += size


@kernel
def window(data, bit):
    """The 57 bits or more that begin at `bit`, left-aligned in 64."""
    k = np.uint64(bit) >> np.uint64(3)      # unsigned: one load and one swap of bytes, instead of eight guarded ones
    word = ((np.uint64(data[k]) << np.uint64(56)) | (np.uint64(data[k + np.uint64(1)]) << np.uint64(48))
            | (np.uint64(data[k + np.uint64(2)]) << np.uint64(40)) | (np.uint64(data[k + np.uint64(3)]) << np.uint64(32))
            | (np.uint64(data[k + np.uint64(4)]) << np.uint64(24)) | (np.uint64(data[k + np.uint64(5)]) << np.uint64(16))
            | (np.uint64(data[k + np.uint64(6)]) << np.uint64(8)) | np.uint64(data[k + np.uint64(7)]))
    return word << (np.uint64(bit) & np.uint64(7))


@kernel
def bits_at(data, bit, count):
    """`count` bits (0 to 57) as a number, most significant first."""
    if count == 0:
        return np.uint64(0)
    return window(data, bit) >> np.uint64(64 - count)


@kernel
def swapped(w):
    """The eight bytes the other way round."""
    low, mid = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
    w = ((w & low) << np.uint64(8)) | ((w >> np.uint64(8)) & low)
    w = ((w & mid) << np.uint64(16)) | ((w >> np.uint64(16)) & mid)
    return (w << np.uint64(32)) | (w >> np.uint64(32))


@kernel
def mixed_short(data, bit, count):
    """A mixed-radix number of `count` bits (0 to 56): its bytes come least significant first, the last one short."""
    w = window(data, bit)
    whole = np.uint64(count) & np.uint64(0x38)      # bits in whole bytes
    rest = np.uint64(count) & np.uint64(7)
    last = ((w << whole) >> np.uint64(8)) >> (np.uint64(56) - rest)     # two steps: a shift by 64 has no meaning
    return (swapped(w) & ((np.uint64(1) << whole) - np.uint64(1))) | (last << whole)


@kernel
def mixed_at(data, bit, count):
    """A mixed-radix number of `count` bits (0 to 64): its bytes come least significant first, the last one short."""
    if count <= 56:
        return mixed_short(data, bit, count)
    low = mixed_short(data, bit, 32)
    return low | (mixed_short(data, bit + 32, count - 32) << np.uint64(32))


@kernel
def bit_length(value):
    n = 0
    while value > np.uint64(0):
        n += 1
        value >>= np.uint64(1)
    return n


@kernel
def product_bits(a, b, c):
    """Bits of a b c, each below 2^25."""
    ab = np.uint64(a) * np.uint64(b)
    low = (ab & np.uint64(0xFFFFFFFF)) * np.uint64(c)
    high = (ab >> np.uint64(32)) * np.uint64(c) + (low >> np.uint64(32))
    return 32 + bit_length(high) if high > np.uint64(0) else bit_length(low)


@kernel
def divided(radix, small):
    """(radix, inverse, shift) with v // radix == v * inverse >> shift for all v of `small` bits, 31 at the most."""
    if radix == 0 or small > 31:
        return np.uint64(radix), np.uint64(0), np.uint64(0)
    bits = small
    r = np.uint64(1)
    while np.int64(r) < radix:
        r <<= np.uint64(1)
        bits += 1
    one = np.uint64(1) << np.uint64(bits)
    return np.uint64(radix), (one + np.uint64(radix) - np.uint64(1)) // np.uint64(radix), np.uint64(bits)


@kernel
def read_frame(data, at, place, last, radices, floats, ints, out, box):
    """Unpack the frame at byte `at`: atom i goes to out[place[i]] where that is 0 or more, up to atom `last`.

    data: uint8, with 16 bytes to spare behind the frame. place: (atoms,), or empty for every atom in its order.
    floats, ints: one number each, views of the same four bytes. out: (selected, 3), box: (3, 3); both in angstrom.
    Returns (time in ps, OK, BROKEN or HUGE).
    """
    ints[0] = big_int(data, at + 12)
    time = floats[0]
    for k in range(9):
        ints[0] = big_int(data, at + 16 + 4 * k)
        box[k // 3, k % 3] = floats[0] * np.float32(10.0)
    magic = big_int(data, at)
    atoms = big_int(data, at + 4)
    every = len(place) == 0
    ten = np.float32(10.0)
    q = at + HEADER + 4
    if atoms <= 9:
        for i in range(atoms):
            j = i if every else place[i]
            for k in range(3):
                if j >= 0:
                    ints[0] = big_int(data, q)
                    out[j, k] = floats[0] * ten
                q += 4
        return time, OK
    ints[0] = big_int(data, q)
    scale = np.float32(1.0) / floats[0]
    low0, low1, low2 = big_int(data, q + 4), big_int(data, q + 8), big_int(data, q + 12)
    size0 = big_int(data, q + 16) - low0 + 1
    size1 = big_int(data, q + 20) - low1 + 1
    size2 = big_int(data, q + 24) - low2 + 1
    small = big_int(data, q + 28)
    q += 40 if magic == 2023 else 36
    size, _ = frame_bytes(data, at, len(data))
    end = (at + size) * 8
    if size0 <= 0 or size1 <= 0 or size2 <= 0 or small < 0 or small >= len(radices) or size <= 0:
        return time, BROKEN
    apart = (size0 | size1 | size2) > 0xFFFFFF
    if apart:
        wide0, wide1, wide2 = bit_length(np.uint64(size0)), bit_length(np.uint64(size1)), bit_length(np.uint64(size2))
        whole = 0
    else:
        whole = product_bits(size0, size1, size2)
        wide0 = wide1 = wide2 = 0
        if whole > 64:
            return time, HUGE
    u1, u2 = np.uint64(size1), np.uint64(size2)
    below = radices[max(FIRST, small - 1)] // 2
    half = radices[small] // 2
    wide_radix, inverse, shift = divided(radices[small], small)
    bit = q * 8
    run = np.int64(0)
    i = 0
    while i <= last:
        if bit + 80 > end + 64:
            return time, BROKEN
        if apart:
            x = np.int64(bits_at(data, bit, wide0))
            y = np.int64(bits_at(data, bit + wide0, wide1))
            z = np.int64(bits_at(data, bit + wide0 + wide1, wide2))
            bit += wide0 + wide1 + wide2
        else:
            value = mixed_at(data, bit, whole)
            bit += whole
            rest = value // u2
            z = np.int64(value - rest * u2)
            first = rest // u1
            y = np.int64(rest - first * u1)
            x = np.int64(first)
        x += low0
        y += low1
        z += low2
        flags = bits_at(data, bit, 6)
        change = np.int64(0)
        if flags & np.uint64(32):
            bit += 6
            run = np.int64(flags & np.uint64(31))
            change = np.int64(run % 3)
            run -= change
            change -= 1
        else:
            bit += 1
        if run > 0:
            if i + run // 3 >= atoms:
                return time, BROKEN
            px, py, pz = x, y, z
            for k in range(0, run, 3):
                if small <= 31:         # the format gives `small` bits to three numbers
                    # a number of `small` bits times the inverse fits in 64, and its error stays below one:
                    # Granlund & Montgomery, Proc. PLDI '94, 61, theorem 4.2
                    value = mixed_short(data, bit, small)
                    rest = (value * inverse) >> shift
                    dz = np.int64(value - rest * wide_radix)
                    first = (rest * inverse) >> shift
                    dy = np.int64(rest - first * wide_radix)
                    dx = np.int64(first)
                else:
                    value = mixed_at(data, bit, small)
                    rest = value // wide_radix
                    dz = np.int64(value - rest * wide_radix)
                    first = rest // wide_radix
                    dy = np.int64(rest - first * wide_radix)
                    dx = np.int64(first)
                bit += small
                nx, ny, nz = dx + px - half, dy + py - half, dz + pz - half
                if k == 0:              # the first two atoms of a run are exchanged, which packs water better
                    j = i if every else place[i]
                    if j >= 0:
                        out[j, 0] = np.float32(nx) * scale * ten
                        out[j, 1] = np.float32(ny) * scale * ten
                        out[j, 2] = np.float32(nz) * scale * ten
                    i += 1
                    j = i if every else place[i]
                    if j >= 0:
                        out[j, 0] = np.float32(x) * scale * ten
                        out[j, 1] = np.float32(y) * scale * ten
                        out[j, 2] = np.float32(z) * scale * ten
                else:
                    j = i if every else place[i]
                    if j >= 0:
                        out[j, 0] = np.float32(nx) * scale * ten
                        out[j, 1] = np.float32(ny) * scale * ten
                        out[j, 2] = np.float32(nz) * scale * ten
                i += 1
                px, py, pz = nx, ny, nz
        else:
            j = i if every else place[i]
            if j >= 0:
                out[j, 0] = np.float32(x) * scale * ten
                out[j, 1] = np.float32(y) * scale * ten
                out[j, 2] = np.float32(z) * scale * ten
            i += 1
        small += change
        if small < 0 or small >= len(radices):
            return time, BROKEN
        if change < 0:
            half = below
            below = radices[small - 1] // 2 if small > FIRST else 0
        elif change > 0:
            below = half
            half = radices[small] // 2
        if change != 0:
            if radices[small] == 0:
                return time, BROKEN
            wide_radix, inverse, shift = divided(radices[small], small)
    if bit > end:
        return time, BROKEN
    return time, OK


@kernel
def read_frames(data, offsets, place, last, radices, floats, ints, out, boxes, times):
    """Unpack frames one after the other; (frames read, what stopped it: OK, BROKEN or HUGE)."""
    for f in range(len(offsets)):
        time, state = read_frame(data, offsets[f], place, last, radices, floats, ints, out[f], boxes[f])
        if state != OK:
            return f, state
        times[f] = time
    return len(offsets), OK
