"""A training run on disk: all that a resumed run needs to end as the one that never stopped, and how it is known to be that run.

No random state is in it: what is drawn is a function of (seed, step), as loop.py says.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..backend import array_module, scalars_to_host, to_host
from ..files import load_arrays, save_arrays
from ..nn import Trainable
from ..quantization import Quantized4bit
from .optim import Optimizer, Schedule


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
    """What a resumed run must share with the one that wrote the checkpoint."""
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
    """What a checkpoint does not hold and a resumed run must have again: the frozen weights, and the data if it can tell.

    Of each weight its name, dtype, shape and a thousand numbers, evenly spaced: another base differs in nearly all. Of a
    quantised one the numbers are its codes and their absmax, and how they are to be read is said too.
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
    """The same for the same numbers in any process, which the name or address of a function is not."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


class Checkpoint:
    """Trainable values, optimizer state, step and the history's rows in one safetensors file. Frozen weights are not written."""

    def __init__(
        self, path: str | os.PathLike[str] | None, model: Trainable, optimizer: Optimizer, settings: dict[str, Any]
    ) -> None:
        self.path, self.optimizer, self.settings = path, optimizer, settings
        self.parameters = {name: p for name, p in model.named_parameters() if p.trainable}

    def save(self, step: int, rows: list[dict[str, float]]) -> None:
        """Write the file, if one was asked for. Weights that are not finite raise FloatingPointError, and it stays."""
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
        """Put the file's values and optimizer state in place; returns the step to go on from and the history's rows so far."""
        assert self.path is not None  # there is a file
        arrays, metadata = load_arrays(self.path)
        if "settings" not in metadata:
            raise ValueError(f"{self.path} is not a checkpoint of train()")
        saved_values = {name.removeprefix("value/"): x for name, x in arrays.items() if name.startswith("value/")}
        theirs = json.loads(metadata["settings"]) | {name: f"{x.dtype} {x.shape}" for name, x in saved_values.items()}
        ours = self.settings | {name: f"{p.compute_dtype} {p.value.shape}" for name, p in self.parameters.items()}
        changed = [
            f"{key} was {theirs.get(key, 'absent')}, is {ours.get(key, 'absent')}"
            for key in ours | theirs
            if theirs.get(key, "absent") != ours.get(key, "absent")
        ]
        if changed:
            more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(f"{self.path} belongs to another run: {'; '.join(changed[:3])}{more}")
        self.optimizer.state.clear()
        self.optimizer.t = int(metadata["step"])
        for key, array in arrays.items():
            kind, rest = key.split("/", 1)
            name, _, slot = rest.partition("/")
            p = self.parameters[name]
            moved = array_module(p.value).asarray(array)
            if kind == "value":
                p.value = moved.astype(p.value.dtype, copy=False)
            else:
                self.optimizer.state.setdefault(name, {})[slot] = moved
        return self.optimizer.t, json.loads(metadata["history"])

    def stopped(self, step: int, found: str) -> FloatingPointError:
        """The error for a number that is not finite, after going back to the file's state, if there is a file."""
        if self.path is not None and Path(self.path).exists():
            kept = f"the model is back at step {self.load()[0]}, the last good state, which {self.path} holds"
        else:
            kept = "there is no checkpoint to go back to"
        return FloatingPointError(f"step {step}: {found}; {kept}. Try a smaller lr, a warm-up, or max_grad_norm.")
