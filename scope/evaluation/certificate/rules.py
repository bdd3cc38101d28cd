"""The rules by which a certificate is measured and judged, as a number that is part of its key.

Version 0.1.0 had no number: it hashed the source text of five modules in front of what a certificate depends on. Those rules
are number 1. The text itself is gone; what SHA-256 makes of it is kept, so that certificates of that version are still found.
"""

import hashlib

RULES = 1
"""Raise this by one whenever the same weights and text could come to another certificate: which tokens count, what is measured
and how, which other readings are tried, what the baseline is, where the limits of the verdict lie. A new wording is no new
rule. Certificates of another number are measured anew."""


def rules_hash(depends_on: bytes) -> str:
    """The part of a key that stands for the rules and for what else a certificate depends on."""
    return hashlib.sha256(b"rules %d\n" % RULES + depends_on).hexdigest()


def rules_hash_of_0_1_0(depends_on: bytes) -> str | None:
    """What version 0.1.0 put in its place; None once the rules are no longer those of that version."""
    return _continue(*_AFTER_SOURCES_OF_0_1_0, depends_on) if RULES == 1 else None


# SHA-256 (FIPS 180-4) after the 31,296 bytes in whole blocks of the five sources, and the 36 bytes that follow these.
_AFTER_SOURCES_OF_0_1_0 = (
    "e9f4933e6615a2532a1feb5f48224d074d1202da2b56d3dd857c50ce630441c0",
    31_296,
    b'e to explain.")\n    return variance\n',
)
_PRIMES = [p for p in range(2, 312) if all(p % q for q in range(2, p))]
_ROUND_CONSTANTS = [int(p ** (1 / 3) % 1 * 2**32) for p in _PRIMES]
_32_BITS = 2**32 - 1


def _continue(state: str, n_hashed: int, tail: bytes, more: bytes) -> str:
    """SHA-256 of `n_hashed` bytes that led to `state`, then of `tail` and `more`; hashlib cannot begin in the middle."""
    words = [int(state[i : i + 8], 16) for i in range(0, 64, 8)]
    rest = tail + more + b"\x80"
    rest += bytes(-(len(rest) + 8) % 64) + (8 * (n_hashed + len(tail + more))).to_bytes(8, "big")
    for start in range(0, len(rest), 64):
        words = _compress(words, rest[start : start + 64])
    return "".join(f"{word:08x}" for word in words)


def _compress(state: list[int], block: bytes) -> list[int]:
    def rotated(x: int, *bits: int) -> int:
        first, second, third = (x >> n | x << (32 - n) for n in bits)
        return (first ^ second ^ third) & _32_BITS

    w = [int.from_bytes(block[i : i + 4], "big") for i in range(0, 64, 4)]
    for i in range(16, 64):
        early, late = w[i - 15], w[i - 2]
        small_0 = (early >> 7 | early << 25) ^ (early >> 18 | early << 14) ^ early >> 3
        small_1 = (late >> 17 | late << 15) ^ (late >> 19 | late << 13) ^ late >> 10
        w.append((w[i - 16] + (small_0 & _32_BITS) + w[i - 7] + (small_1 & _32_BITS)) & _32_BITS)
    a, b, c, d, e, f, g, h = state
    for constant, word in zip(_ROUND_CONSTANTS, w, strict=True):
        one = h + rotated(e, 6, 11, 25) + (e & f ^ ~e & g) + constant + word
        two = rotated(a, 2, 13, 22) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (one + two) & _32_BITS, a, b, c, (d + one) & _32_BITS, e, f, g
    return [(old + new) & _32_BITS for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True)]
