"""Training: batches → loss → backward → step, with held-out evaluation, a history, and checkpoints that resume exactly.

All randomness is a function of (seed, step): `batches[step]` is the same whenever it is asked for, and so is the generator
of the dropout masks. A run that stops after step n and goes on from its checkpoint is therefore the run that never stopped,
to the bit, and no random state needs saving.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..backend import Array, scalars_to_host
from ..nn import Trainable
from ..ops import IGNORE_INDEX
from ..progress import Progress
from .checkpoint import Checkpoint, digests, run_settings
from .optim import Optimizer, Schedule, clip_grad_norm, constant, grad_norm
from .parallel import loss_and_gradients

DROPOUT = 0x64726F70  # a stream of its own: [seed, step] alone is what data.Batches draws its windows from
Batch = tuple[Array, Array]  # tokens (b, t) and the targets (b, t), shifted by one


class Batches(Protocol):
    """Anything that answers `batches[step]` with (tokens, targets): data.Batches, or a list, which is then cycled through.

    With an attribute `digest`, a string, a checkpoint knows its data again.
    """

    def __getitem__(self, step: int, /) -> Batch: ...


@dataclass
class History:
    """What happened, a row a step: step, loss (nats a token), lr, grad_norm, seconds of training (held-out evaluation not
    counted), tokens seen (padding too), and heldout (nats a token) where it was evaluated; of several held-out texts each by its
    own name."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        """The values of one column, from the rows that have it."""
        return [row[name] for row in self.rows if name in row]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"History({self})"

    def __str__(self) -> str:
        if not self.column("loss"):
            return "no step taken"
        last, loss, heldout = self.rows[-1], self.column("loss"), self.column("heldout")
        text = f"{last['step']} steps in {last['seconds']:.1f} s, loss {loss[0]:.4f} → {loss[-1]:.4f}"
        return text + (f", held-out {heldout[0]:.4f} → {heldout[-1]:.4f}" if heldout else "") + " nats a token"


def train(
    model: Trainable,
    batches: Batches,
    optimizer: Optimizer,
    steps: int,
    *,
    schedule: Schedule = constant,
    max_grad_norm: float | None = None,
    accumulate: int = 1,
    heldout: Sequence[Batch] | Mapping[str, Sequence[Batch]] | None = None,
    eval_every: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    seed: int = 0,
    workers: int = 1,
    label: str = "train",
    progress: bool | Literal["lines"] = True,
) -> History:
    """Train what is trainable in `model`: the adapter of a PeftModel, or all of a Transformer (full fine-tuning).

    Args:
        batches: `batches[i]` → (tokens, targets), each (b, t). A list is cycled through.
        optimizer: SGD or AdamW; its lr is multiplied by `schedule(step)`, and its state starts empty, its count at 0.
        steps: how many updates in all, those before a resumed checkpoint included.
        max_grad_norm: clip ‖gradient‖₂ to this. None does not clip.
        accumulate: how many batches make one update, as if they were one: its loss is the mean over all their counted
            tokens, so a batch with twice as many counts twice as much.
        heldout, eval_every: evaluate on these batches before the first step, every so many steps, and after the last. Of a
            mapping, {"heldout": …, "prose": …}, on each: a column of the history by its name. A generator is kept as a list.
        checkpoint, checkpoint_every, resume: a file to write at the start, every so many steps and at the end, and
            whether to go on from it. A killed and resumed run ends as an uninterrupted one does, to the bit.
        seed: draws the dropout masks.
        workers: how many threads share the rows of each batch, a core each (see `parallel`). With dropout another number
            of workers draws other masks.
        progress: a bar where somebody watches; "lines" also prints a line now and then where nobody does.

    Returns the `History`. Raises FloatingPointError when a loss, a gradient or a weight is not finite; with a
    checkpoint, the model is then back at the last one, whose weights a finite loss has proven good. Raises ValueError
    where nothing is trainable, where `eval_every` has nothing to evaluate on, where a held-out text is named as another
    column is, or where a checkpoint does not belong to these settings; FileExistsError where one is there and `resume`
    was not asked for. A checkpoint belongs to the settings, the frozen weights and, where `batches.digest` tells, the
    data that it was made with.
    """
    check_run(steps, max_grad_norm, accumulate, heldout, eval_every, checkpoint_every)
    if not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"batches must answer batches[step], so that a run can resume; a {type(batches).__name__} cannot"
        )
    if isinstance(batches, Sequence) and not batches:
        raise ValueError("batches is empty: there is nothing to train on")
    trainable = [(name, p) for name, p in model.named_parameters() if p.trainable]
    if not trainable:
        raise ValueError("nothing is trainable: unfreeze() the model, or put an adapter in with get_peft_model")
    optimizer.check(name for name, _ in trainable)
    history, start = History(), 0
    unseen = {name: list(text) if isinstance(text, Iterator) else text for name, text in _by_name(heldout).items()}
    settings = run_settings(model, optimizer, steps, schedule, max_grad_norm, accumulate, seed, workers)
    if checkpoint is not None:
        settings |= digests(model, batches)
    saved = Checkpoint(checkpoint, model, optimizer, settings)
    if checkpoint is not None and Path(checkpoint).exists():
        if not resume:
            raise FileExistsError(
                f"{checkpoint} exists: pass resume=True to go on from it, or remove it to start again"
            )
        start, history.rows = saved.load()
    else:
        optimizer.state.clear()
        optimizer.t = 0
    elapsed = history.rows[-1]["seconds"] if history.rows else 0.0
    tokens_seen = int(history.rows[-1]["tokens"]) if history.rows else 0
    began = time.perf_counter() - elapsed

    def heldout_losses(step: int) -> dict[str, float]:
        nonlocal began
        paused = time.perf_counter()
        values = {name: evaluate(model, batches) for name, batches in unseen.items()}
        began += time.perf_counter() - paused  # off the clock
        for value in values.values():
            if not math.isfinite(value):
                raise saved.stopped(step, f"held-out loss {value}")
        return values

    with Progress(steps, label, enabled=bool(progress), lines=progress == "lines", done=start) as bar:
        if unseen and not history.rows:
            history.rows.append({"step": 0, **heldout_losses(0), "seconds": 0.0, "tokens": 0})
        for step in range(start, steps):
            model.zero_grad()
            numbers = range(step * accumulate, (step + 1) * accumulate)
            together = [batches[i % len(batches)] if isinstance(batches, Sequence) else batches[i] for i in numbers]
            losses = []
            for i, (tokens, targets), share in zip(numbers, together, _shares(together), strict=True):
                tokens_seen += tokens.size
                if not share:
                    continue  # nothing in it counts
                rng = np.random.default_rng([seed, i, DROPOUT])
                losses.append(share * loss_and_gradients(model, tokens, targets, rng, workers, share))
            size = grad_norm(trainable) if max_grad_norm is None else clip_grad_norm(trainable, max_grad_norm)
            loss, norm = map(float, scalars_to_host([sum(losses[1:], losses[0]), size]))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise saved.stopped(step + 1, f"loss {loss}, gradient norm {norm}")
            if step % checkpoint_every == 0:
                saved.save(step, history.rows)  # only now: this finite loss proves the update before good
            lr = optimizer.lr * schedule(step)
            optimizer.step(trainable, lr=lr)
            row = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": norm}
            row |= {"seconds": time.perf_counter() - began, "tokens": tokens_seen}
            last = step + 1 == steps
            if last or (eval_every and (step + 1) % eval_every == 0):
                row |= heldout_losses(step + 1)
            history.rows.append(row)
            bar.update(1, loss=loss, **{"tokens/s": round(tokens_seen / max(row["seconds"], 1e-9))})
        saved.save(steps, history.rows)
    model.zero_grad()
    return history


def check_run(
    steps: int,
    max_grad_norm: float | None = None,
    accumulate: int = 1,
    heldout: Sequence[Batch] | Mapping[str, Sequence[Batch]] | None = None,
    eval_every: int | None = None,
    checkpoint_every: int = 100,
) -> None:
    """Raise ValueError for what `train` would refuse of these, for whoever clears something away before it begins."""
    if steps < 1 or accumulate < 1 or checkpoint_every < 1 or (eval_every is not None and eval_every < 1):
        raise ValueError("steps, accumulate, checkpoint_every and eval_every count from 1")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm = {max_grad_norm}; expected a number > 0, or None for no clipping")
    if not _by_name(heldout) and eval_every is not None:
        raise ValueError(f"eval_every = {eval_every}, and no heldout to evaluate on: give both or neither")


def evaluate(model: Trainable, batches: Sequence[Batch]) -> float:
    """Mean negative log-likelihood in nats a token over all batches, each counted token the same; no dropout, no gradient.

    Raises ValueError where nothing counts in any of them.
    """
    total, count = 0.0, 0
    for tokens, targets in batches:
        if n := _counted(targets):
            total += float(model.loss(tokens, targets)[0]) * n
            count += n
    if not count:
        raise ValueError("nothing to evaluate on: the held-out list is empty, or no target in it counts")
    return total / count


def _by_name(heldout: Sequence[Batch] | Mapping[str, Sequence[Batch]] | None) -> dict[str, Sequence[Batch]]:
    """Each held-out text by the name of its column. Raises ValueError for a name that a column has already."""
    named = dict(heldout) if isinstance(heldout, Mapping) else {} if heldout is None else {"heldout": heldout}
    if taken := named.keys() & {"step", "loss", "lr", "grad_norm", "seconds", "tokens"}:
        raise ValueError(
            f"heldout: the history has a column {sorted(taken)[0]!r} of its own; give the text another name"
        )
    return named


def _counted(targets: Array) -> int:
    """How many targets count in the loss."""
    return int((targets != IGNORE_INDEX).sum())


def _shares(batches: list[Batch]) -> list[float]:
    """The share of each batch in the loss of an update: its counted tokens among those of all."""
    if len(batches) == 1:
        return [1.0]  # without counting, which on a device would wait
    counts = [_counted(targets) for _, targets in batches]  # if nothing counts, the loss says so
    return [count / sum(counts) for count in counts] if any(counts) else [1.0] * len(batches)
