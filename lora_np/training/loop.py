"""The training loop: batch → loss → backward → optimizer step, with held-out evaluation, a history and checkpoints.

All random numbers depend only on `seed` and `step`, so each step always has the same batch and the same dropout masks.
Therefore a run that stops and resumes from a checkpoint gives exactly the result of an uninterrupted run, and a
checkpoint needs no random state. Ctrl-C saves the state after the last complete update; see interrupts.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ..backend import Array, scalars_to_host
from ..memory import keep_freed_memory
from ..nn import Trainable
from ..ops import IGNORE_INDEX
from ..progress import Progress
from .checkpoint import Checkpoint, digests, run_settings
from .clipping import clip_grad_norm, grad_norm
from .history import History
from .interrupts import Interrupts
from .optim import Optimizer
from .parallel import loss_and_gradients
from .schedule import Schedule, constant

DROPOUT = 0x64726F70  # makes dropout masks independent of data.Batches, which is seeded with [seed, step]
Batch = tuple[Array, Array]  # tokens (b, t) and targets (b, t), which are the tokens shifted by one


class Batches(Protocol):
    """An object that returns the arrays `tokens` and `targets` for `batches[step]`, such as data.Batches or a list.

    If a list has fewer batches than the run needs, the list is repeated. The object can have an attribute `digest`, a
    string that identifies the data. A checkpoint stores this string, to check that a resumed run uses the same data.
    """

    def __getitem__(self, step: int, /) -> Batch: ...


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
    gradient_checkpointing: bool = False,
    label: str = "train",
    progress: bool | Literal["lines"] = True,
    on_step: Callable[[History], object] | None = None,
) -> History:
    """Train the trainable parameters of a model: the adapter of a PeftModel, or all weights of a Transformer.

    Parameters
    ----------
    model : PeftModel or Transformer
        The model. The trainable parameters are updated in place.
    batches : data.Batches, ConversationBatches or list
        `batches[i]` returns the arrays `tokens` and `targets`, both integers of shape (b, t). If a list has
        fewer batches than the run needs, the list is repeated.
    optimizer : Optimizer
        SGD or AdamW. The state of the optimizer is reset at the start, or loaded from the checkpoint.
    steps : int
        Total number of updates. In a resumed run, this number includes the updates before the checkpoint.
    schedule : callable
        The learning rate at each step is optimizer.lr · schedule(step), for example `WarmupCosine`.
    max_grad_norm : float, optional
        If the norm of the gradient is larger than `max_grad_norm`, the gradient is scaled to this norm. None means no
        clipping.
    accumulate : int
        Number of batches per update. The loss is the mean over all counted tokens of these batches.
    heldout : list of (ndarray, ndarray), or dict of str to such lists, optional
        Batches for evaluation. The history contains the held-out losses in the column "heldout". For a dict, the
        history contains one column per key.
    eval_every : int, optional
        Evaluate every `eval_every` steps. Held-out batches are always evaluated before the first and after the last step.
    checkpoint : str or PathLike, optional
        A file to which the state of the run is saved.
    checkpoint_every : int
        Save every `checkpoint_every` steps. The state is also saved at the first and the last step, and after Ctrl-C.
    resume : bool
        If True and the checkpoint exists, continue from the checkpoint. The result equals exactly the result of an
        uninterrupted run.
    seed : int
        Seed of the dropout masks.
    workers : int
        Number of threads among which the rows of each batch are divided. If it is above 1, each step limits the threads
        of the BLAS and the switch interval of Python for the whole process, and restores both settings afterwards.
    gradient_checkpointing : bool
        True saves memory: each block keeps only its input, and runs its forward pass again in the backward pass. The
        gradients are bitwise equal to the gradients without checkpointing.
    label : str
        Text in front of the progress bar.
    progress : bool or "lines"
        True shows a progress bar on a terminal; "lines" prints a line from time to time if there is no terminal.
    on_step : callable, optional
        A function that is called after each step with the history so far, for example to write the losses to a file.

    Returns
    -------
    History
        Loss, learning rate, gradient norm and time of each step, and the held-out losses.

    Raises
    ------
    ValueError
        If nothing is trainable, if an argument is out of range, or if the checkpoint belongs to another run. Two runs
        count as different if their settings, their frozen weights or their `batches.digest` differ.
    FileExistsError
        If the checkpoint exists and `resume` is False.
    BlockingIOError
        If another run uses the same checkpoint.
    KeyboardInterrupt
        After Ctrl-C. If there is a checkpoint, the checkpoint then contains every complete update.
    FloatingPointError
        If a loss, a gradient or a weight is not finite. If a checkpoint exists, the model is reset to the
        state in the checkpoint before the error is raised.

    Examples
    --------
    >>> import lora_np as ln
    >>> model = ln.get_peft_model(ln.load_model("tiny", device="numpy"), ln.LoraConfig(r=2))
    >>> tokens = ln.data.encode("LoRA adds a product of two thin matrices.")[None]
    >>> history = ln.train(model, [(tokens[:, :-1], tokens[:, 1:])], ln.AdamW(lr=0.02), steps=5, progress=False)
    >>> losses = history.column("loss")
    >>> len(losses), losses[-1] < losses[0]
    (5, True)
    """
    check_run(steps, max_grad_norm, accumulate, heldout, eval_every, checkpoint_every)
    if not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which cannot be indexed; expected a list, or data.Batches"
        )
    if isinstance(batches, Sequence) and not batches:
        raise ValueError("batches is empty; expected at least one batch")
    trainable = [(name, p) for name, p in model.named_parameters() if p.trainable]
    if not trainable:
        raise ValueError("nothing is trainable; call unfreeze() on the model, or add an adapter with get_peft_model")
    optimizer.check(name for name, _ in trainable)
    if gradient_checkpointing and not hasattr(model, "gradient_checkpointing_enable"):
        raise TypeError(f"{type(model).__name__} has no gradient checkpointing; leave gradient_checkpointing out")
    history, start = History(), 0
    unseen = {name: list(text) if isinstance(text, Iterator) else text for name, text in _by_name(heldout).items()}
    settings = run_settings(model, optimizer, steps, schedule, max_grad_norm, accumulate, seed, workers)
    if checkpoint is not None:
        settings |= digests(model, batches)
    saved = Checkpoint(checkpoint, model, optimizer, settings)
    with saved.locked(), Interrupts() as interrupts:
        if checkpoint is not None and Path(checkpoint).exists():
            if not resume:
                raise FileExistsError(
                    f"{checkpoint} exists; pass resume=True to continue from it, or remove it to start again"
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
            began += time.perf_counter() - paused  # evaluation does not count as training time
            for value in values.values():
                if not math.isfinite(value):
                    with interrupts.held():
                        raise saved.stopped(step, f"held-out loss {value}")
            return values

        def evaluate_if_due(step: int) -> None:
            """Add the held-out losses to the last row.

            If Ctrl-C stops an evaluation, the resumed run repeats the evaluation.
            """
            due = step == steps or (eval_every and step % eval_every == 0)
            if due and not unseen.keys() <= history.rows[-1].keys():
                history.rows[-1] |= heldout_losses(step)

        shown_as = Progress(steps, label, enabled=bool(progress), lines=progress == "lines", done=start)
        with keep_freed_memory(), _checkpointing(model, gradient_checkpointing), shown_as as bar:
            shown = bar.bar is not None or bar.lines
            if start and shown:
                bar.say(f"{label}: resumed at step {start} of {steps}")
            try:
                if history.rows:
                    evaluate_if_due(start)
                elif unseen:
                    history.rows.append({"step": 0, **heldout_losses(0), "seconds": 0.0, "tokens": 0})
                for step in range(start, steps):
                    total, tokens = _gradients(model, batches, step, accumulate, seed, workers)
                    size = grad_norm(trainable) if max_grad_norm is None else clip_grad_norm(trainable, max_grad_norm)
                    loss, norm = map(float, scalars_to_host([total, size]))
                    with interrupts.held():  # no Ctrl-C between the parts of an update
                        if not (math.isfinite(loss) and math.isfinite(norm)):
                            raise saved.stopped(step + 1, f"loss {loss}, gradient norm {norm}")
                        if step % checkpoint_every == 0:
                            saved.save(step, history.rows)  # the finite loss shows that the last update was good
                        lr = optimizer.lr * schedule(step)
                        optimizer.step(trainable, lr=lr)
                        tokens_seen += tokens
                        row = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": norm}
                        history.rows.append(row | {"seconds": time.perf_counter() - began, "tokens": tokens_seen})
                    evaluate_if_due(step + 1)
                    rate = round(tokens_seen / max(history.rows[-1]["seconds"], 1e-9))
                    bar.update(1, loss=loss, **{"tokens/s": rate})
                    if on_step is not None:
                        on_step(history)
                with interrupts.held():
                    saved.save(steps, history.rows)
            except KeyboardInterrupt:
                if checkpoint is not None:
                    saved.save(optimizer.t, history.rows)
                    if shown:
                        bar.say(f"{label}: stopped at step {optimizer.t} of {steps}; the state is in {checkpoint}")
                raise
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
    """Raise ValueError if `train` refuses these arguments. Call this function before work that cannot be undone."""
    if steps < 1 or accumulate < 1 or checkpoint_every < 1 or (eval_every is not None and eval_every < 1):
        raise ValueError(
            f"steps = {steps}, accumulate = {accumulate}, checkpoint_every = {checkpoint_every}, eval_every = {eval_every}; "
            "expected at least 1 for each"
        )
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm = {max_grad_norm}; expected a number > 0, or None for no clipping")
    if not _by_name(heldout) and eval_every is not None:
        raise ValueError(f"eval_every = {eval_every}, but heldout is missing; give both or neither")


def evaluate(model: Trainable, batches: Sequence[Batch]) -> float:
    """Return the mean negative log-likelihood of the targets in all batches. Dropout is off.

    Parameters
    ----------
    model : PeftModel or Transformer
        The model.
    batches : list of (ndarray, ndarray)
        Tokens and targets, integers of shape (b, t) each. Targets equal to `ops.IGNORE_INDEX` do not count
        in the mean.

    Returns
    -------
    float
        The mean over all counted targets, in nats per token.

    Raises
    ------
    ValueError
        If no target counts in the mean.

    Examples
    --------
    >>> import lora_np as ln
    >>> tokens = ln.data.encode("The quick brown fox jumps over the lazy dog.")[None]
    >>> loss = ln.evaluate(ln.load_model("tiny", device="numpy"), [(tokens[:, :-1], tokens[:, 1:])])
    >>> 1 < loss < 4
    True
    """
    total, count = 0.0, 0
    for tokens, targets in batches:
        if n := _counted(targets):
            total += float(model.loss(tokens, targets)[0]) * n
            count += n
    if not count:
        raise ValueError(
            "nothing to evaluate, because the list of held-out batches is empty, or all targets in the list are ignored"
        )
    return total / count


def _gradients(
    model: Trainable, batches: Batches, step: int, accumulate: int, seed: int, workers: int
) -> tuple[Array, int]:
    """Compute the gradients of one update.

    Return the loss and the number of tokens in the update's batches, including padding.
    """
    model.zero_grad()
    numbers = range(step * accumulate, (step + 1) * accumulate)
    together = [batches[i % len(batches)] if isinstance(batches, Sequence) else batches[i] for i in numbers]
    losses = []
    for i, (tokens, targets), share in zip(numbers, together, _shares(together), strict=True):
        if share:  # else no target of this batch counts
            rng = np.random.default_rng([seed, i, DROPOUT])
            losses.append(share * loss_and_gradients(model, tokens, targets, rng, workers, share))
    return sum(losses[1:], losses[0]), sum(tokens.size for tokens, _ in together)


@contextmanager
def _checkpointing(model: Any, on: bool) -> Iterator[None]:
    """Turn gradient checkpointing on while the context is open.

    If gradient checkpointing was on before, it stays on afterwards.
    """
    before = getattr(model, "gradient_checkpointing", False)
    if on:
        model.gradient_checkpointing_enable()
    try:
        yield
    finally:
        if on and not before:
            model.gradient_checkpointing_disable()


def _by_name(heldout: Sequence[Batch] | Mapping[str, Sequence[Batch]] | None) -> dict[str, Sequence[Batch]]:
    """Return the held-out texts by column name. Raise ValueError if another column of the history has the same name."""
    named = dict(heldout) if isinstance(heldout, Mapping) else {} if heldout is None else {"heldout": heldout}
    if taken := named.keys() & {"step", "loss", "lr", "grad_norm", "seconds", "tokens"}:
        raise ValueError(
            f"heldout: {sorted(taken)[0]!r} is already a column of the history; give the text another name"
        )
    return named


def _counted(targets: Array) -> int:
    """Return the number of targets that count in the loss."""
    return int((targets != IGNORE_INDEX).sum())


def _shares(batches: list[Batch]) -> list[float]:
    """Return the weight of each batch in the loss of an update: the counted tokens of the batch divided
    by the counted tokens of all batches."""
    if len(batches) == 1:
        return [1.0]  # without counting: on a GPU that would synchronise
    counts = [_counted(targets) for _, targets in batches]  # if no target counts, `model.loss` raises the error
    return [count / sum(counts) for count in counts] if any(counts) else [1.0] * len(batches)
