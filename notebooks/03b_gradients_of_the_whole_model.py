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
# # Gradients of the whole model
#
# [Notebook 03](03_gradients_by_hand.ipynb) derived the gradients of one LoRA layer. A Transformer also contains softmax, attention, RMSNorm, rotary embedding and SwiGLU. To train a Transformer, we also need a loss. This notebook derives the gradients of these layers and of the loss, and proves that each gradient is right. Then
# the notebook proves that the gradients of a whole model are right.
#
# **You will learn to**
#
# - derive the backward pass of softmax, attention, RMSNorm, rotary embedding, SwiGLU and cross-entropy,
# - explain which operations the complex step allows in a forward pass,
# - find *invariances* of a layer (changes of the input that do not change the output), and check the gradient with an invariance.
#
# **Before you start:** you have read [notebook 03](03_gradients_by_hand.ipynb).
#
# *Reading: 90 minutes. Tasks: 60 minutes. Running: about 10 seconds.*
#
# ## The block
#
# The model tiny is a Transformer with Llama's architecture. This model turns each byte into a vector, changes the vectors in five blocks, and predicts the next byte from the changed vectors:
#
# **bytes → embedding → 5 blocks → RMSNorm → output head → softmax: a probability for each next byte**
#
# The picture shows one block. The grey boxes are linear layers with LoRA. Notebook 03 derived the gradients of linear layers with LoRA. The white boxes are the layers whose gradients this notebook derives.
#
# **Predict.** The white boxes show four kinds of layers: RMSNorm, rotary embedding, attention and SwiGLU. (Softmax is a part of attention.) In one of these four kinds of layers, each output number depends only on the input numbers with the same indices, so the gradient needs no sum. Which kind of layer needs no sum?

# %%
import numpy as np

import lora_np as ln
from lora_np import plots
from lora_np.studies.gradients.pictures import block_diagram
from lora_np.studies.harness.table import show

block_diagram();

# %% [markdown]
# **The answer:** in SwiGLU, each output number depends only on the input numbers with the same indices. Rotary embedding mixes pairs of features, RMSNorm mixes all features of a token, and attention mixes tokens.
#
# The next table lists all layers of the block:
#
# | layer | purpose |
# |---|---|
# | linear (`q_proj`, …) | mixes the features of one token; contains most parameters of the model |
# | RMSNorm | gives the vectors of all tokens the same length, so the numbers keep their size from block to block |
# | attention | reads from earlier tokens; all other layers work on each token alone |
# | softmax | inside attention: turns scores into weights that are positive and sum to 1 |
# | rotary | inside attention: makes the scores depend on the distance between two tokens |
# | SwiGLU | the nonlinearity of the MLP: without SwiGLU, the linear layers before and after it could be replaced by one linear layer |
# | ⊕ | a *residual* connection: adds the result of attention or of the MLP to $x$. So $x$ receives the unchanged gradient of the sum, plus the gradient through attention or the MLP. The vectors $x$ that pass through all these additions are called the *residual stream* |
#
# The table leaves out two layers outside the blocks: the output head and the embedding. The output head is a linear layer. The embedding looks up the vector of each byte in a table. The file `lora_np/ops/embedding.py` computes the gradient of the embedding.
#
# ## The three checks
#
# For each layer below we make three checks:
#
# 1. Our gradient equals the library's gradient.
# 2. Our gradient passes the check with the complex step. The function `ln.gradcheck` makes this check in the same way as the function `errors_of` of notebook 03.
# 3. The complex step finds a typical mistake that we put into the gradient.

# %%
rng = np.random.default_rng(7)
results = {}  # layer → relative errors of the derived gradients, and the error of the mistake


