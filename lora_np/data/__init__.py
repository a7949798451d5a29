"""Training data: the text of Python's standard library, batches of windows, and conversations.

Reading order: stdlib, batches, baselines, records, conversations.
"""

from .baselines import bigram_loss, unigram_loss
from .batches import VOCAB_SIZE, Batch, Batches, decode, encode, heldout_batches
from .stdlib import END, Domain, Split, corpus, documents, family_of, split_of

__all__ = [
    "END",
    "VOCAB_SIZE",
    "Batch",
    "Batches",
    "Domain",
    "Split",
    "bigram_loss",
    "corpus",
    "decode",
    "documents",
    "encode",
    "family_of",
    "heldout_batches",
    "split_of",
    "unigram_loss",
]


def __getattr__(name: str) -> object:
    raise AttributeError(f"lora_np.data has no attribute {name!r}; it has {', '.join(__all__)} and conversations")
