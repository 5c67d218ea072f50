"""Numbers out of text: a plain loop over bytes, outside Python's lock."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

POWERS = 10.0 ** np.arange(23)
"""Powers of ten that float64 holds exactly."""


@kernel
def parse_numbers(text, out, odd):
    """The numbers in text (uint8), between blanks and parentheses, into out; returns (how many, how many odd ones).

    Exact where both the digits (below 2^53) and the power of ten (up to 22) are exact in float64, as one rounding is left
    (Clinger 1990). Others are left to the caller: odd (len(out), 3) lists number, first and last byte. Stops at the first
    number for which out has no room.
    """
    n, at, count, strange = len(text), 0, 0, 0
    while at < n:
        c = text[at]
        if c <= 32 or c == 40 or c == 41:
            at += 1
            continue
        if count == len(out):
            return count + 1, strange
        start, negative = at, c == 45
        if c == 45 or c == 43:
            at += 1
        digits, mantissa, power, good, any_digit = 0, np.uint64(0), 0, True, False
        dot = False
        while at < n:
            c = text[at]
            if 48 <= c <= 57:
                any_digit = True
                if digits < 19:
                    mantissa = mantissa * np.uint64(10) + np.uint64(c - 48)
                    if mantissa > 0:
                        digits += 1
                    if dot:
                        power -= 1
                else:
                    good = False
            elif c == 46 and not dot:
                dot = True
            else:
                break
            at += 1
        if at < n and (text[at] == 101 or text[at] == 69):
            at += 1
            down, exponent, some = False, 0, False
            if at < n and (text[at] == 45 or text[at] == 43):
                down = text[at] == 45
                at += 1
            while at < n and 48 <= text[at] <= 57:
                some = True
                if exponent < 10000:
                    exponent = exponent * 10 + (text[at] - 48)
                at += 1
            good = good and some
            power += -exponent if down else exponent
        if at < n and not (text[at] <= 32 or text[at] == 40 or text[at] == 41):
            good = False
            while at < n and not (text[at] <= 32 or text[at] == 40 or text[at] == 41):
                at += 1
        if good and any_digit and mantissa < np.uint64(1 << 53) and -22 <= power <= 22:
            value = float(mantissa)
            value = value * POWERS[power] if power >= 0 else value / POWERS[-power]
            out[count] = -value if negative else value
        else:
            odd[strange, 0], odd[strange, 1], odd[strange, 2] = count, start, at
            strange += 1
        count += 1
    return count, strange
