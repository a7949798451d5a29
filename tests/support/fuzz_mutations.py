"""Ways to damage a file, drawn at random: bits, pieces, numbers in headers, JSON values, arrays with a right digest."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from hostile_templates import HOSTILE
from safetensors import SafetensorError, safe_open

from lora_np.files import save_arrays
from lora_np.studies.harness.digests import add_digest

NUMBERS = [0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 0.5, -1.5, 1e308, float("nan"), float("inf"), 4096, 10**6, 10**8, 2**31, 2**63, 10**50,
    "", "x", "linear", "\ud800", "x" * 100_000, "\x00", "../../etc/passwd", ".*", "[", "true", "1", "NaN", "1e5",
    "(.+)+!", "(a|a)*$", [], [[]], {}, {"a": {}}, ["q_proj"], [1, 2], [None], {"__proto__": 1}, [0] * 10_000,
]  # fmt: skip
DEEP = ["[" * 50_000, '{"a":' * 50_000, "[" * 50_000 + "]" * 50_000]


def damage(path: Path, rng: np.random.Generator, others: list[Path]) -> str:
    """Damage one file in one to three ways, and return how."""
    done = []
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.4 else 1):
        ways = [bits, piece, splice, number, cut]
        if path.suffix in (".json", ".jsonl"):
            ways += [json_value] * 8
        if path.suffix == ".safetensors":
            ways += [header_value] * 3 + [array] * 5
        if path.suffix == ".gguf":
            ways += [number, header_number, header_number, not_finite]
        if path.suffix == ".jinja" or path.name == "tokenizer_config.json":
            ways += [template] * 4
        way = ways[rng.integers(len(ways))]
        way(path, rng, others)
        done.append(way.__name__)
    return f"{path.name}: {', '.join(done)}"


def pick(rng: np.random.Generator, values: list[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


# --------------------------------------------------------------------------------------------------------------- bytes


def bits(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    reach = len(data) if rng.random() < 0.5 else min(len(data), 4000)  # the header is the interesting part
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        data[rng.integers(reach)] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def piece(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    """Remove, repeat or overwrite a piece."""
    data = path.read_bytes()
    a, b = np.sort(rng.integers(0, len(data) + 1, 2))
    b = min(b, a + int(pick(rng, [1, 4, 8, 100, 10**9])))
    fill = pick(rng, [b"", data[a:b] * 2, b"\x00" * (b - a), b"\xff" * (b - a), rng.bytes(int(b - a))])
    path.write_bytes(data[:a] + fill + data[b:])


def cut(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    """Keep the beginning only, or nothing."""
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(len(data) + 1)) if rng.random() < 0.9 else 0])


def splice(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    """Put a piece of another file, of any kind, into this one."""
    data, other = path.read_bytes(), pick(rng, others).read_bytes()
    at, start = int(rng.integers(len(data) + 1)), int(rng.integers(len(other) + 1))
    size = int(pick(rng, [8, 64, 1000, len(other)]))
    path.write_bytes(data[:at] + other[start : start + size] + data[at + (size if rng.random() < 0.5 else 0) :])


def number(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    """Write a hostile binary number, at the beginning in half of all cases: there are the sizes of headers."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(0, 32)) if rng.random() < 0.5 else int(rng.integers(len(data) + 1))
    value = int(pick(rng, NUMBERS))
    data[at : at + 8] = struct.pack("<Q", value) if rng.random() < 0.5 else struct.pack("<I", value % 2**32)
    path.write_bytes(data)


