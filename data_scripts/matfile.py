"""Read the arrays of a MATLAB level-5 file (.mat), as far as SBD's labels need it: numbers, structs and cells; sparse arrays are passed over.

Format: MathWorks, "MAT-File Format", chapter 1. A file is a header of 128 bytes and a row of elements (type, length, content, padding to 8 bytes);
an array is an element that holds four others: flags, dimensions, name, content. Columns first.
"""
from __future__ import annotations

import struct
import zlib

import numpy as np

MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CELL, STRUCT, CHAR, SPARSE = 1, 2, 4, 5
ARRAYS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


def read_mat(content: bytes) -> dict[str, object]:
    """{variable name: array, list (cell) or dict (struct)} of a .mat file's bytes. ValueError when it is none, or damaged."""
    if len(content) < 128 or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("this is no level-5 MATLAB file")
    order = "<" if content[126:128] == b"IM" else ">"
    found = {}
    try:
        for kind, body in _elements(content[128:], order):
            if kind == COMPRESSED:
                (kind, body), = _elements(zlib.decompress(body), order)
            if kind == MATRIX:
                name, value = _array(body, order)
                found[name] = value
    except (struct.error, zlib.error, IndexError, KeyError, ValueError) as problem:
        raise ValueError(f"the MATLAB file is damaged ({problem})") from problem
    return found


def _elements(data: bytes, order: str):
    """(type, content) one after the other."""
    place = 0
    while place + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, place)
        if kind >> 16:  # short form: four bytes of content beside type and length
            length, kind = kind >> 16, kind & 0xFFFF
            yield kind, data[place + 4:place + 4 + length]
            place += 8
            continue
        if place + 8 + length > len(data):
            raise ValueError("cut short")
        yield kind, data[place + 8:place + 8 + length]
        place += 8 + (length if kind == COMPRESSED else -(-length // 8) * 8)


def _array(body: bytes, order: str) -> tuple[str, object]:
    if not body:
        return "", None
    parts = _elements(body, order)
    flags = next(parts)[1]
    kind = struct.unpack_from(order + "I", flags)[0] & 0xFF
    shape = tuple(np.frombuffer(next(parts)[1], order + "i4"))
    name = next(parts)[1].decode("latin-1").rstrip("\0")
    if kind in ARRAYS:
        stored, content = next(parts)  # numbers may be stored in a smaller type than the array's
        return name, np.frombuffer(content, order + NUMBERS[stored]).astype(ARRAYS[kind]).reshape(shape, order="F")
    if kind == CELL:
        return name, [_array(content, order)[1] for _, content in parts]
    if kind == STRUCT:
        width = struct.unpack(order + "i", next(parts)[1])[0]
        text = next(parts)[1]
        fields = [text[i:i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(text), width)]
        values = [_array(content, order)[1] for _, content in parts]
        if int(np.prod(shape)) != 1:
            return name, [dict(zip(fields, values[i:i + len(fields)])) for i in range(0, len(values), len(fields))]
        return name, dict(zip(fields, values))
    return name, None  # characters, sparse arrays, objects
