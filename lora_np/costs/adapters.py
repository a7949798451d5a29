"""What each kind of adapter adds to a linear layer y = x Wᵀ in a training step: numbers, products, and what is kept and held.

For N tokens through W (out, in), each column once:

                trained numbers        forward, besides W                          kept for the backward
    Lora        r·(in + out)           h = x Aᵀ, h Bᵀ                              x, h
    Dora        r·(in + out) + out     the same, and ‖W + s·B A‖ by rows           x, h, and z before the rows are stretched
    Vera        r + out                h = x Aᵀ, (d ∘ h) Bᵀ                        h
    Bottleneck  2·m·out + m + out      W_down y, W_up σ(W_down y)                  y, W_down y, its σ′ and σ

Frozen and trained are counted as they stand: LoRA-FA is a Lora whose A is frozen, PiSSA and rsLoRA cost what Lora costs.
The gradients' equations are in ops/lora.py, ops/dora.py, ops/vera.py and peft/bottleneck.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .products import Products, linear_products


@dataclass(frozen=True)
class Adapter:
    """The questions that the ledger asks. out, in_: the layer's; N: tokens; need_dx: whether something below is trained.

    trained: whether it gets gradients. widened: whether it is stored in 16 bits, and copied to float32 for each product.
    """

    trained: bool = True
    widened: bool = False

    @property
    def keeps_x(self) -> bool:
        """Whether the backward needs the x that the layer itself was given."""
        return False

    def gradients(self, out: int, in_: int) -> int:
        """How many numbers are trained."""
        raise NotImplementedError

    def frozen(self, shapes: Collection[tuple[int, int]]) -> int:
        """How many numbers the method adds and never trains, in layers of these (out, in) together."""
        return 0

    def largest(self, out: int, in_: int) -> int:
        """The numbers of its largest trained array, which the optimizer updates at once."""
        raise NotImplementedError

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """All matrix products besides those with W."""
        raise NotImplementedError

    def kept(self, N: int, out: int, in_: int) -> int:
        """Floats that the forward keeps, x itself apart."""
        raise NotImplementedError

    def forward_held(self, N: int, out: int) -> int:
        """Floats beside y and what is kept, until y has all of its terms."""
        raise NotImplementedError

    def backward_held(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """The most floats beside dy in its backward, of which the path through W alone holds `frozen`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Lora(Adapter):
    """y + s·(x Aᵀ) Bᵀ, with A (r, in), B (out, r)."""

    r: int = 8
    A_trained: bool = True  # LoRA-FA freezes A, and needs no x for dA
    dropout: bool = False  # on its own x, which the layer then keeps instead

    @property
    def keeps_x(self) -> bool:
        return self.A_trained and not self.dropout

    def gradients(self, out: int, in_: int) -> int:
        """B and, where it trains, A."""
        return self.trained * self.r * (in_ * self.A_trained + out)

    def frozen(self, shapes: Collection[tuple[int, int]]) -> int:
        """LoRA-FA's A."""
        return (not self.A_trained) * self.r * sum(in_ for _, in_ in shapes)

    def largest(self, out: int, in_: int) -> int:
        """B or A."""
        return self.trained * self.r * max(out, in_ * self.A_trained)

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """2·N·r·in for each product with A and 2·N·r·out for each with B. dA needs dh = dy B, dx or no dx.

        A frozen A has no dA; dB is computed with dx even where B is frozen too.
        """
        with_A, with_B, dA = 2 * N * self.r * in_, 2 * N * self.r * out, self.A_trained
        if not (self.trained or need_dx):
            return Products(with_A + with_B)
        return Products(with_A + with_B, with_B * (dA or need_dx) + with_A * need_dx, with_A * dA + with_B)

    def kept(self, N: int, out: int, in_: int) -> int:
        """h (N, r); with dropout the mask and, for dA, x ∘ mask; of 16 bits A and B in float32."""
        dropped = self.dropout * (1 + self.A_trained) * N * in_
        return N * self.r + dropped + self.widened * self.r * (in_ + out)

    def forward_held(self, N: int, out: int) -> int:
        """The bypass, before it is added."""
        return N * out

    def backward_held(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """The frozen path's dx, its own, and with dropout that ∘ mask; without dx, dh alone."""
        return max(frozen, (2 + self.dropout) * N * in_) if need_dx else N * self.r


@dataclass(frozen=True)
class Dora(Lora):
    """(m/n) ∘ (x Wᵀ + s·(x Aᵀ) Bᵀ), n the lengths of the rows of W + s·B A; with a trained m (out,)."""

    true_norm: bool = False  # whether n passes its gradient on; PEFT detaches it

    def gradients(self, out: int, in_: int) -> int:
        """LoRA's, and m."""
        return super().gradients(out, in_) + self.trained * out

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """LoRA's; C = W Aᵀ, A Aᵀ and B (A Aᵀ) for n, and back again where n has a gradient, whatever N is.

        With dropout x̃ goes through W too, besides x (see peft/dora.py).
        """
        norm = 2 * self.r * (out * in_ + self.r * (in_ + out))
        found = super().products(N, out, in_, need_dx) + Products(norm, 0, norm * (self.true_norm and self.A_trained))
        return found + linear_products(N, out, in_, need_dx, False) if self.dropout else found

    def kept(self, N: int, out: int, in_: int) -> int:
        """LoRA's; z (N, out) and n; where n has a gradient P = (W + s·B A) Aᵀ (out, r), and A and B once more if widened."""
        norm = self.true_norm * (out * self.r + self.widened * self.r * (in_ + out))
        return super().kept(N, out, in_) + N * out + out + norm

    def forward_held(self, N: int, out: int) -> int:
        """The stretched z, beside x Wᵀ; with dropout x̃ Wᵀ too."""
        return (1 + self.dropout) * N * out

    def backward_held(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """dz (N, out), the bypass's dx, and then the frozen path's."""
        return N * out + (N * in_ + max(frozen, N * self.r) if need_dx else N * self.r)


@dataclass(frozen=True)
class Vera(Adapter):
    """y + b ∘ ((d ∘ (x Aᵀ)) Bᵀ), with A and B frozen, and the same in all layers; d (r,) and b (out,) are trained."""

    r: int = 256
    dropout: bool = False

    def gradients(self, out: int, in_: int) -> int:
        """d and b."""
        return self.trained * (self.r + out)

    def frozen(self, shapes: Collection[tuple[int, int]]) -> int:
        """A and B once, as large as the largest layer asks."""
        return self.r * sum(map(max, zip(*shapes, strict=True)))

    def largest(self, out: int, in_: int) -> int:
        """The longer of the two."""
        return self.trained * max(self.r, out)

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """x Aᵀ and (d ∘ h) Bᵀ; back through B for dd, through A for dx, and dyᵀ (d ∘ h) for db."""
        with_A, with_B = 2 * N * self.r * in_, 2 * N * self.r * out
        if not (self.trained or need_dx):
            return Products(with_A + with_B)
        return Products(with_A + with_B, with_B + with_A * need_dx, with_B)

    def kept(self, N: int, out: int, in_: int) -> int:
        """h (N, r); with dropout the mask; of 16 bits this layer's A, B, d and b in float32."""
        return N * self.r + self.dropout * N * in_ + self.widened * (self.r * (in_ + out) + self.r + out)

    def forward_held(self, N: int, out: int) -> int:
        """d ∘ h, and the bypass that comes of it."""
        return N * self.r + N * out

    def backward_held(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """Beside the frozen path's dx: d ∘ h and dyᵀ (d ∘ h); or b ∘ dy and dk; or dk and the bypass's dx, and that ∘ mask."""
        dx, h = need_dx * N * in_, N * self.r
        return max(frozen, dx + max(h + out * self.r, N * out + h, 2 * h, h + dx, dx + self.dropout * dx))


@dataclass(frozen=True)
class Bottleneck(Adapter):
    """y + W_up σ(W_down y + b_down) + b_up, with W_down (m, out), W_up (out, m): after the layer, not beside it."""

    m: int = 8

    def gradients(self, out: int, in_: int) -> int:
        """Both matrices and both biases."""
        return self.trained * (2 * self.m * out + self.m + out)

    def largest(self, out: int, in_: int) -> int:
        """Either matrix."""
        return self.trained * self.m * out

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """Two linear layers: dW of the lower one needs what flows through the upper one, dx or no dx."""
        up = linear_products(N, out, self.m, need_dx or self.trained, self.trained)
        return up + linear_products(N, self.m, out, need_dx, self.trained)

    def kept(self, N: int, out: int, in_: int) -> int:
        """y and σ(W_down y) for the two dW, W_down y and one more for σ′ (N, m each); of 16 bits both matrices in float32."""
        return self.trained * N * (out + self.m) + 2 * N * self.m + self.widened * 2 * self.m * out

    def forward_held(self, N: int, out: int) -> int:
        """None: y is kept, so what counts as y is z."""
        return 0

    def backward_held(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """What σ's derivative is made of, some five of (N, m); then dy beside the frozen path's dx."""
        return max(5 * N * self.m, need_dx * (N * self.m + N * out + max(N * self.m, frozen)))
