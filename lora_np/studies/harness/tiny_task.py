"""The first standard task: the model "tiny", trained on English, is fine-tuned on Python code. A `Run` is one training run."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from ... import LoraConfig, Transformer, data, get_peft_model, load_model
from ...nn import Trainable
from ...training import AdamW, Batch, History, Optimizer, WarmupCosine, evaluate, train

TARGETS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "all-linear": "all-linear"}


@dataclass(frozen=True)
class Run:
    """The settings of one training run.

    Together with the base model's weights and the text, the settings determine the run's result.
    """

    method: str  # "full", "linear" (full fine-tuning of the linear layers alone), "lora", or "lora+rest"
    lr: float
    r: int | None = None
    target_modules: str | None = None  # a key of TARGETS
    seed: int = 0
    alpha_over_r: float = 8
    max_steps: int = 200
    batch_size: int = 8
    seq_len: int = 128
    eval_every: int = 20
    base: str = "tiny"

    def base_model(self) -> Transformer:
        """Return the base model, before fine-tuning."""
        return load_model(self.base)

    def text(self) -> np.ndarray:
        """Return the training text as bytes: shape (size,), dtype uint8."""
        return data.corpus("code", "train")

    def model(self) -> Trainable:
        """Return the base model, prepared to train all parameters, only those of the linear layers, or an adapter.

        "lora+rest" trains the adapter, the embedding (which is also the head) and the norms.
        """
        model = self.base_model()
        if self.method in ("full", "linear"):
            for name, p in model.named_parameters():
                p.trainable = self.method == "full" or "_proj." in name
            return model
        assert self.r is not None and self.target_modules is not None, "an adapter needs a rank and target modules"
        config = LoraConfig(
            r=self.r, lora_alpha=self.alpha_over_r * self.r, target_modules=TARGETS[self.target_modules]
        )
        peft_model = get_peft_model(model, config, seed=self.seed)
        for name, p in peft_model.named_parameters():
            p.trainable |= self.method == "lora+rest" and "_proj." not in name
        return peft_model


def heldout_batches() -> list[Batch]:
    """Return the held-out code on which methods are compared.

    This code is used neither for training nor for the choice of learning rates.
    """
    return _unseen()[1::2]


def validation_batches() -> list[Batch]:
    """Return the held-out code on which learning rates are chosen. This code is not used for training."""
    return _unseen()[::2]


@cache
def _unseen() -> list[Batch]:
    return data.heldout_batches(data.corpus("code", "heldout"), 16, 128, windows=256)


def fine_tune(run: Run, progress: bool = False) -> tuple[Trainable, History]:
    """Train on code with the settings of `run`; returns the model and its history."""
    model, batches = run.model(), data.Batches(run.text(), run.batch_size, run.seq_len, run.seed)
    options: dict[str, Any] = {"eval_every": run.eval_every, "label": run.method, "progress": progress}
    return model, train_by(run, model, batches, heldout_batches(), **options)


def train_by(
    run: Any, model: Trainable, batches: Any, heldout: Any, optimizer: Optimizer | None = None, **options: Any
) -> History:
    """Train with the run's lr, max_steps and seed, a short warm-up, a cosine schedule and gradients clipped to norm 1.

    The default `optimizer` is AdamW without weight decay.
    """
    schedule = WarmupCosine(run.max_steps, warmup=run.max_steps // 20)
    options |= {"schedule": schedule, "max_grad_norm": 1.0, "heldout": heldout, "seed": run.seed}
    return train(model, batches, optimizer or AdamW(lr=run.lr, weight_decay=0.0), run.max_steps, **options)


def measure(run: Run) -> dict[str, Any]:
    """Train once and return the row of the run.

    `steps`, `seconds` and `heldout` have one value per evaluation: the step, the time and the held-out loss (nats per
    byte). `final` is the last held-out loss. `validation` is the final loss on the other held-out text, which is used
    to choose the learning rate. `final` and `validation` are None if the run diverged.
    """
    try:
        model, history = fine_tune(run)
    except FloatingPointError:
        return asdict(run) | curve(None, "heldout", "seconds") | dict.fromkeys(("final", "validation"))
    row = asdict(run) | curve(history, "heldout", "seconds")
    return row | {"final": row["heldout"][-1], "validation": evaluate(model, validation_batches())}


def curve(history: History | None, *columns: str) -> dict[str, list[Any]]:
    """Return the step and the values of `columns` at each evaluation of a run, or empty lists if the run diverged."""
    points = [row for row in (history.rows if history else []) if "heldout" in row]
    return {"steps": [point["step"] for point in points]} | {key: [point[key] for point in points] for key in columns}


def recovered(rows: Sequence[dict[str, Any]], base_loss: float) -> list[float]:
    """Return each run's share of full fine-tuning's gain.

    The share is (base loss − final loss of the run) / (base loss − mean final loss of full fine-tuning).
    """
    full = statistics.mean(row["final"] for row in rows if row["method"] == "full")
    return [(base_loss - row["final"]) / (base_loss - full) for row in rows]


def shared(base: str) -> str:
    """Return a digest of everything that all runs share: the base's weights, the training text and the held-out text."""
    arrays = [data.corpus("code", "train"), *(x for batch in _unseen() for x in batch)]
    arrays += load_model(base, device="numpy").state_dict().values()
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)).hexdigest()
