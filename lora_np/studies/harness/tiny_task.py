"""One standard task: "tiny", which has read English, learns Python code. A Run is one training run on it."""

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
    """One training run: everything that decides its outcome, but the base and the text."""

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
        """The base as it is before anything is trained."""
        return load_model(self.base)

    def text(self) -> np.ndarray:
        """The bytes to train on: (size,) uint8."""
        return data.corpus("code", "train")

    def model(self) -> Trainable:
        """The base, made ready to train: all of it, its linear layers, or an adapter in it.

        "lora+rest" trains what an adapter leaves frozen beside it: the embedding, which is the head too, and the norms.
        """
        model = self.base_model()
        if self.method in ("full", "linear"):
            for name, p in model.named_parameters():
                p.trainable = self.method == "full" or "_proj." in name
            return model
        assert self.r is not None and self.target_modules is not None, "an adapter has a rank and its layers"
        config = LoraConfig(
            r=self.r, lora_alpha=self.alpha_over_r * self.r, target_modules=TARGETS[self.target_modules]
        )
        peft_model = get_peft_model(model, config, seed=self.seed)
        for name, p in peft_model.named_parameters():
            p.trainable |= self.method == "lora+rest" and "_proj." not in name
        return peft_model


def heldout_batches() -> list[Batch]:
    """The code that no run trains on and no choice is made by: what the comparison reads."""
    return _unseen()[1::2]


def validation_batches() -> list[Batch]:
    """The code that no run trains on and that the learning rates are chosen by."""
    return _unseen()[::2]


@cache
def _unseen() -> list[Batch]:
    return data.heldout_batches(data.corpus("code", "heldout"), 16, 128, windows=256)


def fine_tune(run: Run, progress: bool = False) -> tuple[Trainable, History]:
    """Train as `run` says: on code, in the way of `train_by`."""
    model, batches = run.model(), data.Batches(run.text(), run.batch_size, run.seq_len, run.seed)
    said: dict[str, Any] = {"eval_every": run.eval_every, "label": run.method, "progress": progress}
    return model, train_by(run, model, batches, heldout_batches(), **said)


def train_by(
    run: Any, model: Trainable, batches: Any, heldout: Any, optimizer: Optimizer | None = None, **options: Any
) -> History:
    """A short warm-up and a cosine, gradients clipped to norm 1; lr, max_steps and seed are the run's.

    Without an `optimizer` it is AdamW without decay.
    """
    schedule = WarmupCosine(run.max_steps, warmup=run.max_steps // 20)
    options |= {"schedule": schedule, "max_grad_norm": 1.0, "heldout": heldout, "seed": run.seed}
    return train(model, batches, optimizer or AdamW(lr=run.lr, weight_decay=0.0), run.max_steps, **options)


def measure(run: Run) -> dict[str, Any]:
    """Train once; the row has the held-out loss (nats a byte) over steps and seconds of training, and the last one as final.

    validation is the trained model's loss on the text that the learning rate is chosen by. Both are None if it diverged.
    """
    try:
        model, history = fine_tune(run)
    except FloatingPointError:
        return asdict(run) | curve(None, "heldout", "seconds") | dict.fromkeys(("final", "validation"))
    row = asdict(run) | curve(history, "heldout", "seconds")
    return row | {"final": row["heldout"][-1], "validation": evaluate(model, validation_batches())}


def curve(history: History | None, *columns: str) -> dict[str, list[Any]]:
    """The evaluations on the way: their steps, and `columns`; none of a run that diverged."""
    points = [row for row in (history.rows if history else []) if "heldout" in row]
    return {"steps": [point["step"] for point in points]} | {key: [point[key] for point in points] for key in columns}


def recovered(rows: Sequence[dict[str, Any]], base_loss: float) -> list[float]:
    """For each run (base − its loss) / (base − full fine-tuning's loss), the mean over full fine-tuning's runs."""
    full = statistics.mean(row["final"] for row in rows if row["method"] == "full")
    return [(base_loss - row["final"]) / (base_loss - full) for row in rows]


def shared(base: str) -> str:
    """A digest of what all runs share: the base's weights, the code to train on and the held-out windows."""
    arrays = [data.corpus("code", "train"), *(x for batch in _unseen() for x in batch)]
    arrays += load_model(base, device="numpy").state_dict().values()
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)).hexdigest()
