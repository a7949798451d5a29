# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradients by hand
#
# LoRA never computes the gradient $dW$ of the weight that the model computes with, $W + s\,BA$. Its own two gradients are this $dW$ all the same, multiplied by its factors:
#
# $$dA \;=\; s\,B^\top dW \qquad\qquad dB \;=\; s\,dW A^\top$$
#
# The next cell measures both sides in a real language model that reads Python code. One of its layers has a $W$ of 128 × 384, and LoRA has $r = 8$. **Predict**
# the shapes of $dA$ and $dB$. (All arrays are float64 in this notebook, because it proves something. $B$ is random, as if it had trained for a while.)

# %%
import numpy as np

import lora_np as ln
from lora_np import plots
from lora_np.studies.gradients import study as layer_gradients

model, tokens, targets = layer_gradients.example(r=8)  # a small model with LoRA, and text for it
layers = layer_gradients.both_ways(model, tokens, targets)  # for each linear layer, by its name:
name = "model.layers.3.mlp.down_proj"
one = layers[name]  # A, B and s; dA and dB of LoRA; dW of full fine-tuning that goes on from the merged weight W + sBA

print("dA = s Bᵀ dW:", np.allclose(one.dA, one.s * one.B.T @ one.dW))
print("dB = s dW Aᵀ:", np.allclose(one.dB, one.s * one.dW @ one.A.T))
columns, rows = (np.corrcoef(*(np.linalg.norm(X, axis=axis) for X in pair))[0, 1] for pair, axis in (((one.dW, one.dA), 0), ((one.dW, one.dB), 1)))
print(f"the columns' lengths in dW and dA correlate by {columns:.2f}, the rows' in dW and dB by {rows:.2f}")
plots.gradient_shadows(one.dW, one.dA, one.dB, name);

# %% [markdown]
# Coral is what full fine-tuning computes, cyan what LoRA computes, all three to scale. The single entries look like noise; two things do not. The cyan strips are
# small. And a dark column of $dW$, an input feature that is large for these tokens, comes back as a dark column of $dA$ (the eye finds only the darkest ones, the first correlation has them all): $B^\top$ mixes the
# rows of $dW$ and leaves each column in its place. In the same way $A^\top$ mixes the columns and leaves each row in its place in $dB$.
#
# This notebook derives the two lines, then the backward pass of every layer of a block. Each derivation ends in a few lines of NumPy and is
# proven on the spot by a derivative that knows nothing of the derivation.
#
# ## One rule
#
# For a loss $L$, a number, write $dX$ for $\partial L / \partial X$: it has the shape of $X$, because it says for each entry of $X$ how fast $L$ changes
# with it. A layer is given $dy$, from the layers above. It must return a gradient for each of its inputs.
#
# Write the forward pass with all its indices. Token $n$, input feature $j$, output feature $i$. ($n$ is an index here; how many tokens there are is $N$,
# which notebook 02 called n.)
#
# $$y_{ni} = \sum_j W_{ij}\, x_{nj}$$
#
# The chain rule adds up all the ways by which $W_{ij}$ reaches the loss. It reaches $y_{ni}$ for this one $i$ and for every token $n$, each time with
# the factor $x_{nj}$:
#
# $$dW_{ij} = \sum_n dy_{ni}\, x_{nj}$$
#
# Now read it as a matrix product. **The index that appears twice, $n$, is summed. The two that remain, $i$ and $j$, are the shape.** A matrix product
# sums the *last* index of the left factor with the *first* of the right one, so $dy$ has to be turned: $(i,n)\,(n,j) \to (i,j)$, that is $dW = dy^\top x$.
#
# NumPy's `einsum` takes the indices as they stand, which makes it the judge of each such reading. No two sizes are equal, so that the shapes
# refuse a product that is put together wrongly.

# %%
rng = np.random.default_rng(7)
N, k, d, r, alpha = 5, 6, 4, 2, 8  # tokens, features in, features out, rank, α
s = alpha / r
x = rng.standard_normal((N, k))
W = rng.standard_normal((d, k))
A = rng.standard_normal((r, k))
B = rng.standard_normal((d, r))
dy = rng.standard_normal((N, d))

dW = dy.T @ x  # (d, N) (N, k) → (d, k)
print("dW:", np.allclose(dW, np.einsum("ni,nj->ij", dy, x)))

# %% [markdown]
# ## dB and dA
#
# LoRA adds the bypass. Its rank index is $\rho$:
#
# $$y_{ni} = \sum_j W_{ij}\, x_{nj} + s \sum_\rho B_{i\rho} \sum_j A_{\rho j}\, x_{nj}$$
#
# The inner sum is worth a name, $h_{n\rho} = s \sum_j A_{\rho j}\, x_{nj}$, since $y$ depends on $A$ through $h$ alone. $B_{i\rho}$ reaches $y_{ni}$ for every
# token, with the factor $h_{n\rho}$:
#
# $$dB_{i\rho} = \sum_n dy_{ni}\, h_{n\rho} \qquad\Rightarrow\qquad dB = dy^\top h$$
#
# One step further down: $h_{n\rho}$ reaches every output $i$ of its own token, with the factor $B_{i\rho}$. This time $i$ appears twice, and $n$, $\rho$ remain:
#
# $$dh_{n\rho} = \sum_i dy_{ni}\, B_{i\rho} \qquad\Rightarrow\qquad dh = dy\,B$$
#
# And $A_{\rho j}$ reaches $h_{n\rho}$ for every token, with the factor $s\,x_{nj}$:
#
# $$dA_{\rho j} = s \sum_n dh_{n\rho}\, x_{nj} \qquad\Rightarrow\qquad dA = s\, dh^\top x$$

