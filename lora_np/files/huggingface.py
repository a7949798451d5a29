"""A model's folder as Hugging Face lays it out: config.json, and the weights in one safetensors file or in several.

model.safetensors                                          one file, or
model-00001-of-00002.safetensors, …                        shards, and
model.safetensors.index.json = {"weight_map": {array name: shard}}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .arrays import StoredArrays, open_arrays

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError naming the file that holds no JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or "[[[[…" without end
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


@contextmanager
def open_folder(folder: Path) -> Iterator[StoredArrays]:
    """The weights of a model's folder, memory-mapped, from its one file or its shards.

    Raises FileNotFoundError for a file that is not there, ValueError for a damaged one or an index that is no index,
    KeyError where the index and the shards do not hold the same arrays.
    """
    if (folder / WEIGHTS).is_file():
        with open_arrays(folder / WEIGHTS) as stored:
            yield stored
    elif (folder / INDEX).is_file():
        with _open_shards(folder) as stored:
            yield stored
    else:
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        advice = f"; {pickled[0]} is a pickle, which can run code: convert it to safetensors" if pickled else ""
        raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}{advice}")


@contextmanager
def _open_shards(folder: Path) -> Iterator[StoredArrays]:
    index = folder / INDEX
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{index}: expected a weight_map, from the arrays' names to their files")
    for shard in shard_of.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r}; a shard is a file beside it")
    with ExitStack() as stack:
        shards = {shard: stack.enter_context(open_arrays(folder / shard)) for shard in sorted(set(shard_of.values()))}
        places = {(name, shard) for shard, stored in shards.items() for name in stored}
        if places != set(shard_of.items()):
            missing, unknown = sorted(shard_of.items() - places), sorted(places - shard_of.items())
            raise KeyError(
                f"{index} and its shards differ: missing {missing or 'none'}; in no place the index knows {unknown or 'none'}"
            )
        shapes = {name: shards[shard].shapes[name] for name, shard in shard_of.items()}
        yield StoredArrays(shapes, lambda name: shards[shard_of[name]][name], {})
