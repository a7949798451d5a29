"""Mixed batches: each row can use its own adapter, and the product with the base is computed once for all rows.

    y[i] = x[i] Wᵀ + s·(x[i] A[idx[i]]ᵀ) B[idx[i]]ᵀ          for a row of the base, x[i] Wᵀ alone

The GPU kernel SGMV of Punica uses the same method (Chen et al. 2023, arXiv 2310.18547). The rows of a batch that use
the same adapter form a segment. Segments with many tokens are computed one after another. If each row has one token, as
in decoding, one batched product computes all small segments of equal rank.

Adapters other than LoRA, such as DoRA and VeRA, are computed one after another. Each adapter starts from the output of
the base for its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import DTypeLike

from .. import ops
from ..backend import Array, array_module
from ..nn import Cache, Context, Linear, Rows
from ..ops.grouped_lora import GroupedLoraCache
from .adapted_linear import AdaptedLinear
from .adapter import Adapter, Bypass, OutputAdapter, add_gradients
from .lora.layer import LoraAdapter

SMALL_SEGMENT = (
    4  # segments with at most this many rows share a batched product, padded to the longest; others are computed alone
)


@dataclass
class Group:
    """A group of g segments. A segment has at most n rows, which all use the same adapter.

    All adapters of a group have the same rank r. The arrays are A (g, r, in), B (g, out, r) and scaling (g,).

    `rows`: the row indices of all segments in order, as a slice if the indices are consecutive.
    `padded_index`: the index of each row in the zero-padded array of g·n rows, or None if no padding is needed.
    """

    adapters: list[LoraAdapter]
    rows: Array | slice
    padded_index: Array | None
    n: int
    A: Array
    B: Array
    scaling: Array

    def gather(self, x: Array) -> Array:
        """Return the rows of x (b, …, f), ordered by segment, as an array with one entry per segment.

        Segments with fewer than n rows are padded with zeros. The shape is (g, n·…, f): n rows of shape (…, f) per
        segment.
        """
        rows = x[self.rows]
        if self.padded_index is not None:
            padded = array_module(x).zeros((len(self.adapters) * self.n, *x.shape[1:]), x.dtype)
            padded[self.padded_index] = rows
            rows = padded
        return rows.reshape(len(self.adapters), -1, x.shape[-1])

    def scatter_add(self, delta: Array, y: Array) -> None:
        """Add δ, an array in the form that `gather` returns, to the rows of y: y[rows] += δ.

        Each row has only one adapter, so each index occurs only once.
        """
        delta = delta.reshape(-1, *y.shape[1:])
        y[self.rows] += delta if self.padded_index is None else delta[self.padded_index]


# The base layer's cache; per group, the dropout mask and the cache of its product; per other adapter, its cache
MixedCache: TypeAlias = tuple[Cache, list[tuple[Group, Array | None, GroupedLoraCache]], list[Cache]]


class AdapterRows(Rows):
    """The adapters of the rows of a mixed batch. An AdapterRows is the value of `Context.adapter` in a call.

    An AdapterRows caches the groups and stacked factors of each layer for all steps of one call of `generate`. A
    training step changes the factors, so create a new object after each training step.

    Parameters
    ----------
    names : sequence of str
        One adapter name per row; "__base__" for the base model.
    previous : StackCache, optional
        Stacked factors of the previous call, which are reused.

    Examples
    --------
    >>> from lora_np.peft.mixed import AdapterRows
    >>> AdapterRows(["poet", "__base__", "poet"]).segments
    {'poet': [0, 2]}
    """

    def __init__(self, names: Sequence[str], previous: StackCache | None = None) -> None:
        super().__init__(names)
        self._stacks = StackCache(previous)
        self._layers: dict[AdaptedLinear, MixedRows | None] = {}

    def next_call(self, names: Sequence[str]) -> AdapterRows:
        """Return the AdapterRows of the next call.

        The new object reuses the stacks, so the factors of adapters that are in both calls are not copied again.

        Parameters
        ----------
        names : sequence of str
            One adapter name per row.

        Returns
        -------
        AdapterRows
            The new object.
        """
        return AdapterRows(names, self._stacks)

    def adapter_of(self, layer: AdaptedLinear) -> MixedRows | None:
        """Return the adapters of all rows in one layer.

        Parameters
        ----------
        layer : AdaptedLinear
            The layer.

        Returns
        -------
        MixedRows or None
            An Adapter object that applies the right adapter to each row; None if all rows apply only the base layer.

        Raises
        ------
        ValueError
            If an adapter cannot be in a mixed batch.
        """
        if layer not in self._layers:
            here = {name: layer.adapters[name] for name in self.segments if name in layer.adapters}
            for name, adapter in here.items():
                if not (adapter.mixable and isinstance(adapter, Bypass | OutputAdapter)):
                    kind = type(adapter).__name__.removesuffix("Adapter")
                    raise ValueError(f"{name!r} is {kind}; rows with this adapter cannot be in a mixed batch")
            mixed = MixedRows(layer, here, len(self.names), self.segments, self._stacks)
            self._layers[layer] = mixed if here or layer.base_correction is not None else None
        return self._layers[layer]


class MixedRows(Adapter):
    """The adapters of all rows in one layer.

    LoRA adapters are computed in groups, and all other adapters are computed one by one. If PiSSA changed the base, the
    part that PiSSA removed is added for rows without an adapter.
    """

    def __init__(
        self,
        layer: AdaptedLinear,
        adapters: dict[str, Adapter],
        rows: int,
        segments: dict[str, list[int]],
        stacks: StackCache,
    ) -> None:
        self.layer, self.rows, self.segments, self.stacks = layer, rows, segments, stacks
        self.lora = {name: adapter for name, adapter in adapters.items() if type(adapter) is LoraAdapter}
        self.others = [(a, segments[name]) for name, a in adapters.items() if name not in self.lora]
        if layer.base_correction is not None:
            adapted = {row for name in adapters for row in segments[name]}
            if plain := [row for row in range(rows) if row not in adapted]:
                self.others.append((layer.base_correction, plain))
        self._groups: dict[bool, list[Group]] = {}

    def groups(self, stacked: bool) -> list[Group]:
        """Return the rows in groups: one group per segment.

        If `stacked` is True, all small segments of equal rank form one group together.
        """
        if stacked not in self._groups:
            together: dict[int | str, list[str]] = {}
            for name, adapter in self.lora.items():
                shared = stacked and len(self.segments[name]) <= SMALL_SEGMENT
                together.setdefault(adapter.config.r if shared else name, []).append(name)
            self._groups[stacked] = [self._group(names) for names in together.values()]
        return self._groups[stacked]

    def _group(self, names: list[str]) -> Group:
        if len(names) == 1:
            A, B = (X[None] for X in self.lora[names[0]].factors(self.layer.base_layer.weight.value.dtype))
        else:
            names, A, B = self.stacks.get(self.layer, {name: self.lora[name] for name in names})
        xp, segments = array_module(A), [self.segments[name] for name in names]
        rows, n = [row for segment in segments for row in segment], max(map(len, segments))
        places = [i * n + j for i, segment in enumerate(segments) for j in range(len(segment))]
        follow = rows == list(range(rows[0], rows[0] + len(rows)))
        return Group(
            [self.lora[name] for name in names],
            slice(rows[0], rows[-1] + 1) if follow else xp.array(rows),
            None if len(places) == len(names) * n else xp.array(places),
            n,
            A,
            B,
            xp.array([self.lora[name].config.scaling for name in names], A.real.dtype),
        )

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, MixedCache]:
        """Compute y (b, …, out) for x (b, …, in): the base layer for all rows, and each row's adapter.

        Raises ValueError if the number of rows of x differs from the number of adapter names.
        """
        if len(x) != self.rows:
            raise ValueError(
                f"x {x.shape} has {len(x)} rows, but there are {self.rows} adapter names; expected one name per row"
            )
        y, base_cache = base.forward(x, context)
        caches, others = [], []
        stacked = context.rng is None and x.ndim == 3 and x.shape[1] == 1
        for group in self.groups(stacked):
            rows_x, mask = group.gather(x), None
            if context.rng is not None:  # in training each group is one segment, with its adapter's dropout probability
                rows_x, mask = ops.dropout_forward(rows_x, group.adapters[0].dropout, context.rng)
            delta, cache = ops.grouped_lora_forward(rows_x, group.A, group.B, group.scaling)
            group.scatter_add(delta, y)
            caches.append((group, mask, cache))
        for adapter, rows in self.others:
            prepared = self.stacks.prepare(adapter, base, x.dtype)
            y[rows], other_cache = adapter.row_forward(x[rows], y[rows], base, context, prepared)
            others.append(other_cache)
        return y, (base_cache, caches, others)

    def backward(self, dy: Array, cache: MixedCache, base: Linear, need_dx: bool) -> Array | None:
        """Return dx (b, …, in) for dy (b, …, out), or None if dx is not needed.

        This method also adds the gradients of all trained parameters to their `grad`.

        The forward pass adds δ of a segment to y[rows]. The gradient dδ is therefore dy[rows], and the gradient of
        x[rows] is added to dx[rows].
        """
        base_cache, caches, others = cache
        if self.others:
            dy = dy.copy()
        direct = []
        for (adapter, rows), other_cache in zip(self.others, others, strict=True):
            dy[rows], dx_rows = adapter.row_backward(dy[rows], other_cache, base, need_dx)
            direct.append((rows, dx_rows))
        dx = base.backward(dy, base_cache, need_dx)
        for rows, dx_rows in direct:
            if dx is not None and dx_rows is not None:
                dx[rows] += dx_rows
        for group, mask, group_cache in caches:
            if not (need_dx or any(p.trainable for adapter in group.adapters for p in adapter.learned)):
                continue
            bypass, dA, dB = ops.grouped_lora_backward(group.gather(dy), group_cache, need_dx=need_dx)
            for i, adapter in enumerate(group.adapters):
                add_gradients(adapter.learned, (dA[i], dB[i]))
            if need_dx:
                assert dx is not None and bypass is not None
                group.scatter_add(ops.dropout_backward(bypass, mask), dx)
        return dx


class Stack:
    """The factors of several adapters, stacked in one array for a batched product.

    Factors are copied into the stack. If an adapter joins the batch, only the factors of this adapter are copied.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.adapters: list[LoraAdapter] = []  # compared by identity: a name can be reused after unloading
        self.A: Any = None
        self.B: Any = None

    def update(self, adapters: dict[str, LoraAdapter], dtype: DTypeLike) -> tuple[list[str], Array, Array]:
        """Return the adapter names in the order of the stack, and the stacked A (g, r, in) and B (g, out, r).

        Adapters that are already in the stack keep their position.
        """
        g = len(adapters)
        if self.A is None or not g <= len(self.A) <= 2 * g:
            A, B = next(iter(adapters.values())).factors(dtype)
            xp, room = array_module(A), g + g // 2  # spare capacity for adapters that join
            self.A, self.B = xp.empty((room, *A.shape), A.dtype), xp.empty((room, *B.T.shape), B.dtype)
            self.names, self.adapters = [], []
        kept = [name if name in adapters else None for name in self.names[:g]]
        new = iter([name for name in adapters if name not in kept])
        self.names = [name or next(new) for name in kept] + list(new)
        stacked = [adapters[name] for name in self.names]
        for i, adapter in enumerate(stacked):
            if self.adapters[i : i + 1] != [adapter]:
                self.A[i] = adapter.lora_A.value
                self.B[i] = adapter.lora_B.value.T  # Bᵀ: r contiguous rows
        self.adapters = stacked
        return self.names, self.A[:g], self.B[:g].swapaxes(-1, -2)