# %%
h = s * x @ A.T  # (N, k) (k, r) → (N, r)
dB = dy.T @ h  # (d, N) (N, r) → (d, r)
dh = dy @ B  # (N, d) (d, r) → (N, r)
dA = s * dh.T @ x  # (r, N) (N, k) → (r, k)

# all indices at once, with p for ρ:
print("dB:", np.allclose(dB, s * np.einsum("ni,pj,nj->ip", dy, A, x)))
print("dA:", np.allclose(dA, s * np.einsum("ni,ip,nj->pj", dy, B, x)))

# %% [markdown]
# Insert $dh$ in $dA$, and $h$ in $dB$, and move the brackets: $dA = s\,(dy\,B)^\top x = s\,B^\top (dy^\top x)$ and $dB = s\,dy^\top (x A^\top) = s\,(dy^\top x)\,A^\top$.
# The bracket is $dW$. These are the two lines at the top; LoRA computes them with the brackets set the other way, so that $dW$ never exists.
#
# ## dx: where paths part, gradients add
#
# $x_{nj}$ goes two ways, through $W$ and through the bypass. A quantity that is used twice gets the *sum* of what comes back:
#
# $$dx_{nj} = \sum_i dy_{ni} W_{ij} + s \sum_\rho dh_{n\rho} A_{\rho j} \qquad\Rightarrow\qquad dx = dy\,W + s\,dh\,A$$
#
# The same rule serves a residual connection, $y = x + f(x)$, and the $x$ that feeds three projections of an attention layer.

# %%
def lora_forward(x, A, B):
    h = s * x @ A.T  # (N, k) (k, r) → (N, r)
    return x @ W.T + h @ B.T, (x, A, B, h)  # (N, k) (k, d) + (N, r) (r, d) → (N, d)


def lora_backward(dy, cache):
    x, A, B, h = cache
    dh = dy @ B  # (N, d) (d, r) → (N, r)
    dx = dy @ W + s * dh @ A  # (N, d) (d, k) + (N, r) (r, k) → (N, k)
    return dx, s * dh.T @ x, dy.T @ h  # (N, k), (r, k), (d, r)


y, cache = lora_forward(x, A, B)
library = ln.ops.lora_linear_backward(dy, ln.ops.lora_linear_forward(x, W, A, B, s)[1])
for name, mine, its in zip(("dx", "dA", "dB"), lora_backward(dy, cache), library, strict=True):
    print(f"{name}: largest difference from the library {abs(mine - its).max():.0e}")

# %% [markdown]
# ## A derivative without derivation: the complex step
#
# We and the library may share a mistake. An independent judge is needed. The obvious one is a difference, $(f(x+h) - f(x))/h$: its error from the
# bend of $f$ shrinks with the step $h$ (a number, not the bypass's $h$), but it subtracts two numbers that agree in ever more digits, and what is left of them is divided by $h$. There is a better one
# ([Squire and Trapp 1998](https://doi.org/10.1137/S003614459631241X)). Step off the real axis:
#
# $$f(x + ih) = f(x) + ih\,f'(x) - \tfrac{h^2}{2} f''(x) - \tfrac{ih^3}{6} f'''(x) + \dots \qquad\Rightarrow\qquad f'(x) = \frac{\operatorname{Im} f(x + ih)}{h} + O(h^2)$$
#
# The $h^2$ term is real, so the imaginary part knows nothing of it; what is left in there after the derivative is the $h^3$ term, and over $h$ that is $h^2$. Nothing is subtracted, so $h$ may be as small as one likes.
#
# **Predict.** On $f(x) = x / (1 + e^{-x})$, whose derivative everybody can work out: float64 carries about 16 digits. How many of them does the best forward
# difference get right, and how many the best central difference, $(f(x+h) - f(x-h))/2h$?

# %%
def silu(x):
    return x / (1 + np.exp(-x))


def silu_slope(x):
    sigma = 1 / (1 + np.exp(-x))
    return sigma * (1 + x * (1 - sigma))


points = rng.uniform(0.5, 3, 20)  # the worst error of 20 points is shown
steps = np.logspace(-20, 0, 61)
derivatives = {
    "forward difference": lambda x, h: (silu(x + h) - silu(x)) / h,
    "central difference": lambda x, h: (silu(x + h) - silu(x - h)) / (2 * h),
    "complex step": lambda x, h: silu(x + 1j * h).imag / h,
}
step_errors = {
    method: [abs(derivative(points, h) / silu_slope(points) - 1).max() for h in steps]
    for method, derivative in derivatives.items()
}
what = "relative error of the derivative of x / (1 + exp(−x)), in float64, the worst of 20 points"
plots.step_sizes(steps, step_errors, what);

# %% [markdown]
# Read the slopes. On the right, where the series was cut off, one line falls with $h$ and two, which lie on each other, with $h^2$. On the left both differences drown in
# rounding, about $\epsilon/h$ with $\epsilon$ the spacing of float64, until $x + h = x$ and nothing is left (an error of 1). The two effects balance for the forward difference where
# $\epsilon/h = h$, at $h = \sqrt\epsilon \approx 10^{-8}$, which is also the error: half of the digits. For the central one $\epsilon/h = h^2$, so $h = \epsilon^{1/3}$, and the error $\epsilon^{2/3}$ leaves two thirds of them. The complex step never turns up again: from some $h$ on it is exact to rounding. We take $h = 10^{-30}$.
#
# ## From one number to a matrix
#
# A layer's input has many entries and its output too. Two ideas make one number of it.
#
# - *Output:* draw a random $dy$ and take $L = \sum_{ni} dy_{ni}\,y_{ni}$. Its gradient with respect to $y$ is $dy$ itself, so a backward that is given $dy$ must
#   return the gradients of this $L$.
# - *Input:* draw a random direction $v$ of the shape of $X$ and step along it: $\operatorname{Im} L(X + ihv)/h = \sum dX \circ v$, where $\circ$ multiplies entry by entry and the sum
#   is over all of them. One forward pass tests all entries of $dX$ together. A wrong entry changes the sum, unless the mistake is orthogonal to $v$, which for a random $v$ has probability zero.

