"""A real language model learns a voice: full fine-tuning against LoRA on SmolLM2-135M, and what each forgets.

Both learn the "lighthouse" conversations, each at its own best learning rate. Of the held-out records every other one chooses
the rates and the rest is judged: the loss on the answers, the share of generated answers that keep the voice's habit, and the
loss on English prose that has nothing to do with either.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import conversations, data
from ..generate import generate
from ..nn import Module
from ..optim import AdamW, WarmupCosine
from ..peft import LoraConfig, get_peft_model
from ..pretrained import load_model, load_tokenizer
from ..train import Batch, History, evaluate, train
from ..transformer import Transformer
from .runs import at_their_best
from .step_cost import training_peak
from .table import Table

HABIT = "Logged at dusk: "  # every answer of the data set ends with a line that begins so
PROSE = 96, 128  # windows of so many tokens: what is forgotten
NEW_TOKENS = 80  # of a generated answer, at most


@dataclass(frozen=True)
class FineTuning:
    """One run: everything that decides its outcome, but the model and the records."""

    method: str  # "full" or "lora"
    lr: float
    r: int | None = None
    seed: int = 0
    max_steps: int = 40  # of batch_size records each
    batch_size: int = 8
    eval_every: int = 20
    workers: int = 2
    model: str = "smollm2-135m"
    data: str = "lighthouse"

    def base_model(self) -> Transformer:
        """The model as it is before anything is trained."""
        return load_model(self.model)

    def load(self) -> Module:
        """The model, all of it trainable, or with an adapter in every linear layer: α = 2r."""
        model = self.base_model()
        if self.method == "full":
            return model
        return get_peft_model(model, LoraConfig(self.r, 2 * self.r, "all-linear"), seed=self.seed)


@dataclass(frozen=True)
class Setting:
    """How much of the study to run."""

    base: FineTuning = FineTuning("full", 0.0)
    r: int = 8
    full_lrs: Sequence[float] = (3e-5, 1e-4, 3e-4)
    lora_lrs: Sequence[float] = (1e-3, 3e-3, 1e-2)
    seeds: Sequence[int] = (0, 1, 2)


def heldout(run: FineTuning) -> tuple[list[Batch], list[Batch]]:
    """The batches that rates are chosen by, and those that are judged."""
    examples = conversations.read(run.data, load_tokenizer(run.model), split="heldout")
    return tuple(conversations.heldout_batches(half, run.batch_size) for half in (examples[::2], examples[1::2]))


def prose(run: FineTuning) -> list[Batch]:
    """English that the run does not touch, in this model's tokens: documentation, held-out."""
    count, length = PROSE
    text = bytes(data.corpus("prose", "heldout")).decode("utf-8", errors="replace")
    tokens = load_tokenizer(run.model).encode(text[: 8 * count * length])
    return data.heldout_batches(tokens, run.batch_size, length, windows=count)


def answers(model: Module, run: FineTuning) -> list[dict[str, str]]:
    """What the model says to the judged questions, greedily: rows {question, answer}."""
    tokenizer = load_tokenizer(run.model)
    questions = [q for q in conversations.first_questions(run.data, "heldout")][1::2]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q}]) for q in questions]
    new = generate(model, prompts, NEW_TOKENS, stop_tokens=[tokenizer.eos_token_id])
    return [{"question": q, "answer": tokenizer.decode(ids).strip()} for q, ids in zip(questions, new, strict=True)]


def judge(model: Module, run: FineTuning) -> dict[str, Any]:
    """validation and final (nats a token of the answers), prose (nats a token), habit (share of answers), answers."""
    choosing, judging = heldout(run)
    said = answers(model, run)
    return {
        "validation": evaluate(model, choosing),
        "final": evaluate(model, judging),
        "prose": evaluate(model, prose(run)),
        "habit": sum(HABIT in row["answer"] for row in said) / len(said),
        "answers": said,
    }


