"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): less memory, more time.

A block keeps only its input. The backward pass computes the block's forward pass again, with the same dropout masks, so
the gradients are bitwise equal to the gradients without checkpointing. The cost is a second forward pass: a third more
matrix products in full fine-tuning.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array
from ..nn import Context, Module
from .cache import LayerCache


class BlockInput(NamedTuple):
    """The cache of a block under gradient checkpointing: everything that the forward pass needs to run again."""

    x: Array  # (b, t, d)
    rotary: tuple[Array, Array]
    context: Context
    random_state: Any  # of the generator of dropout masks, before the block drew its masks

    def cache(self, block: Module) -> Any:
        """Run the forward pass of the block again, and return the cache of its backward pass."""
        rng = self.context.rng
        if rng is None:
            return block.forward(self.x, self.rotary, self.context)[1]
        later, rng.bit_generator.state = rng.bit_generator.state, self.random_state
        try:
            return block.forward(self.x, self.rotary, self.context)[1]
        finally:
            rng.bit_generator.state = later


def forward_and_forget(
    block: Module, x: Array, rotary: tuple[Array, Array], context: Context, past: LayerCache | None
) -> tuple[Array, BlockInput]:
    """Compute the output (b, t, d) of a block, and keep only its input.

    Raises ValueError if there is a key/value cache, because a second forward pass would extend it a second time.
    """
    if past is not None:
        raise ValueError(
            "gradient checkpointing does not work with past_key_values, which prefix tuning also uses; call "
            "gradient_checkpointing_disable()"
        )
    state = None if context.rng is None else context.rng.bit_generator.state
    return block.forward(x, rotary, context)[0], BlockInput(x, rotary, context, state)
