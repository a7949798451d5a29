"""The estimates that `train` prints: the memory before every run, and with --dry-run also the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..costs import Memory, memory
from ..data.conversations import ConversationBatches
from ..files import Tokenizer
from ..progress import duration
from ..training import AdamW, evaluate, train
from ..training.loop import Batch
from ..training.rows import pieces, tokens_at_once
from .help_page import counted

SAMPLE = 100  # batches from which the number of tokens of all batches is estimated


@dataclass(frozen=True)
class Plan:
    """A run that is ready to begin.

    `longest` is the number of tokens of the longest record. The last token is not counted, because the model predicts
    this token but does not read it. `checked` and `settings` are arguments of `train`; `check_run` checks the arguments
    in `checked`.
    """

    model: Any
    tokenizer: Tokenizer
    batches: ConversationBatches
    optimizer: AdamW
    steps: int
    longest: int
    checked: dict[str, Any]
    settings: dict[str, Any]


def step_memory(plan: Plan) -> Memory:
    """Return the memory of a step in which every record is as long as the longest record.

    Each worker computes its rows of the batch in pieces, and has its own gradients.
    """
    model = plan.model
    shards = pieces(plan.batches.batch_size, plan.longest, plan.settings["workers"], tokens_at_once(model))
    largest = max(piece.stop - piece.start for shard in shards for piece in shard)
    checkpointing = plan.settings.get("gradient_checkpointing", False)
    share, workers = memory(model, batch=largest, seq=plan.longest, checkpointing=checkpointing), len(shards)
    copies = workers + (plan.checked["accumulate"] > 1 and workers > 1)
    parts = {name: workers * getattr(share, name) for name in ("activations", "temporaries")}
    return replace(share, gradients=copies * share.gradients, **parts)


def memory_line(plan: Plan) -> str:
    """Return the memory of the largest step as one line of text."""
    found, rows = step_memory(plan), counted(plan.batches.batch_size, "record")
    parts = f"weights {size(found.weights)}, activations {size(found.activations)}"
    return f"arrays of the longest step, with {rows} of {plan.longest:,} tokens: {size(found.total)} ({parts})"


def print_estimate(plan: Plan) -> None:
    """Take one or two steps, and print the memory and the time of the run. Nothing is written."""
    print(f"\n{step_memory(plan)}\n")
    print("The table shows the arrays of a step. Python, its packages and the file of the model need more memory.")
    taken, checked = min(2, plan.steps), plan.checked | {"heldout": None, "eval_every": None}
    rows = train(
        plan.model, plan.batches, plan.optimizer, taken, progress=False, **checked, **plan.settings
    ).rows  # the first step also fills caches, so the last step is measured
    before = rows[-2] if taken > 1 else {"seconds": 0.0, "tokens": 0}
    per_token = (rows[-1]["seconds"] - before["seconds"]) / (rows[-1]["tokens"] - before["tokens"])
    seconds = per_token * _tokens(plan)
    text = f"{counted(plan.steps, 'step')} of {_short(seconds / plan.steps)}"
    if heldout := plan.checked["heldout"]:
        times, each = _evaluations(plan), _evaluation_seconds(plan, heldout)
        seconds += times * each
        text += f" and {counted(times, 'evaluation')} of {_short(each)}"
    print(f"time: about {duration(seconds)}: {text}, measured in {counted(taken, 'step')}")
    print("This was a dry run: no file was written. To train, leave out --dry-run.")


def _tokens(plan: Plan) -> float:
    """Return the number of tokens of all batches, with padding, estimated from evenly spaced batches."""
    number = plan.steps * plan.checked["accumulate"]
    sample = np.unique(np.linspace(0, number - 1, min(number, SAMPLE)).astype(int))
    return number * float(np.mean([plan.batches[int(i)][0].size for i in sample]))


def _evaluations(plan: Plan) -> int:
    """Return how often the held-out records are evaluated: before the first and after the last step, and every
    `eval_every` steps."""
    every = plan.checked["eval_every"] or plan.steps
    return 1 + -(-plan.steps // every)


def _evaluation_seconds(plan: Plan, heldout: Sequence[Batch]) -> float:
    """Return the time of one evaluation, measured on the middle batch, because the batches are sorted by length."""
    middle = heldout[len(heldout) // 2]
    began = time.perf_counter()
    evaluate(plan.model, [middle])
    return (time.perf_counter() - began) * sum(tokens.size for tokens, _ in heldout) / middle[0].size


def _short(seconds: float) -> str:
    """Return a duration as text, with two digits if the duration is short."""
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def size(number: float) -> str:
    """Return a number of bytes as text, in MB (10⁶ bytes) or GB (10⁹ bytes)."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