# %%
def listed(gradients):
    return gradients if isinstance(gradients, tuple | list) else [gradients]


def errors_of(forward, backward, **inputs):
    """Each gradient along five random directions, against the complex step: the largest error, to the gradient's length."""
    y, cache = forward(*inputs.values())
    dy = rng.standard_normal(y.shape)
    h, errors = 1e-30, {}
    for (name, X), dX in zip(inputs.items(), listed(backward(dy, cache)), strict=True):
        errors[name] = 0.0
        for _ in range(5):
            v = rng.standard_normal(X.shape)
            stepped = inputs | {name: X + 1j * h * v}
            derivative = (dy * forward(*stepped.values())[0]).sum().imag / h  # Im L(X + ihv) / h
            size = max(np.linalg.norm(dX), abs(derivative)) or 1  # 1 where both are zero, and there is nothing to divide by
            errors[name] = max(errors[name], abs(derivative - (dX * v).sum()) / size)
    return errors


def judge(what, errors):
    verdicts = [f"d{x} {e:.0e} {'right' if e < 1e-12 else 'WRONG'}" for x, e in errors.items()]
    print(f"{what:27}", "   ".join(verdicts))


judge("our LoRA layer", errors_of(lora_forward, lora_backward, x=x, A=A, B=B))

# %% [markdown]
# Below $10^{-12}$ counts as right. In float64 a correct gradient usually lies between $10^{-15}$ and $10^{-17}$, and a wrong formula is seldom wrong by little. The
# library's `ln.gradcheck` is this function with its inputs checked. (Why five directions? A $v$ that happens to stand nearly upright on the mistake makes a large mistake look small. An error of 1 means: as
# large as the gradient itself.)
#
# ## A check that cannot fail
#
# A mistake on purpose: the $s$ of $dA$ is forgotten. LoRA starts with $B = 0$, so that is where one would try out the layer first.
#
# **Predict.** Does the check find the mistake at $B = 0$? And at a random $B$?

# %%
def forgot_s(dy, cache):
    dx, dA, dB = lora_backward(dy, cache)
    return dx, dA / s, dB


judge("at the start, B = 0", errors_of(lora_forward, forgot_s, x=x, A=A, B=np.zeros_like(B)))
judge("later, B random", errors_of(lora_forward, forgot_s, x=x, A=A, B=B))

# %% [markdown]
# At the start $dA = s\,B^\top dW = 0$: the correct gradient is zero, and so is every wrong one that has $B$ as a factor. The check compared 0 with 0.
#
# The second trap is a square matrix. Take $dx = dy\,W^\top$, with a transposition too many:

# %%
def linear_forward(x, W):
    return x @ W.T, (x, W)


def transposed(dy, cache):
    x, W = cache
    return dy @ W.T, dy.T @ x


square = rng.standard_normal((k, k))
judge("W 6 × 6", errors_of(linear_forward, transposed, x=x, W=square))
judge("W 6 × 6, the identity", errors_of(linear_forward, transposed, x=x, W=np.eye(k)))
try:
    judge("W 4 × 6", errors_of(linear_forward, transposed, x=x, W=W))
except ValueError as error:
    print(f"{'W 4 × 6':27}", str(error).partition(",")[0])

# %% [markdown]
# With a $W$ that is not square the shapes do not fit, and NumPy refuses the product. With a square one it runs, and only the check sees the mistake. With a
# symmetric one, such as the identity, the wrong formula *is* right, and no check can see it. **Check at a general point: nothing zero, nothing equal, nothing square, nothing symmetric.**
#
# ## What the complex step asks of the code
#
# The Taylor series above is that of a function of a complex variable: $f$ must be *holomorphic*, and so must each line of the code.
# Sums, products, $\exp$, $\log$ and square roots are. What takes a number apart into real and imaginary part is not: $|x|$, conjugation.
#
# **Predict.** Three ways to square a real number. Which have the right derivative under the complex step?

# %%
x0, h0 = 1.5, 1e-30
z = np.array(x0 + 1j * h0)
print(f"derivative of x² at {x0}: {2 * x0}")
ways = {"x * x": z * z, "abs(x) ** 2": abs(z) ** 2, "x.conj() * x": z.conj() * z}
for name, value in ways.items():
    print(f"{name:13} {value.imag / h0:g}")

# %% [markdown]
# For real $x$ the three are the same, and a hand-derived gradient of them is equally right. Only the judge is misled: it calls a right gradient wrong. So the library
# writes `x * x`. (`np.linalg.norm` and `np.vdot` hide an absolute value and a conjugation.)
#
# ## The block
#
# That was one linear layer. "tiny" is a Transformer, of the kind that Llama made common: a byte becomes a vector, five blocks change the vector, and from what
# comes out the model says which byte may follow.
#
# **bytes → embedding → block → block → block → block → block → RMSNorm → head → softmax: a probability for each next byte**
#
# Here is one block. **Predict.** In just one of its four kinds of white boxes each number that goes in reaches a single number that comes out, so that its gradient needs no sum. Which?

# %%
from lora_np.studies.gradients.pictures import block_diagram

block_diagram();

