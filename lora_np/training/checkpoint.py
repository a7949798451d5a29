"""Checkpoints of a training run. A resumed run ends with exactly the same weights as an uninterrupted run.

A checkpoint contains the settings of its run, and `Checkpoint.load` refuses a checkpoint of another run. A checkpoint
contains no random state, because all random numbers depend only on `seed` and `step`; see loop.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..backend import array_module, scalars_to_host, to_host
from ..files import check_finite, load_arrays, lock, save_arrays
from ..files.durable import remove_unfinished
from ..nn import Trainable
from ..quantization import Quantized4bit
from .optim import Optimizer
from .schedule import Schedule


def run_settings(
    model: Trainable,
    optimizer: Optimizer,
    steps: int,
    schedule: Schedule,
    max_grad_norm: float | None,
    accumulate: int,
    seed: int,
    workers: int,
) -> dict[str, Any]:
    """Return the settings that must be equal in a resumed run and in the run that wrote the checkpoint."""
    shape = [schedule(step) for step in range(steps)]
    found = {
        "optimizer": repr(optimizer),
        "steps": steps,
        "schedule": f"{shape[0]:g} … {shape[-1]:g} ({_digest(shape)})",
        "max_grad_norm": max_grad_norm,
        "accumulate": accumulate,
        "seed": seed,
        "model": repr(getattr(model, "config", "")),
        "adapter": repr(getattr(model, "peft_config", "")),
        "workers": workers,
    }
    if adapter_dtype := getattr(model, "adapter_dtype", None):
        found["adapter_dtype"] = str(adapter_dtype)
    if optimizer.lr_ratio:
        found["lr_ratio"] = dict(optimizer.lr_ratio)
    return found


def digests(model: Trainable, batches: Any) -> dict[str, str]:
    """Return a dict with a hash of the frozen weights, and with `batches.digest` if this attribute exists.

    A checkpoint contains the dict instead of the frozen weights and the data. The hash covers the name, dtype and shape
    of each frozen weight, and about a thousand evenly spaced values. For a quantised weight, the hash covers the
    codes, the absmax values, quant_type and the block size.
    """
    found, digest, frozen = {}, hashlib.sha256(), [(n, p.value) for n, p in model.named_parameters() if not p.trainable]
    for name, value in frozen:
        form = f" {value.quant_type} {value.block_size}" if isinstance(value, Quantized4bit) else ""
        digest.update(f"{name} {value.dtype} {value.shape}{form}".encode())
        for stored in value.arrays if isinstance(value, Quantized4bit) else [value]:
            flat = stored.reshape(-1)
            digest.update(to_host(flat[:: max(1, flat.size // 1000)]).tobytes())
    if frozen:
        found["digest of the frozen weights"] = digest.hexdigest()[:12]
    if hasattr(batches, "digest"):
        found["digest of the data"] = batches.digest
    return found


def _digest(values: list[float]) -> str:
    """Return a hash of the values of a schedule.

    This hash is equal in every process, whereas the address of the schedule function is not.
    """
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


class Checkpoint:
    """A safetensors file with the trainable parameters, optimizer state, step and history. The file contains no frozen
    weights."""

    def __init__(
        self, path: str | os.PathLike[str] | None, model: Trainable, optimizer: Optimizer, settings: dict[str, Any]
    ) -> None:
        self.path, self.optimizer, self.settings = path, optimizer, settings
        self.parameters = {name: p for name, p in model.named_parameters() if p.trainable}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the file, so that no other process trains with it, and remove temporary files of a killed process."""
        if self.path is None:
            yield
            return
        path = Path(self.path)
        with lock(path.with_name(f"{path.name}.lock")):
            remove_unfinished(path.parent, path.name)
            yield

    def save(self, step: int, rows: list[dict[str, float]]) -> None:
        """Write the file, if `path` is not None. If a weight is not finite, keep the old file and raise FloatingPointError."""
        finite = scalars_to_host([array_module(p.value).isfinite(p.value).all() for p in self.parameters.values()])
        if not finite.all():
            raise self.stopped(step, f"{list(self.parameters)[finite.argmin()]} is not finite")
        if self.path is None:
            return
        arrays = {f"value/{name}": p.value.astype(p.compute_dtype, copy=False) for name, p in self.parameters.items()}
        for name, state in self.optimizer.state.items():
            arrays |= {f"optimizer/{name}/{key}": x for key, x in state.items()}
        metadata = {"step": str(step), "settings": json.dumps(self.settings), "history": json.dumps(rows)}
        save_arrays(self.path, {name: to_host(x) for name, x in arrays.items()}, metadata)

    def load(self) -> tuple[int, list[dict[str, float]]]:
        """Restore parameters and optimizer state from the file. Return the number of finished steps and the history's rows."""
        assert self.path is not None  # the caller has checked that the file exists
        arrays, metadata = load_arrays(self.path)
        if "settings" not in metadata:
            raise ValueError(f"{self.path} is not a checkpoint of train(); give another path, or remove the file")
        try:
            settings = dict(json.loads(metadata["settings"]))
            step, rows = int(metadata["step"]), list(map(dict, json.loads(metadata["history"])))
            if step < 0:
                raise ValueError(f"step = {step}")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.path} is damaged: {error!r:.80}; remove the file, or restore another copy"
            ) from None
        saved_values = {name.removeprefix("value/"): x for name, x in arrays.items() if name.startswith("value/")}
        theirs = settings | {name: f"{x.dtype} {x.shape}" for name, x in saved_values.items()}
        ours = self.settings | {name: f"{p.compute_dtype} {p.value.shape}" for name, p in self.parameters.items()}
        changed = [
            f"{key} was {theirs.get(key, 'absent')}, now {ours.get(key, 'absent')}"
            for key in ours | theirs
            if theirs.get(key, "absent") != ours.get(key, "absent")
        ]
        if changed:
            more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(
                f"{self.path} belongs to another run: {'; '.join(changed[:3])}{more}. Use the settings of that run, or another path"
            )
        for key, x in arrays.items():
            kind, _, rest = key.partition("/")
            if kind not in ("value", "optimizer") or rest.partition("/")[0] not in self.parameters:
                raise ValueError(f"{self.path}: unexpected tensor {key}; remove the file, or restore another copy")
            check_finite(f"{self.path}: {key}", x)
        self.optimizer.state.clear()
        self.optimizer.t = step
        for key, array in arrays.items():
            kind, rest = key.split("/", 1)
            name, _, slot = rest.partition("/")
            p = self.parameters[name]
            moved = array_module(p.value).asarray(array)
            if kind == "value":
                p.value = moved.astype(p.value.dtype, copy=False)
            else:
                self.optimizer.state.setdefault(name, {})[slot] = moved
        return step, rows

    def stopped(self, step: int, found: str) -> FloatingPointError:
        """Return the error for a number that is not finite. If the file exists, first restore the state in the file."""
        if self.path is not None and Path(self.path).exists():
            kept = f"the model was reset to step {self.load()[0]}, the last good state, from {self.path}"
        else:
            kept = "there is no checkpoint to restore"
        return FloatingPointError(f"step {step}: {found}; {kept}. Try a smaller lr, a warm-up, or max_grad_norm.")
