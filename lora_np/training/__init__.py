"""Training: optimizers, the training loop, checkpoints.

Reading order: optim, schedule, clipping, parallel, checkpoint, history, loop, subspace.
"""

from .clipping import clip_grad_norm
from .history import History
from .loop import Batch, evaluate, train
from .optim import SGD, AdamW, Optimizer
from .schedule import WarmupCosine

__all__ = ["SGD", "AdamW", "Batch", "History", "Optimizer", "WarmupCosine", "clip_grad_norm", "evaluate", "train"]