# %% [markdown]
# | layer | what it is for |
# |---|---|
# | linear (`q_proj`, …) | mixes the features of one token; nearly all of the model's numbers are here |
# | RMSNorm | brings the vector of each token to the same length, so that numbers neither grow nor fade from block to block |
# | attention | lets a token fetch something from the tokens before it; everywhere else each token is alone |
# | softmax | inside attention: turns scores into shares that are positive and add up to 1 |
# | rotary | inside attention: tells it how far apart two tokens are |
# | SwiGLU | the bend: without it two linear layers in a row would be one |
# | ⊕ | a *residual*: the half adds to $x$ and does not replace it, so a gradient also passes by unchanged |
#
# Five of them are derived below, then the loss with which every backward pass begins. (The embedding and the head are a lookup and a linear layer: `lora_np/ops/`
# has them too.) To the question: SwiGLU, which works entry by entry. Rotary mixes pairs of features, RMSNorm all features of a token, attention whole tokens.
#
# Each layer gets the same three tests. Ours against the library; ours against the complex step; and a mistake that people really make, which the complex
# step must find. LoRA itself goes first.

# %%
proof = {}  # layer → the errors of the derived gradients, and that of a mistake


def prove(layer, forward, backward, mistake, library, **inputs):
    y, cache = forward(*inputs.values())
    dy = rng.standard_normal(y.shape)
    pairs = zip(listed(backward(dy, cache)), listed(library(dy)), strict=True)
    print(f"{layer}: at most {max(abs(a - b).max() for a, b in pairs):.0e} from the library")
    derived, wrong = (errors_of(forward, b, **inputs) for b in (backward, mistake))
    judge("  as derived", derived)
    judge("  " + mistake.__name__.replace("_", " "), wrong)
    proof[layer] = {"derived": [*derived.values()], "mistake": max(wrong.values())}


def library(dy):
    _, cache = ln.ops.lora_linear_forward(x, W, A, B, s)
    return ln.ops.lora_linear_backward(dy, cache)


prove("LoRA", lora_forward, lora_backward, forgot_s, library, x=x, A=A, B=B)

# %% [markdown]
# **Letters.** From here on they are those of each layer, as the literature writes them, and some start afresh: $d$ is how many features the layer gets, $k$ the keys of
# attention, and $\rho$, in RMSNorm, one over the root of the mean square. $u$ is a key's index in attention and an input of SwiGLU later; $g$ is $dy \circ w$ in RMSNorm and the gate in SwiGLU; $p$ is a probability,
# $z$ what softmax is given (in the picture above, what leaves the block), and $do$ the gradient of an output $o$. Two more signs: $a \circ b$ multiplies entry by entry, and $\delta_{ij}$ is 1 where $i = j$ and 0 elsewhere.
#
# ## Softmax
#
# From any numbers $z$, called scores or *logits*, to shares that are positive and add up to 1:
#
# $$p_i = \frac{e^{z_i - m}}{\sum_j e^{z_j - m}}$$
#
# $m$ is the largest $z$, so that $\exp$ cannot overflow. Complex numbers have no order, hence `z.real.max`: a plain number, not differentiated. May one do
# that? Yes: $m$ cancels, $p$ does not depend on it, whatever it is.
#
# $z_j$ reaches $p_j$ through the numerator, and *every* $p_i$ through the denominator. Write $p_i = e_i / S$ with $e_i = e^{z_i}$ and $S = \sum_l e_l$. Then
# $\partial e_i / \partial z_j = \delta_{ij}\,e_i$ and $\partial S / \partial z_j = e_j$, and the quotient rule says
#
# $$\frac{\partial p_i}{\partial z_j} = \frac{\delta_{ij}\,e_i\,S - e_i\,e_j}{S^2} = p_i\,(\delta_{ij} - p_j)$$
#
# The chain rule adds up over all $i$. The $\delta_{ij}$ picks the term $i = j$ out of the sum:
#
# $$dz_j = \sum_i dp_i\,p_i\,(\delta_{ij} - p_j) = p_j \Big(dp_j - \sum_i dp_i\,p_i\Big)$$
#
# The mistake that everybody makes once is to stop after the first term, $dz = p \circ dp$.

# %%
def softmax_forward(z):
    e = np.exp(z - z.real.max(axis=-1, keepdims=True))  # (N, d)
    p = e / e.sum(axis=-1, keepdims=True)  # (N, d) / (N, 1) → (N, d)
    return p, p


def softmax_backward(dp, p):
    dot = (dp * p).sum(axis=-1, keepdims=True)  # Σ_i dp_i p_i, one number per row: (N, 1)
    return p * (dp - dot)  # (N, d)


def first_term_only(dp, p):
    return p * dp


def library(dp):
    return ln.ops.softmax_backward(dp, ln.ops.softmax_forward(z)[1])


N, d = 5, 6  # tokens, features
z = rng.standard_normal((N, d))
prove("softmax", softmax_forward, softmax_backward, first_term_only, library, z=z)

# %% [markdown]
# **Predict.** Adding one number to all $z$ of a row changes nothing. What is then the sum of a row of $dz$, and what is it for the mistake?

# %%
dp = rng.standard_normal((N, d))
p, _ = softmax_forward(z)
print("correct:", softmax_backward(dp, p).sum(axis=-1).round(15) + 0.0)
print("mistake:", first_term_only(dp, p).sum(axis=-1).round(3))

