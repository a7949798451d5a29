"""The second standard task: SmolLM2-135M is fine-tuned on the voice of a lighthouse keeper. A `FineTuning` is one run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ... import (
    LoraConfig,
    PeftModel,
    Transformer,
    conversations,
    data,
    generate,
    get_peft_model,
    load_model,
    load_tokenizer,
)
from ...training import AdamW, Batch, History, WarmupCosine, evaluate, train
from .tiny_task import curve

HABIT = "Logged at dusk: "  # every answer of the data set ends with a line that begins with these words
PROSE = 96, 128  # windows and tokens per window of the English text on which forgetting is measured
NEW_TOKENS = 80  # the largest length of a generated answer


@dataclass(frozen=True)
class FineTuning:
    """The settings of one run.

    Together with the model's weights and the records, the settings determine the run's result.
    """

    method: str  # "full" or "lora"
    lr: float
    r: int | None = None
    seed: int = 0
    max_steps: int = 40  # each with batch_size records
    batch_size: int = 8
    eval_every: int = 20
    workers: int = 2
    model: str = "smollm2-135m"
    data: str = "lighthouse"

    def base_model(self) -> Transformer:
        """Return the model, before fine-tuning."""
        return load_model(self.model)

    def load(self) -> Transformer | PeftModel:
        """Return the model with all parameters trainable, or with a LoRA adapter (α = 2r) in every linear layer."""
        model = self.base_model()
        if self.method == "full":
            return model
        assert self.r is not None, "an adapter needs a rank"
        return get_peft_model(
            model, LoraConfig(r=self.r, lora_alpha=2 * self.r, target_modules="all-linear"), seed=self.seed
        )

    def optimizer(self) -> AdamW:
        """Return AdamW without weight decay."""
        return AdamW(lr=self.lr, weight_decay=0.0)


def heldout(run: FineTuning) -> tuple[list[Batch], list[Batch]]:
    """Return two lists of held-out batches: one to choose the learning rates, and one to compare the methods."""
    examples = conversations.read(run.data, load_tokenizer(run.model), split="heldout")
    choosing, judging = (conversations.heldout_batches(examples[i::2], run.batch_size) for i in (0, 1))
    return choosing, judging


def prose(run: FineTuning) -> list[Batch]:
    """Return batches of English documentation, on which forgetting is measured. The batches are not used for training."""
    count, length = PROSE
    text = bytes(data.corpus("prose", "heldout")).decode("utf-8", errors="replace")
    tokens = load_tokenizer(run.model).encode(text[: 8 * count * length])
    return data.heldout_batches(tokens, run.batch_size, length, windows=count)


def answers(model: Transformer | PeftModel, run: FineTuning) -> list[dict[str, str]]:
    """Generate greedy answers to the held-out questions; return rows with `question` and `answer`."""
    tokenizer = load_tokenizer(run.model)
    questions = list(conversations.first_questions(run.data, "heldout"))[1::2]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q}]) for q in questions]
    new = generate(model, prompts, NEW_TOKENS, stop_tokens=tokenizer.stop_token_ids)
    return [{"question": q, "answer": tokenizer.decode(ids).strip()} for q, ids in zip(questions, new, strict=True)]


def losses(model: Transformer | PeftModel, run: FineTuning) -> dict[str, float]:
    """Return the losses `validation` and `final` (nats per answer token) and `prose` (nats per token)."""
    texts = zip(("validation", "final", "prose"), (*heldout(run), prose(run)), strict=True)
    return {name: evaluate(model, batches) for name, batches in texts}


def judge(model: Transformer | PeftModel, run: FineTuning) -> dict[str, Any]:
    """Return the losses, the answers, and `habit`: the share of the answers that contain the keeper's closing words."""
    rows = answers(model, run)
    return losses(model, run) | {"habit": sum(HABIT in row["answer"] for row in rows) / len(rows), "answers": rows}


def fine_tune(run: FineTuning) -> tuple[Transformer | PeftModel, History]:
    """Train with the run's optimizer, a short warm-up, a cosine schedule and gradients clipped to norm 1."""
    model = run.load()
    records = conversations.read(run.data, load_tokenizer(run.model))
    history = train(
        model,
        conversations.ConversationBatches(records, run.batch_size, run.seed),
        run.optimizer(),
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


def measure(
    run: FineTuning, judge: Callable[[Transformer | PeftModel, FineTuning], dict[str, Any]] = judge
) -> dict[str, Any]:
    """Train once and return the row of the run: held-out losses over steps and seconds, and the results of `judge`.

    The results of `judge` are None if the run diverged.
    """
    try:
        model, history = fine_tune(run)
    except FloatingPointError:
        lost = dict.fromkeys(("validation", "final", "prose", "habit")) | {"answers": []}
        return asdict(run) | curve(None, "heldout", "seconds") | lost
    return asdict(run) | curve(history, "heldout", "seconds") | judge(model, run)


def shared(run: FineTuning) -> str:
    """Return a digest of everything that all runs share: the weights, the records, the prose and the questions."""
    digest = hashlib.sha256(repr((HABIT, PROSE, NEW_TOKENS)).encode())
    for split in ("train", "heldout"):
        digest.update(conversations.dataset(run.data, split).read_bytes())
    arrays = [x for batch in prose(run) for x in batch]
    for x in [*arrays, *load_model(run.model, device="numpy").state_dict().values()]:
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
