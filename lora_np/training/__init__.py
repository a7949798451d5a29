"""Training: optimizers, the training loop, checkpoints. Reading order: optim, parallel, checkpoint, loop, subspace."""

from .loop import Batch, History, evaluate, train
from .optim import SGD, AdamW, Optimizer, WarmupCosine, clip_grad_norm

__all__ = ["SGD", "AdamW", "Batch", "History", "Optimizer", "WarmupCosine", "clip_grad_norm", "evaluate", "train"]
