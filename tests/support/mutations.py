"""Seeded damage to files: to the values of JSON, and to bytes whatever they mean."""

from __future__ import annotations

import copy
import itertools
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import yaml

PLACES = 4_000  # values of one file among which damage is drawn
ESCAPES = "\x1b[2J\x07\r\n\u202e"
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    2**31,
    2**63,
    -(2**70),
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "0",
    "nan",
    "yarn",
    "../../etc/passwd",
    "/dev/zero",
    "a\0b",
    ESCAPES,
    "\ud800",
    "x" * 20_000,
    [],
    [None],
    [[]],
    ["x", 1, {}],
    [0.0] * 5_000,
    {},
    {"": None},
    {"a": {"b": {}}},
    {"rope_type": "yarn", "factor": float("nan")},
)


def places(value: Any, so_far: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value within a value, but not into more than twenty entries of a list, nor far down."""
    if so_far:
        yield so_far
    if len(so_far) > 12:
        return
    if isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value[:20])) if isinstance(value, list) else []
    for name, one in inner:
        yield from places(one, (*so_far, name))


def nested(deep: int) -> Any:
    """Brackets within brackets."""
    value: Any = 1
    for _ in range(deep):
        value = {"a": value} if deep % 2 else [value]
    return value


def changed(values: Any, draw: random.Random) -> Any:
    """A JSON value with one to three things in it changed: kinds, sizes, names, depths, what is missing."""
    values = copy.deepcopy(values)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        known = list(itertools.islice(places(values), PLACES))  # anchors within anchors have billions
        if not known:
            return draw.choice(ODD)
        *above, last = draw.choice(known)
        parent = values
        for step in above:
            parent = parent[step]
        deed = draw.randrange(9)
        if deed == 0:
            del parent[last]
        elif deed == 1:
            parent[last] = [parent[last]]
        elif deed == 2:
            parent[last] = str(parent[last])
        elif deed == 3 and isinstance(parent, dict):
            parent[f"{last}{draw.choice(('', '_', ESCAPES, 's'))}x"] = parent.pop(last)
        elif deed == 4 and isinstance(parent[last], (int, float)) and not isinstance(parent[last], bool):
            parent[last] = draw.choice((-1, 2, 0.5, 1e6, 10**12)) * parent[last]
        elif deed == 5:
            parent[last] = nested(draw.choice((3, 70, 400)))
        elif deed == 6 and isinstance(parent[last], (dict, list)):
            parent[last] = copy.deepcopy(values)
        else:
            parent[last] = copy.deepcopy(draw.choice(ODD))
    return values


def torn(content: bytes, draw: random.Random) -> bytes:
    """Bytes of which some are changed, missing, doubled or cut off."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(made)) if made else 0
        deed = draw.randrange(7)
        if deed == 0:
            del made[at:]
        elif deed == 1:
            del made[at : at + draw.choice((1, 8, 100))]
        elif deed == 2:
            made[at:at] = draw.randbytes(draw.choice((1, 8, 100)))
        elif deed == 3:
            made[at : at + 1] = bytes([draw.randrange(256)])
        elif deed == 4:
            made[at : at + 8] = struct.pack("<Q", draw.choice((0, 1, 255, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)))
        elif deed == 5:
            made[at:at] = made[at : at + 1000] * draw.choice((1, 5))
        else:
            made[at : at + 4] = draw.choice((b"\xff\xfe\x00\x01", b"\x00\x00\x00\x00", b"[[[[", b'{"a"', b"NaN,"))
    return bytes(made)


def damaged_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON file, three times in four still one."""
    if draw.random() < 0.25:
        return torn(content, draw)
    return json.dumps(changed(json.loads(content), draw)).encode("utf-8", "surrogatepass")


def damaged_lines(content: bytes, draw: random.Random) -> bytes:
    """Lines of JSON, one of them damaged."""
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = damaged_json(lines[at], draw)
    return b"\n".join(lines) + draw.choice((b"\n", b"\n", b""))


def damaged_yaml(content: bytes, draw: random.Random) -> bytes:
    """A YAML file of lines `key: value`, half the time with its values changed as those of JSON are."""
    if draw.random() < 0.4 or b"*" in content:  # what stands behind aliases may be billions of values
        return torn(content, draw)
    made = changed(yaml.safe_load(content), draw)
    return yaml.safe_dump(made, allow_unicode=draw.random() < 0.5).encode("utf-8", "surrogatepass")


# What somebody may type in the place of a value
TYPED = (
    "",
    " ",
    "-",
    "--",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0",
    "0x10",
    "1_000",
    "4.0.0",
    "٤",  # a digit, which int() takes
    "9" * 5000,
    "1e308",
    "4,",
    ",4",
    "4,,8",
    "4;8",
    "yarn",
    "yran",
    "YARN",
    "none",
    "None",
    "true",
    "{",
    "[]",
    "{}",
    "null",
    '{"a": NaN}',
    '{"factor": 4}',
    '{"beta_fast": "x"}',
    '{"beta_fast": [[[[]]]]}',
    "[" * 3000,
    "/",
    "/dev/null",
    "/dev/zero",
    ".",
    "..",
    "~",
    "x" * 300,
    "\udcff",
    "a\0b",
    "\x1b[2J",
    "\u202e",
    "🦊",
    "log_n:",
    ":1",
    "log_n:nan",
    "%s%n{0}{x}",
    "-1m",
    "infm",
    "cuda:-1",
    "cpu:x",
)


def damaged_command(content: bytes, draw: random.Random) -> bytes:
    """One of several commands, or of several words, with one to two of its words changed; a JSON file of that one."""
    words = list(draw.choice(json.loads(content)))
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(1, len(words)) if len(words) > 1 else 0
        deed = draw.randrange(6)
        if deed <= 2:
            words[at] = draw.choice(TYPED)
        elif deed == 3:
            words[at] = torn(words[at].encode("utf-8", "surrogateescape"), draw).decode("utf-8", "surrogateescape")
        elif deed == 4 and len(words) > 2:
            del words[at]
        else:
            words.insert(at, draw.choice(words))
    return json.dumps([words]).encode()


def damaged_value(content: bytes, draw: random.Random) -> bytes:
    """One of several pairs of an option and its value, with another value; a JSON file of that one."""
    option, value = draw.choice(json.loads(content))
    if draw.random() < 0.5:
        value = draw.choice(TYPED)
    elif value[:1] == "{" and draw.random() < 0.6:
        value = json.dumps(changed(json.loads(value), draw))
    else:
        value = torn(value.encode("utf-8", "surrogateescape"), draw).decode("utf-8", "surrogateescape")
    return json.dumps([[option, value]]).encode()