# %% [markdown]
# Zero for the right one; for the mistake it is $\sum_i dp_i\,p_i$, just the number that was forgotten. Along a direction in which the output does not change, the gradient has nothing. An invariance is a second, free check, and RMSNorm will have one too.
#
# ## Attention
#
# Each token makes three vectors: a *query* $q$, what it looks for; a *key* $k$, what it can be found by; and a *value* $v$, what it hands over. The scores are the
# products of a query with all keys, over $\sqrt d$ (a sum of $d$ products of independent numbers grows like $\sqrt d$, and softmax of large scores is all or nothing); softmax makes shares of them, and the output is the values, mixed in these shares. A token may look back and at itself, never
# ahead, where the answer stands: that is the causal mask, $u \le t$. One head, query $t$, key $u$, feature $c$:
#
# $$z_{tu} = \frac{1}{\sqrt d} \sum_c q_{tc}\,k_{uc}\;\;(u \le t), \qquad p = \operatorname{softmax}(z), \qquad o_{tc} = \sum_u p_{tu}\,v_{uc}$$
#
# Walk back, and read each sum by the rule. From $o$: the index that appears twice is $t$ for $dv$, and $c$ for $dp$. Then the softmax step. Then from $z$: $u$ for
# $dq$, and $t$ for $dk$.
#
# $$dv = p^\top do \qquad dp = do\,v^\top \qquad dz_{tu} = p_{tu}\Big(dp_{tu} - \sum_{u'} dp_{tu'}\,p_{tu'}\Big) \qquad dq = \frac{dz\,k}{\sqrt d} \qquad dk = \frac{dz^\top q}{\sqrt d}$$
#
# **Predict.** The causal mask forbids $u > t$ in the forward pass. Which line of the backward pass has to know of it?

# %%
def attention_forward(q, k, v):
    T, d = q.shape
    mask = np.triu(np.full((T, T), -1e30), k=1)  # on a forbidden score: exp makes it exactly 0
    z = q @ k.T / np.sqrt(d) + mask  # (T, d) (d, T) → (T, T)
    p, _ = softmax_forward(z)  # over the keys
    return p @ v, (q, k, v, p)  # (T, T) (T, d) → (T, d)


def attention_backward(do, cache):
    q, k, v, p = cache
    scale = 1 / np.sqrt(q.shape[-1])
    dv = p.T @ do  # in the forward pass o = p v:  (T, T) (T, d) → (T, d)
    dp = do @ v.T  # (T, d) (d, T) → (T, T)
    dz = softmax_backward(dp, p)  # (T, T)
    dq = dz @ k * scale  # before that z = q kᵀ/√d:  (T, T) (T, d) → (T, d)
    dk = dz.T @ q * scale  # (T, T) (T, d) → (T, d)
    return dq, dk, dv


def dk_without_scale(do, cache):
    dq, dk, dv = attention_backward(do, cache)
    return dq, dk * np.sqrt(dk.shape[-1]), dv


def library(do):
    one_head = [a[None, None] for a in (q, key, v)]  # the library wants (batch, heads, T, d)
    _, cache = ln.ops.attention_forward(*one_head)
    return [g[0, 0] for g in ln.ops.attention_backward(do[None, None], cache)]


T, head = 5, 4
q, key, v, do = rng.standard_normal((4, T, head))
ours = attention_forward, attention_backward
prove("attention", *ours, dk_without_scale, library, q=q, k=key, v=v)

_, (*_, p) = attention_forward(q, key, v)
dz = softmax_backward(do @ v.T, p)
print("largest |dz| at a forbidden place:", abs(np.triu(dz, k=1)).max())

# %% [markdown]
# None of them: a forbidden $p$ is 0, and $dz$ has $p$ as a factor. (Why $-10^{30}$ and not $-\infty$? A complex product with $-\infty$ computes $\infty \cdot 0$, which is not a
# number.)
#
# The library's version is the same mathematics arranged for speed: blocks of queries, and $\sum_u dp_{tu}\,p_{tu} = \sum_c do_{tc}\,o_{tc}$, a sum over the few features instead of the
# many keys. Insert $dp = do\,v^\top$ to see it.
#
# ## RMSNorm
#
# Each token's vector is divided by the root of the mean square of its features, here multiplied by $\rho$; then each feature gets a trained factor $w_i$. A tiny constant
# $\varepsilon$ keeps a vector of zeros from a division by zero.
#
# $$y_i = w_i\, x_i\, \rho, \qquad \rho = \Big(\tfrac1d \sum_j x_j^2 + \varepsilon\Big)^{-1/2}$$
#
# $x_j$ reaches $y_j$ directly, and every $y_i$ through $\rho$. With $\partial\rho/\partial x_j = -\tfrac12(\dots)^{-3/2} \cdot 2x_j/d = -\rho^3 x_j/d$, and $g = dy \circ w$:
#
# $$dx_j = \rho\,g_j \;-\; x_j\,\frac{\rho^3}{d} \sum_i g_i\,x_i \qquad\qquad dw_i = \sum_n dy_{ni}\,x_{ni}\,\rho_n$$
#
# The mistake here: to take $\rho$ for a constant, and drop the second term.

# %%
eps = 1e-5


