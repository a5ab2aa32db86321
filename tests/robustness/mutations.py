"""Ways to break a file. Each is a function of the content and a random generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["MUTATIONS", "mutate"]

Rng = np.random.Generator
#: Things that hurt readers of text: absurd numbers, unbalanced brackets, bytes that are no UTF-8, control characters.
_INSERTS = (
    b"\xff\xfe",
    b"\x00",
    b"999999999999999999999999",
    b"-1",
    b"1e999",
    b"nan",
    b"((((((((((" * 30,
    b"'" * 3,
    b"\n" * 20,
    b"\r",
    b"{}",
    b"&lol;",
    b"<!DOCTYPE lolz [<!ENTITY lol 'lol'>]>",
    b"__import__('os').system('true')",
    b"[" * 5000,
    "ü€\u2028".encode(),
)


def _cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(0, max(len(data), 1)))]


def _cut_start(data: bytes, rng: Rng) -> bytes:
    return data[int(rng.integers(0, max(len(data), 1))) :]


def _flip_bits(data: bytes, rng: Rng) -> bytes:
    array = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        if array:
            array[int(rng.integers(len(array)))] ^= 1 << int(rng.integers(8))
    return bytes(array)


def _overwrite(data: bytes, rng: Rng) -> bytes:
    array = bytearray(data)
    if array:
        start = int(rng.integers(len(array)))
        num = int(rng.integers(1, 33))
        fill = [b"\x00", b"\xff", b"\x7f", bytes(rng.integers(0, 256, num, dtype=np.uint8))][int(rng.integers(4))]
        array[start : start + num] = (fill * num)[: len(array[start : start + num])]
    return bytes(array)


def _insert(data: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(data) + 1))
    return data[:start] + _INSERTS[int(rng.integers(len(_INSERTS)))] + data[start:]


def _remove(data: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(data) + 1))
    return data[:start] + data[start + int(rng.integers(1, 64)) :]


def _repeat(data: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(data) + 1))
    part = data[start : start + int(rng.integers(1, 200))]
    return data[:start] + part * int(rng.integers(2, 20)) + data[start:]


def _swap(data: bytes, rng: Rng) -> bytes:
    middle = int(rng.integers(0, len(data) + 1))
    return data[middle:] + data[:middle]


def _garbage(data: bytes, rng: Rng) -> bytes:
    del data
    return bytes(rng.integers(0, 256, int(rng.integers(0, 3000)), dtype=np.uint8))


def _empty(data: bytes, rng: Rng) -> bytes:
    del data, rng
    return b""


def _utf16(data: bytes, rng: Rng) -> bytes:
    del rng
    return data.decode("latin-1").encode("utf-16")


def _huge_numbers(data: bytes, rng: Rng) -> bytes:
    """Little-endian 64-bit numbers that are absurd as a size or an offset."""
    array = bytearray(data)
    if len(array) > 8:
        start = int(rng.integers(0, len(array) - 8))
        value = [2**62, 2**63 - 1, 2**40, 2**31, 0xFFFFFFFFFFFFFFFF][int(rng.integers(5))]
        array[start : start + 8] = value.to_bytes(8, "little")
    return bytes(array)


MUTATIONS: dict[str, Callable[[bytes, Rng], bytes]] = {
    "cut": _cut,
    "cut start": _cut_start,
    "flip bits": _flip_bits,
    "overwrite": _overwrite,
    "insert": _insert,
    "remove": _remove,
    "repeat": _repeat,
    "swap": _swap,
    "garbage": _garbage,
    "empty": _empty,
    "utf-16": _utf16,
    "huge numbers": _huge_numbers,
}
#: These give the same or similar files each time, so they are drawn rarely.
_RARE = ("garbage", "empty", "utf-16", "swap", "cut start")


def mutate(data: bytes, rng: Rng) -> tuple[str, bytes]:
    """
    :param data: of a whole file
    :param rng: decides everything
    :return: name of the mutation, broken content
    """
    names = list(MUTATIONS)
    weights = np.array([0.25 if name in _RARE else 1.0 for name in names])
    name = str(rng.choice(names, p=weights / weights.sum()))
    return name, MUTATIONS[name](data, rng)