class StackCache:
    """The stacks of all layers in one call, and the prepared values of adapters other than LoRA.

    The next call can reuse the stacks and the values.
    """

    def __init__(self, previous: StackCache | None = None) -> None:
        self.previous: dict[tuple[AdaptedLinear, int], Stack] = {} if previous is None else previous.stacks
        self.stacks: dict[tuple[AdaptedLinear, int], Stack] = {}
        self.previous_prepared: dict[Adapter, Any] = {} if previous is None else previous.prepared
        self.prepared: dict[Adapter, Any] = {}

    def prepare(self, adapter: Adapter, base: Linear, dtype: DTypeLike) -> Any:
        """Return the result of `adapter.prepare`. A later call with the same adapter returns the stored result."""
        if adapter not in self.prepared:
            known = self.previous_prepared.pop(adapter, None)
            self.prepared[adapter] = adapter.prepare(base, dtype) if known is None else known
        return self.prepared[adapter]

    def get(self, layer: AdaptedLinear, adapters: dict[str, LoraAdapter]) -> tuple[list[str], Array, Array]:
        """Return the names and the stacked A (g, r, in) and B (g, out, r) of several adapters of the same rank."""
        key = layer, next(iter(adapters.values())).config.r
        self.stacks[key] = self.previous.pop(key) if key in self.previous else Stack()
        return self.stacks[key].update(adapters, layer.base_layer.weight.value.dtype)
