"""Mixed batches: each row through an adapter of its own, over one product of all rows with the base.

    y[i] = x[i] Wᵀ + s·(x[i] A[idx[i]]ᵀ) B[idx[i]]ᵀ          for a row of the base, x[i] Wᵀ alone

(Punica's SGMV: Chen et al. 2023, arXiv 2310.18547.) The rows of one adapter are a segment. Segments of many tokens go one
after another; with a token a row, as in decoding, the small ones of one rank go through one batched product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ... import ops
from ...backend import Array, array_module
from ...nn import BASE, Context, Parameter, Rows

if TYPE_CHECKING:
    from .layer import LoraLinear


SMALL = 4  # rows of a segment up to which it shares a batched product, padded to the longest there; others go alone


@dataclass
class Group:
    """g segments of at most n rows, of adapters with one rank: A (g, r, in), B (g, out, r), `scaling` (g,).

    rows: theirs, a segment after another; a slice where they follow one another, so that nothing is gathered.
    places: where in the g·n rows of the product they go, the others being zeros; None where all segments have n.
    """

    names: list[str]
    rows: Array | slice
    places: Array | None
    n: int
    A: Array
    B: Array
    scaling: Array

    def take(self, x: Array) -> Array:
        """x (b, …, f) → its rows by segment, (g, n·…, f)."""
        mine = x[self.rows]
        if self.places is not None:
            padded = array_module(x).zeros((len(self.names) * self.n, *x.shape[1:]), x.dtype)
            padded[self.places] = mine
            mine = padded
        return mine.reshape(len(self.names), -1, x.shape[-1])

    def add(self, delta: Array, y: Array) -> None:
        """The way back: y[rows] += δ. A row has one adapter, so none comes twice."""
        delta = delta.reshape(-1, *y.shape[1:])
        y[self.rows] += delta if self.places is None else delta[self.places]


class AdapterRows(Rows):
    """The adapter that each row of a batch uses: an argument of the call, in `Context.adapter`.

    It keeps how each layer groups the rows, and the stacked factors, for the calls that it is given to: all steps of one
    `generate`, say. Whoever changes the adapters' numbers in between takes a new one.
    """

    def __init__(self, names: Sequence[str], before: dict[tuple, Stack] | None = None) -> None:
        super().__init__(names)
        self._before, self._stacks = before or {}, {}
        self._groups: dict[tuple, list[Group]] = {}

    def then(self, names: Sequence[str]) -> AdapterRows:
        """The rows of the next call. They take over the stacks, so that an adapter that stays is not copied again."""
        return AdapterRows(names, self._stacks)

    def groups(self, layer: LoraLinear, stacked: bool) -> list[Group]:
        """The rows of `layer`'s adapters in groups: one a segment, or `stacked`, one for all small segments of a rank."""
        key = (layer, stacked)
        if key not in self._groups:
            together: dict[Any, list[str]] = {}
            for name, rows in self.segments.items():
                if name in layer.lora_A:
                    shared = stacked and len(rows) <= SMALL
                    together.setdefault(layer.configs[name].r if shared else name, []).append(name)
            self._groups[key] = [self._group(layer, names) for names in together.values()]
        return self._groups[key]

    def _group(self, layer: LoraLinear, names: list[str]) -> Group:
        if len(names) == 1:
            A, B = (factor[None] for factor in layer.factors(names[0], layer.base_layer.weight.value.dtype))
        else:
            key = (layer, layer.configs[names[0]].r)
            stack = self._stacks[key] = self._before.pop(key, None) or Stack()
            names, A, B = stack.hold(names, layer)
        xp, segments = array_module(A), [self.segments[name] for name in names]
        rows, n = [row for segment in segments for row in segment], max(map(len, segments))
        places = [i * n + j for i, segment in enumerate(segments) for j in range(len(segment))]
        follow = rows == list(range(rows[0], rows[0] + len(rows)))
        return Group(
            names,
            slice(rows[0], rows[-1] + 1) if follow else xp.array(rows),
            None if len(places) == len(names) * n else xp.array(places),
            n,
            A,
            B,
            xp.array([layer.configs[name].scaling for name in names], A.real.dtype),
        )


