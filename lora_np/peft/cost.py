"""The cost of an adapter: the parameters, matrix products and arrays that the adapter adds to a training step.

The file of each method defines the cost of the method's adapters. The package `costs` adds this cost to the cost of the
model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Products:
    """The FLOPs of a set of matrix products.

    Parameters
    ----------
    forward : int
        FLOPs of the forward pass.
    dx : int
        FLOPs of the gradients of the inputs; the layers below need these gradients.
    dW : int
        FLOPs of the gradients of trained parameters (dW, dA, dB).

    Examples
    --------
    >>> from lora_np.costs import Products
    >>> (Products(4, 4, 0) + Products(2, 0, 2)).total
    12
    """

    forward: int = 0
    dx: int = 0
    dW: int = 0

    @property
    def total(self) -> int:
        """The sum of all FLOPs."""
        return self.forward + self.dx + self.dW

    def __add__(self, other: Products) -> Products:
        return Products(self.forward + other.forward, self.dx + other.dx, self.dW + other.dW)


def linear_products(N: int, out: int, in_: int, need_dx: bool, need_dW: bool) -> Products:
    """Return the FLOPs of a linear layer for N tokens: 2·N·out·in for each matrix product.

    The forward pass computes x Wᵀ for x (N, in) and W (out, in). The backward pass computes dy W if dx is needed, and
    dyᵀ x if dW is needed.
    """
    one = 2 * N * out * in_
    return Products(one, one * need_dx, one * need_dW)


@dataclass(frozen=True)
class AdapterCost:
    """The cost that an adapter adds to a linear layer; the base class of all adapter costs.

    Parameters
    ----------
    trained : bool
        True if the adapter is trained.
    half_precision : bool
        True if the adapter is stored in 16 bits and upcast to float32 for each product.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> cost = costs.model_structure("llama-2-7b", LoraConfig(r=8)).layers()[0].adapter
    >>> cost.title(4096), cost.gradients(4096, 4096)
    ('LoRA of rank 8', 65536)
    """

    trained: bool = True
    half_precision: bool = False

    frozen_description: ClassVar[str] = ""  # description of the parameters that `frozen` counts

    @property
    def keeps_x(self) -> bool:
        """True if the backward pass of the adapter needs the input x of the layer."""
        return False

    @property
    def name(self) -> str:
        """The name of the adapter in tables."""
        return type(self).__name__.removesuffix("Cost")

    def title(self, out: int) -> str:
        """Return the name of the adapter and its size.

        Parameters
        ----------
        out : int
            Output size of the layer.

        Returns
        -------
        str
            Name and size, for example "LoRA of rank 8".
        """
        return self.name

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """Return the sizes of the trained arrays.

        Parameters
        ----------
        out, in_ : int
            Shape of the layer's W.

        Returns
        -------
        list of int
            Number of elements of each array.
        """
        raise NotImplementedError

    def gradients(self, out: int, in_: int) -> int:
        """Return the number of trained parameters.

        Parameters
        ----------
        out, in_ : int
            Shape of the layer's W.

        Returns
        -------
        int
            Number of parameters; 0 if the adapter is frozen.
        """
        return self.trained * sum(self.trained_sizes(out, in_))

    def largest_array(self, out: int, in_: int) -> int:
        """Return the size of the largest trained array.

        The optimizer updates a whole array at once, so its temporary arrays have this size.

        Parameters
        ----------
        out, in_ : int
            Shape of the layer's W.

        Returns
        -------
        int
            Number of elements; 0 if the adapter is frozen.
        """
        return self.trained * max(self.trained_sizes(out, in_))

    def frozen(self, shapes: Collection[tuple[int, int]]) -> int:
        """Return the number of parameters that the method adds and never trains.

        Parameters
        ----------
        shapes : collection of (int, int)
            Shapes (out, in) of all adapted layers. Layers can share frozen parameters.

        Returns
        -------
        int
            Number of frozen parameters that the method adds to all these layers.
        """
        return 0

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """Return the FLOPs of the matrix products that the adapter adds to the products of the base layer.

        Parameters
        ----------
        N : int
            Number of tokens.
        out, in_ : int
            Shape of the layer's W.
        need_dx : bool
            True if a layer below needs dx.

        Returns
        -------
        Products
            FLOPs of one training step.
        """
        return Products()

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """Return the number of floats that the forward pass saves for the backward pass; x is not counted.

        Parameters
        ----------
        N : int
            Number of tokens.
        out, in_ : int
            Shape of the layer's W.

        Returns
        -------
        int
            Number of floats.
        """
        raise NotImplementedError

    def forward_temporaries(self, N: int, out: int, in_: int) -> int:
        """Return the peak number of temporary floats in the forward pass; y and saved arrays are not counted.

        Parameters
        ----------
        N : int
            Number of tokens.
        out, in_ : int
            Shape of the layer's W.

        Returns
        -------
        int
            Number of floats.
        """
        return 0

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """Return the peak number of temporary floats in the backward pass of the adapted layer; dy is not counted.

        Parameters
        ----------
        N : int
            Number of tokens.
        out, in_ : int
            Shape of the layer's W.
        need_dx : bool
            True if a layer below needs dx.
        frozen : int
            Number of temporary floats of the product with W.

        Returns
        -------
        int
            Number of floats.
        """
        return frozen


@dataclass(frozen=True)
class PrefixCost:
    """The cost that a prefix adds to a model.

    Parameters
    ----------
    v : int
        Number of virtual tokens.
    layers : int
        Number of layers L.
    kv : int
        Number of features of a key, kv_heads·head_dim.
    hidden : int
        Width m of the MLP that computes the prefix; 0 without an MLP.
    trained : bool
        True if the prefix is trained.
    half_precision : bool
        True if the prefix is stored in 16 bits and upcast to float32 for each product.

    Examples
    --------
    >>> from lora_np.costs import PrefixCost
    >>> PrefixCost(v=20, layers=32, kv=4096).gradients
    5242880
    """

    v: int
    layers: int
    kv: int
    hidden: int = 0
    trained: bool = True
    half_precision: bool = False

    @property
    def width(self) -> int:
        """The number of floats per virtual token, 2L·kv."""
        return 2 * self.layers * self.kv

    @property
    def gradients(self) -> int:
        """The number of trained parameters; 0 if the prefix is frozen."""
        m = self.hidden
        mlp = self.v * self.kv + m * (self.kv + 1) + self.width * (m + 1)
        return self.trained * (mlp if m else self.v * self.width)

    @property
    def largest_array(self) -> int:
        """The number of elements of the largest trained array."""
        mlp = max(self.v * self.kv, self.hidden * self.kv, self.width * self.hidden)
        return self.trained * (mlp if self.hidden else self.v * self.width)

    @property
    def products(self) -> Products:
        """The FLOPs of the MLP in one training step; zero without an MLP."""
        lower = linear_products(self.v, self.hidden, self.kv, self.trained, self.trained)
        return lower + linear_products(self.v, self.width, self.hidden, self.trained, self.trained)

    @property
    def saved_for_backward(self) -> int:
        """The number of floats saved for the backward pass.

        The saved arrays are the output (v, m) of the MLP's tanh, and float32 copies of parameters stored in 16 bits.
        """
        m = self.hidden
        return self.v * m + self.half_precision * (m > 0) * (self.v * self.kv + m * (self.kv + self.width))

    def cache_capacity(self, seq: int) -> int:
        """Return the number of keys that a layer's cache can hold.

        A cache that is too small is replaced by a cache of at least twice the capacity.

        Parameters
        ----------
        seq : int
            Tokens per sequence.

        Returns
        -------
        int
            Capacity of the cache, in keys per sequence.
        """
        return max(2 * self.v, self.v + seq)
