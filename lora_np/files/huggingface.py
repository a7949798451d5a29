"""Model folders in the format of Hugging Face.

A folder contains config.json, and weights in one or several safetensors files:

    one file         model.safetensors
    several files    model-00001-of-00002.safetensors, … (shards), and
                     model.safetensors.index.json = {"weight_map": {array name: name of its shard}}
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
    """Read a JSON file that contains an object.

    Parameters
    ----------
    path : Path
        The file to read.

    Returns
    -------
    dict
        The object.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not UTF-8, is not JSON, or does not contain a JSON object. The message starts with the path.

    Examples
    --------
    >>> from pathlib import Path
    >>> import lora_np
    >>> from lora_np.files import read_json
    >>> read_json(Path(lora_np.__file__).parent / "assets/tiny/config.json")["hidden_size"]
    128
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, a number of 5000 digits, or nested too deeply: "[[[[…"
        raise ValueError(f"{path} is damaged or not JSON: {error}; download or write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a JSON {type(content).__name__}, expected an object")
    return content


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ValueError with the path if the file is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged or not UTF-8: {error}; download or write it again") from None


@contextmanager
def open_folder(folder: Path) -> Iterator[StoredArrays]:
    """Open the weights of a model folder in a `with` statement, to read the arrays one at a time.

    Parameters
    ----------
    folder : Path
        A folder with model.safetensors, or with shards and their model.safetensors.index.json.

    Yields
    ------
    StoredArrays
        The arrays of all files. An array is read from its file when it is accessed.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, or the index is invalid.
    KeyError
        If the index and the shards do not contain the same arrays.

    Examples
    --------
    >>> from pathlib import Path
    >>> import lora_np
    >>> from lora_np.files import open_folder
    >>> with open_folder(Path(lora_np.__file__).parent / "assets/tiny") as stored:
    ...     stored["model.norm.weight"].dtype
    dtype('float32')
    """
    if (folder / WEIGHTS).is_file():
        with open_arrays(folder / WEIGHTS) as stored:
            yield stored
    elif (folder / INDEX).is_file():
        with _open_shards(folder) as stored:
            yield stored
    else:
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        convert = f"python -m lora_np convert {folder / pickled[0]} --out {folder / WEIGHTS}" if pickled else ""
        advice = (
            f"; {pickled[0]} is a pickle, which can run code. Convert it to safetensors first: {convert}"
            if pickled
            else ""
        )
        raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}{advice}")


@contextmanager
def _open_shards(folder: Path) -> Iterator[StoredArrays]:
    index = folder / INDEX
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{index}: expected a weight_map, an object that maps each array name to a file name")
    files = {path.name for path in folder.iterdir()}
    for shard in shard_of.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r:.80}; expected the name of a file in the same folder")
        if shard not in files:
            raise FileNotFoundError(f"{index} names {shard!r:.80}, but there is no such file in its folder")
    with ExitStack() as stack:
        shards = {shard: stack.enter_context(open_arrays(folder / shard)) for shard in sorted(set(shard_of.values()))}
        places = {(name, shard) for shard, stored in shards.items() for name in stored}
        if places != set(shard_of.items()):
            missing, unknown = sorted(shard_of.items() - places), sorted(places - shard_of.items())
            raise KeyError(
                f"{index} does not match its shards {sorted(shards)}: no shard contains {missing[:4] or 'other arrays'}; the "
                f"index does not list {unknown[:4] or 'other arrays'}"
            )
        shapes = {name: shards[shard].shapes[name] for name, shard in shard_of.items()}
        yield StoredArrays(shapes, lambda name: shards[shard_of[name]][name], {}, shard_of)