def rms_norm_forward(x, w):
    rho = (np.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5  # (N, d) → (N, 1)
    return w * x * rho, (x, w, rho)  # (N, d)


def rms_norm_backward(dy, cache):
    x, w, rho = cache
    g = dy * w  # (N, d)
    dot = (g * x).sum(axis=-1, keepdims=True)  # Σ_i g_i x_i: (N, d) → (N, 1)
    dx = rho * g - x * rho**3 * dot / x.shape[-1]  # (N, d)
    return dx, (dy * x * rho).sum(axis=0)  # (N, d), (d,)


def rho_taken_for_constant(dy, cache):
    _, w, rho = cache
    return rho * dy * w, rms_norm_backward(dy, cache)[1]


def library(dy):
    return ln.ops.rms_norm_backward(dy, ln.ops.rms_norm_forward(x, w, eps)[1])


x, w = rng.standard_normal((N, d)), rng.standard_normal(d)
prove("RMSNorm", rms_norm_forward, rms_norm_backward, rho_taken_for_constant, library, x=x, w=w)

# %% [markdown]
# **Predict.** Twice as long an $x$ gives the same $y$ (up to $\varepsilon$). In which direction can $dx$ then not point?

# %%
def cosine(dx):
    """Of the angle between dx and x, the largest of the N tokens."""
    lengths = np.linalg.norm(dx, axis=-1) * np.linalg.norm(x, axis=-1)
    return abs((dx * x).sum(axis=-1) / lengths).max()


_, cache = rms_norm_forward(x, w)
dy = rng.standard_normal((N, d))
print(f"correct: |cosine| at most {cosine(rms_norm_backward(dy, cache)[0]):.0e}")
print(f"mistake: |cosine| at most {cosine(rho_taken_for_constant(dy, cache)[0]):.0e}")

# %% [markdown]
# Along $x$ itself: the two are perpendicular (not exactly, because of $\varepsilon$). The second term takes out of $\rho\,g$ just the part that points along $x$.
#
# ## Rotary embedding
#
# So far attention cannot tell whether two tokens are neighbours: its scores know what a token is and not where it is. Rotary embedding turns queries and keys before
# they are multiplied, each by an angle for its position. Turned by $a$ and by $b$ they have the product $(R_a q) \cdot (R_b k) = q \cdot R_a^\top R_b k = q \cdot R_{b-a} k$, which depends on the *difference* of the angles alone: on how
# far apart the tokens are.
#
# Each pair $(x_c, x_{c+d/2})$ of a query or key is turned by an angle $\varphi$ that is its position times a speed of its own, $\theta^{-2c/d}$: from a whole radian a token, for neighbours, down to nearly $1/\theta$, for
# tokens far apart ($\theta = 10000$ by custom). As a matrix, and its transpose:
#
# $$\begin{pmatrix} y_1 \\ y_2 \end{pmatrix} = \begin{pmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{pmatrix} \begin{pmatrix} x_1 \\ x_2 \end{pmatrix}
# \qquad\qquad
# \begin{pmatrix} dx_1 \\ dx_2 \end{pmatrix} = \begin{pmatrix} \cos\varphi & \sin\varphi \\ -\sin\varphi & \cos\varphi \end{pmatrix} \begin{pmatrix} dy_1 \\ dy_2 \end{pmatrix}$$
#
# The backward of any $y = Rx$ is $dx = R^\top dy$ (the rule: $dx_c = \sum_i dy_i R_{ic}$). A rotation's transpose is the rotation by $-\varphi$: turn back.
#
# **Predict.** The mistake is to turn further instead of back. Does a check on a single token find it?

# %%
def turn(x, cos, sin):
    x1, x2 = np.split(x, 2, axis=-1)  # (T, d) → two (T, d/2)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)  # (T, d)


def angles(T, d, theta=10000.0):
    phi = np.arange(T)[:, None] * theta ** (-np.arange(0, d, 2) / d)  # (T, 1) (d/2,) → (T, d/2)
    return np.cos(phi), np.sin(phi)


def rotary_forward(x):
    cos, sin = angles(*x.shape)
    return turn(x, cos, sin), (cos, sin)


def rotary_backward(dy, cache):
    cos, sin = cache
    return turn(dy, cos, -sin)


def turned_further(dy, cache):
    return turn(dy, *cache)


def library(dy):
    tables = ln.ops.rotary_tables(np.arange(T), head, 10000.0, float)
    return ln.ops.rotary_backward(dy, ln.ops.rotary_forward(q, *tables)[1])


judge("turned further, one token", errors_of(rotary_forward, turned_further, q=q[:1]))
prove("rotary", rotary_forward, rotary_backward, turned_further, library, q=q)

one_q, one_k = np.tile(q[0], (T, 1)), np.tile(key[0], (T, 1))  # the same query and key at every position
scores = rotary_forward(one_q)[0] @ rotary_forward(one_k)[0].T
print("the score depends on the distance alone:", all(np.allclose(np.diag(scores, t), scores[0, t]) for t in range(T)))

# %% [markdown]
# No. A single token stands at position 0, where nothing is turned: again a check at a special point that cannot fail.
#
# ## SwiGLU
#
# The bend of the MLP. Two linear layers read the same token: $u$ is what may pass, and $g$ opens or closes the gate for each entry of it, by way of the sigmoid $\sigma(g) = 1/(1 + e^{-g})$.
#
# $$y = \operatorname{silu}(g) \circ u, \qquad \operatorname{silu}(g) = g\,\sigma(g), \qquad \sigma' = \sigma\,(1 - \sigma)$$
#
# Entry by entry, so there is no sum. The product rule, twice:
#
# $$du = dy \circ \operatorname{silu}(g) \qquad\qquad dg = dy \circ u \circ \sigma\,\big(1 + g\,(1 - \sigma)\big)$$

# %%
def swiglu_forward(g, u):
    sigma = 1 / (1 + np.exp(-g))
    return g * sigma * u, (g, u, sigma)


def swiglu_backward(dy, cache):
    g, u, sigma = cache
    return dy * u * sigma * (1 + g * (1 - sigma)), dy * g * sigma


def sigma_taken_for_constant(dy, cache):
    g, u, sigma = cache
    return dy * u * sigma, dy * g * sigma


def library(dy):
    return ln.ops.swiglu_backward(dy, ln.ops.swiglu_forward(g, u)[1])


g, u = rng.standard_normal((2, N, d))
prove("SwiGLU", swiglu_forward, swiglu_backward, sigma_taken_for_constant, library, g=g, u=u)

# %% [markdown]
# ## Cross-entropy
#
# The loss, where every backward pass begins: $-\log$ of the probability that the model gave to the token that really came next. For logits $z$ and that token $c_n$ at each
# of $N$ places, with $p = \operatorname{softmax}(z)$:
#
# $$L = -\frac1N \sum_n \log p_{n c_n} = \frac1N \sum_n \Big(\log \sum_j e^{z_{nj}} - z_{n c_n}\Big)$$
#
# The derivative of the first term is the softmax once more, because $\partial \log S = \partial S / S$. The second term counts only where $j$ is the right token; write $[\,j = c_n\,]$, which is 1 there
# and 0 elsewhere:
#
# $$\frac{\partial}{\partial z_j} \log \sum_l e^{z_l} = \frac{e^{z_j}}{\sum_l e^{z_l}} = p_j \qquad\Rightarrow\qquad dz_{nj} = \frac1N \big(p_{nj} - [\,j = c_n\,]\big)$$
#
# What the model said, minus what it should have said, over $N$.

# %%
answers = rng.integers(0, d, N)  # the token that really came next, at each place


def cross_entropy_forward(z):
    m = z.real.max(axis=-1, keepdims=True)  # (N, d) → (N, 1)
    log_sum = np.log(np.exp(z - m).sum(axis=-1)) + m[:, 0]  # log Σ_j exp z_j: (N, d) → (N,)
    return (log_sum - z[np.arange(N), answers]).mean(), z  # a number


def cross_entropy_backward(dloss, z):
    dz, _ = softmax_forward(z)  # (N, d)
    dz[np.arange(N), answers] -= 1
    return dloss * dz / N


def sum_instead_of_mean(dloss, z):
    return N * cross_entropy_backward(dloss, z)


def library(dloss):
    return ln.ops.cross_entropy_backward(dloss, ln.ops.cross_entropy_forward(z, answers)[1])


ours = cross_entropy_forward, cross_entropy_backward
prove("cross-entropy", *ours, sum_instead_of_mean, library, z=z)

# %% [markdown]
# ## The verdicts
#
# All proofs of this notebook, one row per layer. **Predict.** How many powers of ten lie between the worst of the correct gradients and the smallest of the mistakes?

# %%
worst = max(max(row["derived"]) for row in proof.values())
least = min(row["mistake"] for row in proof.values())
title = f"{np.log10(least / worst):.0f} powers of ten lie between a correct gradient and a mistake"
what = "relative error against the complex step, in float64, one point per gradient"
plots.relative_errors(proof, 1e-12, title, what);

# %% [markdown]
# This gap is what the complex step is for. With a central difference the correct gradients would lie where its line above has its lowest point, and a small mistake could
# hide among them.
#
# ## The whole model
#
# The layers are right one by one; is their composition? The loss of "tiny" is one function of all its factors $A$ and $B$, so the same check
# applies to the model as a whole: through five blocks with their residuals, through attention in four *heads* side by side, of which two and two share keys and values (their
# gradients add), and up to the loss. And for each of its adapted layers the two identities of the first picture can be measured: LoRA's gradients from one backward pass,
# $dW$ from that of the model whose bypasses are merged into their weights.
#
# **Predict.** The identities are exact on paper. Two backward passes that sum in different orders: to how many of float64's 16 digits will they agree?

# %%
short = tokens[:1, :32], targets[:1, :32]  # 32 tokens are enough for a proof
verdict = ln.gradcheck_model(model, *short, directions=1).raise_if_wrong()
print(f"{len(verdict.errors)} gradients of the whole model against the complex step:")
print(f"the worst is off by {max(verdict.errors.values()):.0e}")


def difference(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(other)


rows = {}
for name, g in layers.items():
    row = rows.setdefault(name.rpartition(".")[2], {"dA = s Bᵀ dW": [], "dB = s dW Aᵀ": []})
    row["dA = s Bᵀ dW"].append(difference(g.dA, g.s * g.B.T @ g.dW))
    row["dB = s dW Aᵀ"].append(difference(g.dB, g.s * g.dW @ g.A.T))

worst = max(max(errors) for row in rows.values() for errors in row.values())
print(f"the identities: even in the worst layer {-np.log10(worst):.0f} digits agree")
title = f"In all {len(layers)} layers LoRA's gradients are dW, seen through B and A"
what = "relative difference of the two sides, in float64, one point per layer"
plots.relative_errors(rows, 1e-12, title, what);

# %% [markdown]
# All but the last one or two of the 16 digits agree. The two passes add the same thousands of terms in different orders, and each addition rounds; a mistake would show in the first digits.

# %% [markdown]
# ## The first step
#
# The adapter above had a random $B$. A real one starts at zero. **Predict.** Which of $dA$ and $dB$ are zero at the start, and which after one step?

# %%
config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
fresh = ln.get_peft_model(ln.load_model("tiny"), config)


def largest_gradients(when):
    gradients = layer_gradients.both_ways(fresh, tokens, targets).values()
    dA, dB = max(abs(g.dA).max() for g in gradients), max(abs(g.dB).max() for g in gradients)
    print(f"{when:15} largest |dA| {dA:.1e}   largest |dB| {dB:.1e}")


largest_gradients("at the start")
ln.train(fresh, [(tokens, targets)], ln.AdamW(lr=1e-2, weight_decay=0.0), steps=1)
largest_gradients("after one step")

# %% [markdown]
# $dA = s\,B^\top dW$ is exactly zero while $B$ is. The first step moves $B$ alone; from the second on both learn.

# %% [markdown]
# ## What a step costs
#
# A product of $(a, b)$ with $(b, c)$ costs $2abc$ operations (FLOPs), a multiplication and an addition for each term. $k$ and $d$ are again the features that go in
# and come out. Of the lines at the beginning, for $N$ tokens and one layer:
#
# | product | shapes | full fine-tuning | LoRA |
# |---|---|---|---|
# | $x W^\top$ | (N, k) (k, d) | $2Nkd$ | $2Nkd$ |
# | $dy\,W$ | (N, d) (d, k) | $2Nkd$ | $2Nkd$ |
# | $dW = dy^\top x$ | (d, N) (N, k) | $2Nkd$ | never computed |
# | $xA^\top$, $\;dh^\top x$, $\;dh\,A$ | each of sizes N, k and r | | $6Nkr$ |
# | $hB^\top$, $\;dy^\top h$, $\;dy\,B$ | each of sizes N, d and r | | $6Ndr$ |
#
# Together $6Nkd$ against $4Nkd + 6Nr(k + d)$. Add that up over the linear layers of "tiny", and compare with the library's costs, which goes through the live model product by product (a test counts
# those that a step really computes, `tests/costs/test_flops.py`).

# %%
N, r = 256, 8
shapes = [g.dW.shape for g in layers.values()]  # (d, k) of each linear layer
full = sum(6 * N * k * d for d, k in shapes)
lora = sum(4 * N * k * d + 6 * N * r * (k + d) for d, k in shapes)

full_step = ln.costs.flops(ln.load_model("tiny"), batch=N // 64, seq=64)  # all of it trains
lora_step = ln.costs.flops(model, batch=N // 64, seq=64)
print(f"full  by hand {full:,}   ln.costs   {full_step.linear.total:,}")
print(f"LoRA  by hand {lora:,}   ln.costs   {(lora_step.linear + lora_step.adapter).total:,}")

lowest = shapes[:3]  # q, k and v of the first block
unneeded = sum(2 * N * k * d + 2 * N * k * r for d, k in lowest)  # their dy W and dh A
print(f"the dx of the three lowest layers {unneeded:,}")

# %% [markdown]
# For full fine-tuning the same number. LoRA computes a little less than by hand, by exactly the last line: below the three lowest layers nothing is trained, so nobody needs their $dx$.
#

# For a square layer, $k = d$, a token costs $6d^2$ against $4d^2 + 12dr$ ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/) count the same in
# multiply-adds, $3N^2$ against $2N^2 + 6Nr$ with $N$ for the width):
#
# $$\frac{\text{LoRA}}{\text{full}} = \frac{4d^2 + 12dr}{6d^2} = \frac23 + 2\,\frac rd$$
#
# **Predict.** From which rank on does LoRA cost *more* than full fine-tuning, on a layer as wide as a 7B model's, and on one of "tiny"?

# %%
ranks, widths = [2**n for n in range(11)], (4096, 128)
ratios = {d: [(4 * d**2 + 12 * d * r) / (6 * d**2) for r in ranks] for d in widths}
plots.step_flops(ranks, ratios, 2 / 3);

# %%
for width in widths:
    share = (4 * width + 12 * 8) / (6 * width)
    print(f"d = {width:5,}: r = 8 costs {share:.3f} of a full step, r = {width / 6:.0f} all of it")

# %% [markdown]
# So a layer's step never costs less than two thirds (the lowest layers excepted, whose $dx$ nobody needs); what LoRA saves beyond that is memory, the gradients and the
# optimizer's state of the frozen weights. Attention, norms and the loss cost the same for both and are not counted. Notebooks 05 and 10 measure seconds.
#
# ## Try
#
# 1. Add a trained bias, $y_{ni} = \dots + b_i$. Which index is summed in $db$? Write it and let `errors_of` decide.
# 2. Put dropout in front of the bypass. A check that draws a *new* mask in each forward pass reports a wrong gradient: why, and what has to be held fixed?
# 3. Compose the functions of this notebook into a block, $x + \text{attention}(\text{norm}(x))$, then $x + \text{MLP}(\text{norm}(x))$, with LoRA on one projection, and judge $dA$
#    and $dB$ through all of it.
# 4. After the first step of gradient descent from $B = 0$, $\Delta W = -\eta\,s^2\,dW A^\top\!A$. Measure the angle between it and full fine-tuning's $-\eta\,dW$ at several
#    ranks, with a random $A$ (r, k) and the `one.dW` of the first cell. How does it shrink with $r$, and is it zero at $r = k$?
# 5. Exercises 3, 8 and 9 ask for $dA$ and $dB$, for RMSNorm and for attention. **Close this notebook, then write them**, from the index rule and not from memory. `make exercises` in a
#    terminal writes your copy; its `check` names the mistake that it finds.
#
# <details><summary>Hints</summary>
#
# 1. $db_i = \sum_n dy_{ni}$: the token. In NumPy `dy.sum(axis=0)`, and `errors_of(…, x=x, A=A, B=B, b=b)` says the rest.
# 2. The complex step compares two evaluations of *one* function; a new mask makes another function. The argument is `dropout_seed` of `ln.gradcheck_model`.
# 3. Walk the picture of the block from right to left. Where a line parts (at the dots, and behind each RMSNorm) add what comes back.
# 4. Write $U = dW A^\top\!A$; the cosine is `(U * dW).sum()` over the product of the two norms. For random $A$ it is close to $\sqrt{r / (r + k)}$: almost a right angle at $r = 1$, and still 45° at $r = k$, since
#    $A^\top\!A$ is not a multiple of the identity.
#
# </details>