def header_number(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    """Replace a 32-bit number in the header of a GGUF file: a type, a length, a value."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(8, max(9, min(len(data) - 4, 40_000))))
    data[at : at + 4] = struct.pack("<I", int(pick(rng, NUMBERS)) % 2**32)
    path.write_bytes(data)


def not_finite(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    """Write NaN or infinity over a number of the data, which are at the end."""
    data = bytearray(path.read_bytes())
    at = len(data) - 4 * int(rng.integers(1, max(2, len(data) // 5)))
    data[at : at + 4] = struct.pack("<f", pick(rng, [float("nan"), float("inf"), float("-inf")]))
    path.write_bytes(data)


# ---------------------------------------------------------------------------------------------------------------- JSON


def changed(content: Any, rng: np.random.Generator) -> Any:
    """Return JSON content with one entry replaced, removed, renamed or added, anywhere in it."""
    places: list[tuple[Any, Any]] = []
    todo = [content]
    while todo and len(places) < 3000:
        x = todo.pop()
        keys = list(x) if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else []
        places += [(x, key) for key in keys]
        todo += [x[key] for key in keys]
    if not places or rng.random() < 0.03:
        return pick(rng, VALUES)
    top = len(content) if rng.random() < 0.5 else len(places)  # the first places are those at the top
    parent, key = places[int(rng.integers(min(top, len(places))))]
    way = rng.random()
    if way < 0.7:
        parent[key] = pick(rng, VALUES)
    elif way < 0.8:
        del parent[key]
    elif way < 0.9 and isinstance(parent, dict):
        parent[pick(rng, ["x", "", "\ud800", "lora_alpha", "unknown_key"])] = parent.pop(key)
    else:
        parent[key] = json.loads(json.dumps(parent))
    return content


def json_text(text: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.04:
        return str(pick(rng, DEEP))
    try:
        return json.dumps(changed(json.loads(text), rng))
    except (ValueError, RecursionError):
        return text[: len(text) // 2]


def json_value(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    text = path.read_bytes().decode("utf-8", errors="replace")
    if path.suffix == ".jsonl":
        lines = text.splitlines() or [""]
        i = int(rng.integers(len(lines)))
        lines[i] = json_text(lines[i], rng)
        text = "\n".join(lines)
    else:
        text = json_text(text, rng)
    path.write_text(text, encoding="utf-8", errors="replace")
    if '"sha256"' in text and rng.random() < 0.5:  # a right digest, so that the reader looks at the content
        try:
            add_digest(path)
        except (ValueError, AttributeError):
            return


def template(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    text = str(pick(rng, list(HOSTILE.values())))
    if path.suffix == ".jinja":
        path.write_text(text, encoding="utf-8")
    else:
        path.write_text(json.dumps({"chat_template": text}), encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- safetensors


def header_value(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    """Change the JSON header of a safetensors file, and its size with it."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if 8 + size > len(data):
        return
    header = json_text(data[8 : 8 + size].decode("utf-8", errors="replace"), rng).encode("utf-8", errors="replace")
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def array(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    """Change one array, or the metadata, and write the file again with a digest that is right."""
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, TypeError, ValueError):
        return
    if not arrays:
        return
    name = pick(rng, sorted(arrays))
    x = np.array(arrays[name])
    way = int(rng.integers(8))
    if way < 3 and x.size and x.dtype.kind == "f":
        x.reshape(-1)[rng.integers(x.size)] = pick(rng, [np.nan, np.inf, -np.inf, np.finfo(x.dtype).max])
    elif way == 3:
        with np.errstate(all="ignore"):
            x = x.astype(pick(rng, [np.float16, np.float64, np.int8, np.int64, np.bool_, np.uint8]))
    elif way == 4:
        x = (
            pick(rng, [x[:0], x.T.copy(), x[..., None], x.reshape(-1), x[:1], np.repeat(x, 2, 0)])
            if x.ndim
            else x[None]
        )
    elif way == 5:
        arrays[pick(rng, ["x", "", f"{name}.x", "value/x", "optimizer/x/m", "model.layers.9.weight"])] = x
    elif way == 6 and metadata:
        metadata[pick(rng, sorted(metadata))] = pick(rng, ["", "3", "[]", "{}", "[" * 50_000, "x", "-1", "NaN"])
    else:
        del arrays[name]
    if name in arrays:
        arrays[name] = x
    save_arrays(path, arrays, metadata)
