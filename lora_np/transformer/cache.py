"""The key/value cache. The cache stores the keys and values of earlier tokens, so that generation computes only new
tokens.

The keys and values of a token depend only on that token and the tokens before it. Later tokens do not
change these keys and values.

A cache can begin with the trainable prefix of prefix tuning: keys and values that are not computed from tokens. `begin` writes the
prefix, and after a backward pass `take_grad` returns the gradient of the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend import Array, array_module
from .config import TransformerConfig


class LayerCache:
    """The keys and the values of one layer, each of shape (b, g, s, d). The buffers double in size when they are full."""

    def __init__(self) -> None:
        self.buffers: tuple[Array, Array] | None = None
        self.length = 0
        self.prefix_length = 0  # the first `prefix_length` positions are a trainable prefix
        self.grad: tuple[Array, Array] | None = None  # of the prefix, summed over the rows: (g, prefix_length, d) each

    @property
    def trainable(self) -> bool:
        """True if the cache begins with a trainable prefix, which needs a gradient."""
        return self.prefix_length > 0

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append the keys k and values v of new tokens (b, g, t, d). Return all keys and all values as views (b, g, s, d)."""
        b, g, t, d = k.shape
        if self.buffers is not None and self.buffers[0].dtype != k.dtype:
            raise TypeError(
                f"the cache contains {self.buffers[0].dtype} keys, but this call computed {k.dtype} keys; use one dtype for model, "
                "prefix and cache, because no array is converted automatically"
            )
        end = self.length + t
        if self.buffers is None or self.buffers[0].shape[2] < end:
            xp, capacity = array_module(k), max(2 * self.length, end)
            grown = xp.empty((b, g, capacity, d), k.dtype), xp.empty((b, g, capacity, d), v.dtype)
            for old, new in zip(self.buffers or (), grown, strict=False):
                new[:, :, : self.length] = old[:, :, : self.length]
            self.buffers = grown
        for new, buffer in zip((k, v), self.buffers, strict=True):
            buffer[:, :, self.length : end] = new
        self.length = end
        return self.buffers[0][:, :, :end], self.buffers[1][:, :, :end]

    def add_grad(self, dk: Array, dv: Array) -> None:
        """Add the prefix's part of dk and dv (b, g, s, d) to `grad`, summed over the rows, because all rows share the prefix."""
        dk, dv = (x[:, :, : self.prefix_length].sum(axis=0) for x in (dk, dv))
        self.grad = (dk, dv) if self.grad is None else (self.grad[0] + dk, self.grad[1] + dv)


class KeyValueCache:
    """The keys and values of all tokens that a model has read, with one `LayerCache` per layer.

    Pass the cache to `Transformer.forward` as `past_key_values`. Each call reads the cache and appends the keys and
    values of its tokens. `len(cache)` is the number of tokens in the cache, including the tokens of a prefix.

    Parameters
    ----------
    config : TransformerConfig
        The configuration of the model that will fill the cache.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> model = ln.load_model("tiny", device="numpy")
    >>> tokens = np.array([[72, 101, 108, 108, 111]])
    >>> cache = ln.transformer.KeyValueCache(model.config)
    >>> _ = model.forward(tokens[:, :4], past_key_values=cache)
    >>> cache
    KeyValueCache(5 layers, 1 rows of 4 tokens)
    >>> last, _ = model.forward(tokens[:, 4:], past_key_values=cache)
    >>> whole, _ = model.forward(tokens)
    >>> np.allclose(last[0, -1], whole[0, -1], atol=1e-4)
    True
    """

    prefix_source: tuple[str, Any] | None = None  # name and encoder of the adapter that computed the prefix

    def __init__(self, config: TransformerConfig) -> None:
        self.layers: Sequence[LayerCache] = [LayerCache() for _ in range(config.num_hidden_layers)]

    def __repr__(self) -> str:
        return f"KeyValueCache({len(self.layers)} layers, {self.batch_size} rows of {len(self)} tokens)"

    def __len__(self) -> int:
        """Number of tokens in the cache, including the tokens of a prefix."""
        return self.layers[0].length

    @property
    def batch_size(self) -> int:
        """Number of rows in the cache; 0 before the first call."""
        buffers = self.layers[0].buffers
        return 0 if buffers is None else buffers[0].shape[0]

    @property
    def trainable(self) -> bool:
        """True if the cache begins with a trainable prefix, which needs a gradient."""
        return self.layers[0].trainable

    def begin(self, prefix: Array, rows: int, trainable: bool = False, source: tuple[str, Any] | None = None) -> None:
        """Write a prefix of v virtual tokens into the empty cache. All rows get the same prefix.

        Parameters
        ----------
        prefix : ndarray, shape (v, 2L, g, d)
            Keys and values: `prefix[:, 2i]` are the keys of layer i, and `prefix[:, 2i + 1]` are the values of layer i.
        rows : int
            Number of rows in the batch.
        trainable : bool
            If True, a backward pass computes the gradient of the prefix, and `take_grad` returns this gradient.
        source : tuple of (str, object), optional
            The name and the encoder of the adapter that computed the prefix. Later calls must use the same adapter.

        Raises
        ------
        ValueError
            If the cache already holds tokens.
        """
        if len(self):
            raise ValueError(
                f"a prefix must come before all tokens, but this cache already contains {len(self)} tokens; use a new cache"
            )
        self.prefix_source = source
        for i, layer in enumerate(self.layers):
            k, v = (prefix[:, j].swapaxes(0, 1) for j in (2 * i, 2 * i + 1))  # (v, g, d) → (g, v, d)
            layer.extend(*(array_module(x).broadcast_to(x, (rows, *x.shape)) for x in (k, v)))
            layer.prefix_length = layer.length if trainable else 0

    def take_grad(self) -> Array:
        """Return the gradient of the prefix, and reset the stored gradient.

        Returns
        -------
        ndarray, shape (v, 2L, g, d)
            The sum of the gradients from all backward passes since the last call of `take_grad`.
        """
        both = [x for layer in self.layers for x in layer.grad]  # type: ignore[union-attr]  # a backward reaches all layers
        for layer in self.layers:
            layer.grad = None
        return array_module(both[0]).stack(both).transpose(2, 0, 1, 3)  # (2L, g, v, d) → (v, 2L, g, d)