def as_tuple(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


def check(layer, forward, backward, mistake, library, **inputs):
    y, cache = forward(*inputs.values())
    dy = rng.standard_normal(y.shape)
    pairs = zip(as_tuple(backward(dy, cache)), as_tuple(library(dy)), strict=True)
    difference = max(abs(a - b).max() for a, b in pairs)
    print(f"{layer}: largest difference from the library {difference:.0e}")
    right = ln.gradcheck(forward, backward, inputs, directions=5).errors
    wrong = ln.gradcheck(forward, mistake, inputs, directions=5).errors
    results[layer] = {"derived": [*right.values()], "mistake": max(wrong.values())}
    column = mistake.__name__.replace("_", " ")
    rows = [{"gradient": f"d{x}", "as derived": right[x], column: wrong[x]} for x in inputs]
    show(rows, {"gradient": "", "as derived": ".0e", column: ".0e"})


# %% [markdown]
# ## Requirements of the complex step
#
# The Taylor series $f(x + ih) = f(x) + ih\,f'(x) - \dots$ holds for *holomorphic* functions. A function of a complex variable is holomorphic if it has a complex derivative. Every operation of the forward pass must be holomorphic.
# Sums, products, $\exp$, $\log$ and square roots are holomorphic. The absolute value $|x|$ and the complex conjugate are not holomorphic, because they treat the real and the imaginary part differently.
#
# **Predict.** Here are three formulas for the square of a real number. For which of these formulas does the complex step give the right derivative?

# %%
x0, h = 1.5, 1e-30
z = np.array(x0 + 1j * h)
ways = {"x * x": z * z, "abs(x) ** 2": abs(z) ** 2, "x.conj() * x": z.conj() * z}
print(f"correct derivative of x² at {x0}: {2 * x0}")
for name, value in ways.items():
    print(f"{name:13} {value.imag / h:g}")

# %% [markdown]
# The complex step gives the right derivative only for `x * x`. For real numbers all three formulas give the same result, and the gradient $2x$, derived by hand, is right for each formula. But for the other two formulas a check with the complex step reports this gradient as wrong. So the library writes the square of `x` as `x * x`.
# In a forward pass the library also avoids `np.linalg.norm`, which contains an absolute value, and `np.vdot`, which contains a conjugate.
#
# **New symbols.** The sign $\circ$ multiplies two arrays entry by entry. The bracket $[\,i = j\,]$ is 1 if $i = j$ and 0 otherwise. Each token has $d$ features, and each attention head has $d_h$ features.
#
# ## Softmax
#
# Softmax turns numbers $z$, called *logits* or scores, into weights $y$ that are positive and sum to 1:
#
# $$y_i = \frac{e^{z_i - m}}{\sum_j e^{z_j - m}}$$
#
# Here $m$ is the largest of the logits. Subtracting $m$ prevents an overflow of $\exp$. Complex numbers have no order, so the code takes the maximum of the real parts, `z.real.max`. Our derivation treats $m$ as a constant. The derivation is right, because $m$ cancels and $y$ does not depend on $m$.
#
# **Derivation.** $z_j$ changes $y_j$ through the numerator, and it changes *every* $y_i$ through the denominator. Write $y_i = e_i / E$ with $e_i = e^{z_i}$ and the sum $E = \sum_l e_l$. Then
# $\partial e_i / \partial z_j = [\,i = j\,]\,e_i$ and $\partial E / \partial z_j = e_j$. The quotient rule gives
#
# $$\frac{\partial y_i}{\partial z_j} = \frac{[\,i = j\,]\,e_i\,E - e_i\,e_j}{E^2} = y_i\,\big([\,i = j\,] - y_j\big)$$
#
# The chain rule sums over $i$. From the first part of the bracket, $[\,i = j\,]$, only the term with $i = j$ is left:
#
# $$dz_j = \sum_i dy_i\,y_i\,\big([\,i = j\,] - y_j\big) = y_j \Big(dy_j - \sum_i dy_i\,y_i\Big)$$
#
# The typical mistake in the backward pass is to keep only the first term, $dz = y \circ dy$.

# %%
def softmax_forward(z):
    e = np.exp(z - z.real.max(axis=-1, keepdims=True))  # (N, d)
    y = e / e.sum(axis=-1, keepdims=True)  # (N, d) / (N, 1) → (N, d)
    return y, y


def softmax_backward(dy, y):
    dot = (dy * y).sum(axis=-1, keepdims=True)  # Σ_i dy_i y_i per row: (N, 1)
    return y * (dy - dot)  # (N, d)


def first_term_only(dy, y):
    return y * dy


def library(dy):
    return ln.ops.softmax_backward(dy, ln.ops.softmax_forward(z)[1])


N, d = 5, 6
z = rng.standard_normal((N, d))
check("softmax", softmax_forward, softmax_backward, first_term_only, library, z=z)

# %% [markdown]
# **Predict.** If we add the same number to all logits $z$ of a row, the output $y$ of softmax does not change. What follows for the sum of the numbers in a row of $dz$?

# %%
dy = rng.standard_normal((N, d))
y, _ = softmax_forward(z)
print("correct:", softmax_backward(dy, y).sum(axis=-1).round(15) + 0.0)
print("mistake:", first_term_only(dy, y).sum(axis=-1).round(3))

# %% [markdown]
# The correct gradient has no component in a direction in which the output does not change. In softmax, this direction is $(1, 1, \dots, 1)$, so the sum of each row of $dz$ is zero. The gradient with the mistake has a component in this direction. A change of the input that does not change the output is called an *invariance* of the layer. **An invariance of a layer gives a second check of its gradient, without any derivation.**
#
# ## Attention
#
# In attention, each token has three vectors. The *query* $q$ describes what the token looks for. Other tokens find the token by its *key* $k$. The *value* $v$ contains the numbers that the token passes on to other tokens. Attention works in three steps:
#
# 1. The scores $S$ are the products of each query with all keys, divided by $\sqrt{d_h}$. (Without the division, the scores would grow like $\sqrt{d_h}$. If the scores are large, softmax gives nearly all the weight to one key.)
# 2. Softmax turns the scores of each query into weights $P$.
# 3. The output $o$ is the weighted sum of the values.
#
# A token may read itself and earlier tokens. A token may not read later tokens, because in training the model must predict the later tokens. This restriction, $j \le i$, is called the *causal mask*. With the indices $i$ for the query, $j$ for the key and $c$ for the feature, the equations of one head are
#
# $$S_{ij} = \frac{1}{\sqrt{d_h}} \sum_c q_{ic}\,k_{jc}\;\;(j \le i), \qquad P = \operatorname{softmax}(S), \qquad o_{ic} = \sum_j P_{ij}\,v_{jc}$$
#
# **Derivation.** Go through the three steps of attention from the last to the first. Each gradient is a sum over the index in the second column:
#
# | step | sum over | gradient |
# |---|---|---|
# | 3 | query $i$ | $dv = P^\top do$ |
# | 3 | feature $c$ | $dP = do\,v^\top$ |
# | 2 | key $l$ (softmax) | $dS_{ij} = P_{ij}\,\big(dP_{ij} - \sum_l dP_{il}\,P_{il}\big)$ |
# | 1 | key $j$ | $dq = dS\,k / \sqrt{d_h}$ |
# | 1 | query $i$ | $dk = dS^\top q / \sqrt{d_h}$ |
#
# **Predict.** The forward pass uses the causal mask. Which rows of the table, if any, must use the mask too?

# %%
def attention_forward(q, k, v):
    t, d_h = q.shape
    mask = np.triu(np.full((t, t), -1e30), k=1)  # exp(−1e30) is exactly 0
    S = q @ k.T / np.sqrt(d_h) + mask  # (t, d_h) (d_h, t) → (t, t)
    P, _ = softmax_forward(S)
    return P @ v, (q, k, v, P)  # (t, t) (t, d_h) → (t, d_h)


def attention_backward(do, cache):
    q, k, v, P = cache
    scale = 1 / np.sqrt(q.shape[-1])
    dv = P.T @ do  # o = P v:  (t, t) (t, d_h) → (t, d_h)
    dP = do @ v.T  # (t, d_h) (d_h, t) → (t, t)
    dS = softmax_backward(dP, P)  # (t, t)
    dq = dS @ k * scale  # S = q kᵀ / √d_h:  (t, t) (t, d_h) → (t, d_h)
    dk = dS.T @ q * scale  # (t, t) (t, d_h) → (t, d_h)
    return dq, dk, dv


def dk_without_scale(do, cache):
    dq, dk, dv = attention_backward(do, cache)
    return dq, dk * np.sqrt(dk.shape[-1]), dv


def library(do):
    one_head = [a[None, None] for a in (q, k, v)]  # the library uses (b, heads, t, d_h)
    _, cache = ln.ops.attention_forward(*one_head)
    return tuple(g[0, 0] for g in ln.ops.attention_backward(do[None, None], cache))


t, d_h = 5, 4
q, k, v, do = rng.standard_normal((4, t, d_h))
ours = attention_forward, attention_backward
check("attention", *ours, dk_without_scale, library, q=q, k=k, v=v)

_, (*_, P) = attention_forward(q, k, v)
dS = softmax_backward(do @ v.T, P)
print("largest |dS| at a masked place:", abs(np.triu(dS, k=1)).max())

# %% [markdown]
# In the backward pass of attention, no row of the table needs the mask. At a masked place ($j > i$) $P_{ij} = 0$, and $dS_{ij}$ has the factor $P_{ij}$, so $dS_{ij} = 0$ too.
#
# (Why is the mask in the code $-10^{30}$ and not $-\infty$? A complex product with $-\infty$ computes $\infty \cdot 0$, which gives NaN.)
#
# The library computes the same gradients, but for one group of queries at a time. The library also replaces $\sum_l dP_{il}\,P_{il}$, a sum over keys, by $\sum_c do_{ic}\,o_{ic}$, a sum over the few features of a head. To see that the two sums are equal,
# insert $dP = do\,v^\top$ and $o = P v$.
#
# ## RMSNorm
#
# RMSNorm divides the vector of each token by the root mean square of its features. Then RMSNorm multiplies each feature by a trained factor $w_i$. The small constant $\varepsilon$ prevents a division by zero. Let $\rho$ be 1
# divided by the root mean square:
#
# $$y_i = w_i\, x_i\, \rho, \qquad \rho = \Big(\tfrac1d \sum_j x_j^2 + \varepsilon\Big)^{-1/2}$$
#
# **Derivation.** $x_j$ changes $y_j$ directly, and it changes every $y_i$ through $\rho$. The derivative of $\rho$ is
# $\partial\rho/\partial x_j = -\tfrac12(\dots)^{-3/2} \cdot 2x_j/d = -\rho^3 x_j/d$. So
#
# $$dx_j = \rho\,w_j\,dy_j \;-\; x_j\,\frac{\rho^3}{d} \sum_i w_i\,dy_i\,x_i \qquad\qquad dw_i = \sum_n dy_{ni}\,x_{ni}\,\rho_n$$
#
# The typical mistake is to treat $\rho$ as a constant, which drops the second term of $dx_j$.

# %%
eps = 1e-5


def rms_norm_forward(x, w):
    rho = (np.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5  # (N, d) → (N, 1)
    return w * x * rho, (x, w, rho)  # (N, d)


def rms_norm_backward(dy, cache):
    x, w, rho = cache
    dot = (w * dy * x).sum(axis=-1, keepdims=True)  # Σ_i w_i dy_i x_i: (N, d) → (N, 1)
    dx = rho * w * dy - x * rho**3 * dot / x.shape[-1]  # (N, d)
    return dx, (dy * x * rho).sum(axis=0)  # (N, d), (d,)


def rho_as_a_constant(dy, cache):
    _, w, rho = cache
    return rho * w * dy, rms_norm_backward(dy, cache)[1]


def library(dy):
    return ln.ops.rms_norm_backward(dy, ln.ops.rms_norm_forward(x, w, eps)[1])


x, w = rng.standard_normal((N, d)), rng.standard_normal(d)
check("RMSNorm", rms_norm_forward, rms_norm_backward, rho_as_a_constant, library, x=x, w=w)

# %% [markdown]
# **Predict.** If we multiply the input $x$ of RMSNorm by 2, the output $y$ does not change, except for the small effect of $\varepsilon$. In which direction does $dx$ therefore have no component?

# %%
def largest_cosine(dx):
    """Return the largest |cosine| between x and dx of the N tokens."""
    lengths = np.linalg.norm(dx, axis=-1) * np.linalg.norm(x, axis=-1)
    return abs((dx * x).sum(axis=-1) / lengths).max()


_, cache = rms_norm_forward(x, w)
dy = rng.standard_normal((N, d))
print(f"correct: |cosine| at most {largest_cosine(rms_norm_backward(dy, cache)[0]):.0e}")
print(f"mistake: |cosine| at most {largest_cosine(rho_as_a_constant(dy, cache)[0]):.0e}")

# %% [markdown]
# In RMSNorm, $dx$ has no component in the direction of $x$: $dx$ and $x$ are perpendicular, except for the small effect of $\varepsilon$. The second term of $dx$ removes exactly the component along $x$.
#
# ## Rotary embedding
#
# So far, the scores $q \cdot k$ do not depend on the positions of the tokens. Rotary embedding rotates each query and each key by an angle that depends on the position of the token. If $q$ is rotated by the angle $a$ and $k$ is rotated by the angle $b$, then
#
# $$(R_a q) \cdot (R_b k) = q \cdot R_a^\top R_b\, k = q \cdot R_{b-a}\, k$$
#
# So the score depends only on the *difference* of the angles, that is, on the distance between the two tokens.
#
# The features of a query or a key form pairs $(x_c, x_{c+d_h/2})$. Here $c$ counts from 0 to $d_h/2 - 1$, as in the code. Each pair is rotated by its own angle $\varphi = \text{position} \cdot \theta^{-2c/d_h}$. Usually $\theta = 10000$. (In notebook 01, $\theta$ has another meaning: a parameter of the model.)
#
# Why do the pairs have different angles? The first pair rotates by 1 radian per token, so the angles of neighbouring tokens differ clearly. But after about six tokens the first pair has made a full turn. So the first pair cannot distinguish a distance of one token from a distance of about seven tokens. The last pair rotates so slowly that a full turn takes
# thousands of tokens (for the usual sizes of $d_h$). So the angle of the last pair distinguishes distant tokens, but this angle is nearly equal for neighbouring tokens.
#
# The forward pass (left) and the backward pass (right) of one pair are
#
# $$\begin{pmatrix} y_1 \\ y_2 \end{pmatrix} = \begin{pmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{pmatrix} \begin{pmatrix} x_1 \\ x_2 \end{pmatrix}
# \qquad\qquad
# \begin{pmatrix} dx_1 \\ dx_2 \end{pmatrix} = \begin{pmatrix} \cos\varphi & \sin\varphi \\ -\sin\varphi & \cos\varphi \end{pmatrix} \begin{pmatrix} dy_1 \\ dy_2 \end{pmatrix}$$
#
# **Derivation.** The rule of notebook 03 gives $dx = R^\top dy$ for any $y = Rx$. The transpose of a rotation is the rotation by $-\varphi$. So the backward pass rotates $dy$ by $-\varphi$.
#
# **Predict.** The typical mistake in the backward pass is to rotate by $\varphi$ again instead of $-\varphi$. Does a check with a single token find this mistake?

# %%
def rotate(x, cos, sin):
    x1, x2 = np.split(x, 2, axis=-1)  # (t, d_h) → two (t, d_h/2)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)  # (t, d_h)


def angles(t, d_h, theta=10000.0):
    phi = np.arange(t)[:, None] * theta ** (-np.arange(0, d_h, 2) / d_h)  # (t, d_h/2)
    return np.cos(phi), np.sin(phi)


def rotary_forward(x):
    cos, sin = angles(*x.shape)
    return rotate(x, cos, sin), (cos, sin)


def rotary_backward(dy, cache):
    cos, sin = cache
    return rotate(dy, cos, -sin)


def rotated_forward_again(dy, cache):
    return rotate(dy, *cache)


def library(dy):
    tables = ln.ops.rotary_tables(np.arange(t), d_h, 10000.0, float)
    return ln.ops.rotary_backward(dy, ln.ops.rotary_forward(q, *tables)[1])


print("the mistake, checked with one token:")
print(ln.gradcheck(rotary_forward, rotated_forward_again, {"q": q[:1]}), "\n")
check("rotary", rotary_forward, rotary_backward, rotated_forward_again, library, q=q)

# %% [markdown]
# A check with a single token does not find the mistake. The single token has position 0, and its angle is 0. As in notebook 03, a mistake stays hidden if the check uses only a special point. The special point of this check is the angle 0. For $\varphi = 0$, the rotations by $\varphi$ and by $-\varphi$ are equal.
#
# The next cell tests the purpose of the rotation. The cell copies one query to all positions, and one key to all positions. Then the score must depend only on the distance between the two positions.

# %%
same_q, same_k = np.tile(q[0], (t, 1)), np.tile(k[0], (t, 1))
scores = rotary_forward(same_q)[0] @ rotary_forward(same_k)[0].T
print(all(np.allclose(np.diag(scores, j), scores[0, j]) for j in range(t)))

# %% [markdown]
# ## SwiGLU
#
# SwiGLU is the nonlinearity of the MLP. Two linear layers read the same token. The layer `up_proj` gives the values $u$, and the layer `gate_proj` gives the gates $g$. Each gate decides how much of the corresponding value passes:
#
# $$y = \operatorname{silu}(g) \circ u, \qquad \operatorname{silu}(g) = g\,\sigma(g), \qquad \sigma(g) = \frac{1}{1 + e^{-g}}, \qquad \sigma' = \sigma\,(1 - \sigma)$$
#
# (In this section $\sigma$ is the sigmoid.)
#
# **Derivation.** All operations work entry by entry, so the gradients contain no sum. The product rule, used twice, gives
#
# $$du = dy \circ \operatorname{silu}(g) \qquad\qquad dg = dy \circ u \circ \sigma\,\big(1 + g\,(1 - \sigma)\big)$$
#
# The typical mistake is to treat $\sigma$ as a constant in the derivative of $\operatorname{silu}(g)$.

# %%
def swiglu_forward(g, u):
    sigma = 1 / (1 + np.exp(-g))
    return g * sigma * u, (g, u, sigma)


def swiglu_backward(dy, cache):
    g, u, sigma = cache
    return dy * u * sigma * (1 + g * (1 - sigma)), dy * g * sigma


def sigma_as_a_constant(dy, cache):
    g, u, sigma = cache
    return dy * u * sigma, dy * g * sigma


def library(dy):
    return ln.ops.swiglu_backward(dy, ln.ops.swiglu_forward(g, u)[1])


g, u = rng.standard_normal((2, N, d))
check("SwiGLU", swiglu_forward, swiglu_backward, sigma_as_a_constant, library, g=g, u=u)

# %% [markdown]
# ## Cross-entropy
#
# The backward pass starts at the loss. The loss is $-\log$ of the probability that the model gives to the correct next token, averaged over $N$ places in the text. With the logits $z_n$ and the correct next token $a_n$ at place $n$, the loss is
#
# $$L = -\frac1N \sum_n \log \operatorname{softmax}(z_n)_{a_n} = \frac1N \sum_n \Big(\log \sum_j e^{z_{nj}} - z_{n a_n}\Big)$$
#
# **Derivation.** The bracket has two terms. The derivative of the first term is the output of softmax, because $\partial \log E = \partial E / E$ for the sum of exponentials $E$. The second term depends on $z_{nj}$ only if $j = a_n$:
#
# $$\frac{\partial}{\partial z_j} \log \sum_l e^{z_l} = \frac{e^{z_j}}{\sum_l e^{z_l}} \qquad\Rightarrow\qquad dz_{nj} = \frac1N \Big(\operatorname{softmax}(z_n)_j - [\,j = a_n\,]\Big)$$
#
# In words: take the predicted probabilities of all tokens, subtract 1 from the probability of the correct token, and divide the results by $N$. The typical mistake is to forget the division by $N$.

# %%
answers = rng.integers(0, d, N)  # the correct token at each place


def cross_entropy_forward(z):
    m = z.real.max(axis=-1, keepdims=True)  # (N, d) → (N, 1)
    log_sum = np.log(np.exp(z - m).sum(axis=-1)) + m[:, 0]  # log Σ_j exp z_j: (N,)
    return (log_sum - z[np.arange(N), answers]).mean(), z  # a number


def cross_entropy_backward(dL, z):
    dz, _ = softmax_forward(z)  # (N, d)
    dz[np.arange(N), answers] -= 1
    return dL * dz / N


def sum_instead_of_mean(dL, z):
    return N * cross_entropy_backward(dL, z)


def library(dL):
    return ln.ops.cross_entropy_backward(dL, ln.ops.cross_entropy_forward(z, answers)[1])


ours = cross_entropy_forward, cross_entropy_backward
check("cross-entropy", *ours, sum_instead_of_mean, library, z=z)

# %% [markdown]
# ## All results
#
# The picture shows the relative errors of all gradients of this notebook, one row per layer.
#
# **Predict.** How many powers of ten lie between the largest error of a correct gradient and the smallest error of a gradient with a mistake?

# %%
largest = max(max(row["derived"]) for row in results.values())
smallest = min(row["mistake"] for row in results.values())
powers = np.log10(smallest / largest)
title = f"{powers:.0f} powers of ten separate correct gradients from mistakes"
subtitle = "relative error against the complex step, in float64; one point per gradient"
plots.relative_errors(results, 1e-12, title, subtitle);

# %% [markdown]
# A wide gap separates the errors of correct gradients from the errors of gradients with a mistake. This gap is the advantage of the complex step. With central differences instead of the complex step, the errors of correct gradients would be larger by several powers of ten. A small mistake could hide among these larger errors.
#
# ## The whole model
#
# The checks show that the gradient of each layer is right. Is the gradient of the whole model right too? The loss of the model tiny is a function of all factors $A$ and $B$ together. So the check with the complex step also works for the whole model.
# The whole model contains five blocks with residual connections, attention with four heads, and the loss. (Two query heads share one head of keys and values, so the gradients from both query heads are added in this shared head.) To save time, the next cell uses 32 tokens, and one random direction per matrix instead of five.

# %%
config = ln.LoraConfig(
    r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False
)
model = ln.get_peft_model(ln.load_model("tiny").astype("float64"), config)
batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)
tokens, targets = batches[0]

result = ln.gradcheck_model(model, tokens[:1, :32], targets[:1, :32], directions=1)
largest = max(result.errors.values())
print(f"{len(result.errors)} gradients, largest relative error {largest:.0e}")

# %% [markdown]
# Notebook 03 tested the equations $dA = s\,B^\top dW$ and $dB = s\,dW A^\top$ in one layer. The function `both_ways` repeats this test for every linear layer. The function runs one backward pass of the model with LoRA, and one backward pass of the merged and unfrozen model.
#
# **Predict.** Without rounding, both sides of each equation are equal. The two backward passes add numbers in different orders. How many of the 16 digits of float64 will be equal on both sides?

# %%
from lora_np.studies.gradients.study import both_ways

layers = both_ways(model, tokens, targets)  # name → A, B, s and the gradients dA, dB, dW


def difference(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


differences = {}
for name, layer in layers.items():
    row = differences.setdefault(name.split(".")[-1], {"dA = s Bᵀ dW": [], "dB = s dW Aᵀ": []})
    row["dA = s Bᵀ dW"].append(difference(layer.dA, layer.s * layer.B.T @ layer.dW))
    row["dB = s dW Aᵀ"].append(difference(layer.dB, layer.s * layer.dW @ layer.A.T))

largest = max(max(errors) for row in differences.values() for errors in row.values())
print(f"in the worst layer {-np.log10(largest):.0f} digits agree")
title = f"In all {len(layers)} linear layers, LoRA's gradients equal dW times its factors"
subtitle = "relative difference of the two sides, in float64; one point per layer"
plots.relative_errors(differences, 1e-12, title, subtitle);

# %% [markdown]
# The two sides of each equation agree in all digits except the last one or two. Each addition rounds its result, and the two passes add thousands of numbers in different orders. If a gradient contained a mistake, the first digits would differ too.
#
# ## Recap
#
# Every backward pass follows from the rule of notebook 03: the gradient of an input is a sum over all outputs that depend on this input. In softmax and RMSNorm every output depends on every input through a common denominator. This denominator gives the second term in the gradients of softmax and RMSNorm.
# An invariance of the forward pass is a second check of the gradient. The complex step needs a forward pass without absolute values and conjugates. The check of the whole model tests that the layers are combined correctly. The gradients of all $A$ and $B$ in the model tiny pass this check.
#
# ## Three questions
#
# 1. Softmax and RMSNorm both have a second term in their gradient. What do the two layers have in common?
#
# <details><summary>Answer</summary>
#
# Softmax and RMSNorm both divide each number by a quantity that depends on all numbers of the row: the sum of exponentials, or the root mean square. So every output depends on every input, and this dependence gives the second term of the gradient.
#
# </details>
#
# 2. The backward pass of attention does not use the causal mask. Does the backward pass compute anything at the masked places?
#
# <details><summary>Answer</summary>
#
# Yes. Our backward pass computes $dP$ at the masked places, and then multiplies this $dP$ by $P = 0$. The library skips most of this work. The library processes the queries in groups, and for each group it leaves out all keys after the last query of the group.
#
# </details>
#
# 3. A new layer contains `np.abs(x)`. The gradient of this layer, derived by hand, is right for $x \neq 0$. Which check of this gradient can you use, and what is the disadvantage of this check?
#
# <details><summary>Answer</summary>
#
# The complex step reports an error, because `abs` is not holomorphic. You can use central differences, `ln.gradcheck(…, method="central")`. The disadvantage of central differences is that only about ten digits are right. Or you can write `abs` as `np.where(x.real < 0, -x, x)`, which the complex step allows.
#
# </details>
#
# ## Try
#
# 1. Check SwiGLU with central differences instead of the complex step: `ln.gradcheck(swiglu_forward, swiglu_backward, {"g": g, "u": u}, method="central")`. How large are the errors now? Then multiply the first gradient that `swiglu_backward` returns, $dg$, by `1 + 1e-8`.
#    Which method finds this mistake, the complex step or central differences?
#
# <details><summary>Hint</summary>
#
# Print the result of `ln.gradcheck`. The printed text shows the error of each gradient and the tolerance of the method.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The errors with central differences are several powers of ten larger than the errors with the complex step. But the errors with central differences are below the tolerance of $10^{-6}$. So central differences accept the mistake of $10^{-8}$. The complex step reports this mistake.
#
# </details>
#
# 2. Build the attention part of a block, $y = x + \text{attention}(\text{norm}(x))$, from the functions of this notebook. Use one head and LoRA on `q_proj` only. Write the backward pass, and check $dx$, $dA$ and $dB$. Start with these lines, which give the weights and the forward pass. The last line needs your function `block_backward`:
#
#    ```python
#    s, r = 2.0, 2
#    Wq, Wk, Wv, Wo = rng.standard_normal((4, d_h, d_h))  # frozen; with one head d = d_h
#    x, w = rng.standard_normal((t, d_h)), rng.standard_normal(d_h)
#    A, B = rng.standard_normal((r, d_h)), rng.standard_normal((d_h, r))
#
#    def block_forward(x, A, B):
#        normed, norm_cache = rms_norm_forward(x, w)
#        h = normed @ A.T  # the bypass of q_proj
#        q, angles_q = rotary_forward(normed @ Wq.T + s * h @ B.T)
#        k, angles_k = rotary_forward(normed @ Wk.T)
#        o, attention_cache = attention_forward(q, k, normed @ Wv.T)
#        cache = normed, norm_cache, A, B, h, angles_q, angles_k, attention_cache
#        return x + o @ Wo.T, cache
#
#    print(ln.gradcheck(block_forward, block_backward, {"x": x, "A": A, "B": B}))
#    ```
#
# <details><summary>Hint</summary>
#
# Write `block_backward(dy, cache)`, which returns `dx, dA, dB`. Follow the lines of `block_forward` from the last to the first. For a frozen layer `y = x @ W.T`, the gradient is `dx = dy @ W`. For the LoRA layer, use the gradients of notebook 03: $dB = s\,dy^\top h$, $dh = s\,dy\,B$, $dA = dh^\top x$, $dx = dy\,W + dh\,A$. `normed` is used three times and `x` is used twice, so add the gradients of all uses.
#
# </details>
#
# <details><summary>Answer</summary>
#
#    ```python
#    def block_backward(dy, cache):
#        normed, norm_cache, A, B, h, angles_q, angles_k, attention_cache = cache
#        dq, dk, dv = attention_backward(dy @ Wo, attention_cache)  # do = dy Wo
#        dq, dk = rotary_backward(dq, angles_q), rotary_backward(dk, angles_k)
#        dB, dh = s * dq.T @ h, s * dq @ B
#        dA = dh.T @ normed
#        dnormed = dq @ Wq + dh @ A + dk @ Wk + dv @ Wv  # three uses
#        return dy + rms_norm_backward(dnormed, norm_cache)[0], dA, dB  # dy: the residual
#    ```
#
# `ln.gradcheck` reports errors below $10^{-12}$. If you leave out one of the added gradients, for example `dv @ Wv`, `ln.gradcheck` reports that $dx$ is wrong. But $dA$ and $dB$ are still right, because the gradients of $A$ and $B$ do not use `dnormed`.
#
# </details>
#
# 3. LayerNorm subtracts the mean of the features before it divides by the root mean square: $y = (x - \bar x) / \sqrt{\operatorname{mean}((x - \bar x)^2) + \varepsilon}$. Which two invariances does LayerNorm have, and what do these invariances tell us about $dx$? Write the backward pass, and check that $dx$ agrees with both invariances.
#
# <details><summary>Hint</summary>
#
# Does $y$ change if you add a constant to all features of a token? Does $y$ change if you multiply $x - \bar x$ by 2? For the backward pass, write LayerNorm as two layers. The first layer subtracts the mean. The second layer is RMSNorm with $w = 1$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The sum of $dx$ over the features of a token is zero. Also, $dx$ is perpendicular to $x - \bar x$, except for the small effect of $\varepsilon$. The first layer subtracts the mean of the features. The backward pass of this layer subtracts the mean of the gradient. So
# the $dx$ of LayerNorm is the $dx$ that `rms_norm_backward` returns, minus the mean of this $dx$ over the features.
#
# </details>
#
# 4. Exercises 8 and 9 ask for the backward pass of RMSNorm and of attention. Run `make exercises` in a terminal to get your copy. **Close this notebook**, and then derive the gradients with the rule of notebook 03.
#
# <details><summary>Hint</summary>
#
# Write the forward pass with all indices, and list every path from an input to the outputs. If your gradient is wrong, the function `check` of the exercise names the mistake.
#
# </details>
#
# Continue with [Why low rank works](04_why_low_rank_works.ipynb).