def fine_tune(run: FineTuning) -> tuple[Module, History]:
    """Train as `run` says: AdamW without decay, a short warm-up and a cosine, gradients clipped to norm 1."""
    model = run.load()
    records = conversations.read(run.data, load_tokenizer(run.model))
    history = train(
        model,
        conversations.ConversationBatches(records, run.batch_size, run.seed),
        AdamW(lr=run.lr, weight_decay=0.0),
        run.max_steps,
        schedule=WarmupCosine(run.max_steps, warmup=run.max_steps // 10),
        max_grad_norm=1.0,
        heldout=heldout(run)[1],
        eval_every=run.eval_every,
        seed=run.seed,
        workers=run.workers,
        label=f"{run.method} {run.lr:g}",
        progress=False,
    )
    return model, history


def measure(run: FineTuning) -> dict[str, Any]:
    """Train once. The row has the held-out loss over steps and seconds, and what `judge` says; None where it diverged."""
    try:
        model, history = fine_tune(run)
    except FloatingPointError:
        lost = dict.fromkeys(("validation", "final", "prose", "habit"))
        return asdict(run) | lost | {"steps": [], "heldout": [], "seconds": [], "answers": []}
    points = [row for row in history.rows if "heldout" in row]
    curve = {"steps": [p["step"] for p in points]} | {key: [p[key] for p in points] for key in ("heldout", "seconds")}
    return asdict(run) | curve | judge(model, run)


def finetuning(
    setting: Setting | None = None,
    folder: str | Path | None = None,
) -> Table:
    """Sweep each method's learning rate with the first seed, then run the best with all of them.

    Rows as `measure` gives them, with phase "sweep" or "seeds". settings: "before", what `judge` says of the model as it was;
    "peak_bytes" and "step_seconds" of each method, on one full batch of the longest records, timed in turns. One run at a
    time: its threads share the cores. `folder` keeps each finished run.
    """
    setting = setting or Setting()
    full = replace(setting.base, seed=setting.seeds[0])
    lora = replace(full, method="lora", r=setting.r)
    lrs = {full: setting.full_lrs, lora: setting.lora_lrs}
    found = at_their_best(measure, lrs, setting.seeds, 1, folder, shared(setting.base), factor=3)
    return Table(
        study="finetuning",
        question="What does a real language model gain and forget, fully fine-tuned and with LoRA?",
        command="python -m lora_np study finetuning",
        settings=asdict(setting) | {"before": judge(load_model(setting.base.model), setting.base)} | cost([full, lora]),
        rows=[row | {"phase": "sweep"} for row in found.rates] + [row | {"phase": "seeds"} for row in found.seeds],
        seconds=found.seconds(),
    )


def cost(methods: Sequence[FineTuning], repeats: int = 3) -> dict[str, dict[str, float]]:
    """{"peak_bytes", "step_seconds"} → method → of a training step; the methods take turns, so that noise hits all alike."""
    run = methods[0]
    records = conversations.read(run.data, load_tokenizer(run.model))
    batch = max(conversations.heldout_batches(records, run.batch_size), key=lambda batch: batch[0].size)
    peaks = {m.method: training_peak(m.load(), [batch], m.workers) for m in methods}
    models, times = {m.method: m.load() for m in methods}, {m.method: [] for m in methods}
    for _ in range(1 + repeats):  # the first is to warm up
        for m in methods:
            history = train(models[m.method], [batch], AdamW(lr=1e-6), 2, workers=m.workers, progress=False)
            times[m.method].append(history.rows[-1]["seconds"] / 2)
    return {"peak_bytes": peaks, "step_seconds": {m: statistics.median(seconds[1:]) for m, seconds in times.items()}}


def shared(run: FineTuning) -> str:
    """A digest of what all runs share and their fields do not say: the weights, the records, the prose, what is asked."""
    digest = hashlib.sha256(repr((HABIT, PROSE, NEW_TOKENS)).encode())
    for split in ("train", "heldout"):
        digest.update(conversations.dataset(run.data, split).read_bytes())
    arrays = [x for batch in prose(run) for x in batch]
    for x in [*arrays, *load_model(run.model, device="numpy").state_dict().values()]:
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