class Stack:
    """The factors of several adapters under one another in one array, which a batched product needs.

    A copy, of those that are in the batch alone; only what is new in it is written, so that one row's coming and going
    costs its own adapter.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.held: list[tuple[Parameter, Parameter]] = []  # not by name alone: one may be unloaded, and another take it
        self.A = self.B = None

    def hold(self, names: list[str], layer: LoraLinear) -> tuple[list[str], Array, Array]:
        """(the names in the order of the stack, A (g, r, in), B (g, out, r)), those that were there in their place."""
        g = len(names)
        if self.A is None or not g <= len(self.A) <= 2 * g:
            A, B = layer.factors(names[0], layer.base_layer.weight.value.dtype)
            xp = array_module(A)
            room = g + g // 2  # for those that join
            self.A, self.B = xp.empty((room, *A.shape), A.dtype), xp.empty((room, *B.T.shape), B.dtype)
            self.names, self.held = [], []
        stay = [name if name in names else None for name in self.names[:g]]
        new = iter([name for name in names if name not in stay])
        self.names = [name or next(new) for name in stay] + list(new)
        held = [(layer.lora_A[name], layer.lora_B[name]) for name in self.names]
        for i, pair in enumerate(held):
            if self.held[i : i + 1] != [pair]:
                self.A[i], self.B[i] = pair[0].value, pair[1].value.T  # Bᵀ: r long rows, not out short ones
        self.held = held
        return self.names, self.A[:g], self.B[:g].swapaxes(-1, -2)


def mixed_forward(layer: LoraLinear, x: Array, y: Array, context: Context) -> list[tuple]:
    """Add each row's bypass to y (b, …, out), the base's product of x (b, …, in); returns the cache of `mixed_backward`.

    Raises ValueError where x has another number of rows than there are names: one row would get another one's adapter.
    """
    if len(x) != len(context.adapter.names):
        raise ValueError(
            f"x {x.shape} has {len(x)} rows for {len(context.adapter.names)} adapter names; expected one a row"
        )
    caches = []
    stacked = context.rng is None and x.ndim == 3 and x.shape[1] == 1
    for group in context.adapter.groups(layer, stacked):
        mine, mask = group.take(x), None
        if context.rng is not None:  # a segment alone, so that each adapter drops with its own probability
            mine, mask = ops.dropout_forward(mine, layer.configs[group.names[0]].lora_dropout, context.rng)
        delta, cache = ops.grouped_lora_forward(mine, group.A, group.B, group.scaling)
        group.add(delta, y)
        caches.append((group, mask, cache))
    return caches


def mixed_backward(layer: LoraLinear, dy: Array, dx: Array | None, caches: list[tuple]) -> None:
    """dy (b, …, out): adds each bypass's dx to its rows of `dx`, where that is wanted, and dA and dB to its adapter's gradients.

    In the forward pass y[rows] += δ, so a segment's dδ is dy[rows], and its dx goes back to where its x came from.
    """
    for group, mask, cache in caches:
        factors = [(layer.lora_A[name], layer.lora_B[name]) for name in group.names]
        if dx is None and not any(p.trainable for pair in factors for p in pair):
            continue
        bypass, dA, dB = ops.grouped_lora_backward(group.take(dy), cache, need_dx=dx is not None)
        for i, pair in enumerate(factors):
            for parameter, gradient in zip(pair, (dA[i], dB[i]), strict=True):
                if parameter.trainable:
                    parameter.add_grad(gradient)
        if dx is not None:
            group.add(ops.dropout_backward(bypass, mask), dx)


def check_names(names: Any, rows: int, known: Sequence[str]) -> list[str]:
    """`adapter_names` as a list, one a row. Raises ValueError for another number of them or a name that is not there."""
    if isinstance(names, str) or len(names) != rows:
        found = repr(names) if isinstance(names, str) else f"{len(names)} names"
        raise ValueError(
            f"adapter_names: {found} for a batch of {rows} rows; expected one a row, {BASE!r} for the base"
        )
    unknown = sorted({str(name) for name in names if name != BASE and name not in known})
    if unknown:
        raise ValueError(f"there is no adapter {', '.join(map(repr, unknown))}; this model has {[*known, BASE]}")
    return list(names)
