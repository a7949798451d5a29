"""The output folder of `python -m lora_np train`: which files a run writes, and whether the run is finished.

    checkpoint.safetensors   the state of an unfinished run, from which --resume continues
    metrics.jsonl            the losses; loss.png shows them, if matplotlib is installed
    train.toml               the options of the run
    adapter_… or model…      the result
    SHA256SUMS               written last: the digests of the other files of a finished run

A run is finished if its files have the digests in SHA256SUMS. The command `sha256sum -c SHA256SUMS` also checks these
digests. The checkpoint is removed only after SHA256SUMS is on the disk. With --overwrite, SHA256SUMS is emptied first.
Until the new run is finished, the folder contains the old adapter, but no digest of the adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..files import open_arrays, read_json, write_text
from ..files.durable import remove_unfinished

CHECKPOINT, SETTINGS, SUMS, LOCK = "checkpoint.safetensors", "train.toml", "SHA256SUMS", "run.lock"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MODEL = ("config.json", "model.safetensors")


def check_kind(output: Path, full: bool) -> None:
    """Raise FileExistsError if `output` is a file, or if the run would replace a model by an adapter or an adapter by a model."""
    if output.is_file():
        raise FileExistsError(f"--output {output} is a file; expected a folder")
    for name in ADAPTER if full else MODEL:
        if (output / name).exists():
            found, kind = ("an adapter", "a model") if full else ("a model", "an adapter")
            raise FileExistsError(
                f"{output / name} belongs to {found}, but this run saves {kind}; choose another --output"
            )


def is_finished(output: Path, full: bool, resume: bool) -> bool:
    """Return True if `resume` finds a finished run, and False if a run is to be started or continued.

    Raises FileExistsError if a file would be overwritten, and ValueError if a file of a finished run is damaged.
    """
    checkpoint, result, sums = output / CHECKPOINT, MODEL if full else ADAPTER, _read_sums(output)
    there = [name for name in result if (output / name).exists()]
    changed = [name for name in (*result, *(sums or {})) if not sums or sums.get(name) != _digest(output / name)]
    if checkpoint.exists() and changed:
        if resume:
            return False
        raise FileExistsError(
            f"{checkpoint} belongs to an unfinished run; use --resume to continue it, or --overwrite to start again"
        )
    if not there and not sums:
        return False
    if not resume or (sums is None and len(there) == 1):
        name = there[0] if there else SUMS
        raise FileExistsError(f"{output / name} exists; use --overwrite to replace it, or choose another --output")
    if sums and changed:
        raise ValueError(
            f"{output / changed[0]} was changed or damaged after the run, so its digest differs from the digest in {SUMS}; "
            "use --overwrite to train again"
        )
    if sums is None:  # the run of an older version, which wrote no digests
        for name in there:
            read_json(output / name) if name.endswith(".json") else _check(output / name)
    return sums != {}


def start(output: Path, overwrite: bool) -> None:
    """Remove incomplete files of a killed process; with `overwrite`, also remove the old checkpoint and the old digests."""
    remove_unfinished(output)
    if overwrite:
        if any((output / name).exists() for name in (*ADAPTER, *MODEL, SUMS)):
            write_text(output / SUMS, "")
        (output / CHECKPOINT).unlink(missing_ok=True)


def finish(output: Path, names: Sequence[str]) -> None:
    """Write the digests of the run's complete files, then remove the checkpoint."""
    write_text(output / SUMS, "".join(f"{_digest(output / name)}  {name}\n" for name in names))
    clear(output)


def clear(output: Path) -> None:
    """Remove the checkpoint of a finished run and incomplete files of a killed process."""
    (output / CHECKPOINT).unlink(missing_ok=True)
    remove_unfinished(output)


def _read_sums(output: Path) -> dict[str, str] | None:
    """Return the digests by file name. Return {} if the file is empty, and None if there is no file."""
    path = output / SUMS
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or "" if there is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path) -> None:
    """Raise ValueError if a safetensors file is damaged."""
    with open_arrays(path):
        pass
