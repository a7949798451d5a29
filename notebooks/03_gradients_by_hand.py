# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradients by hand
#
# LoRA never computes the gradient $dW$ of the frozen weight. Its own two gradients are $dW$ all the same, multiplied by its factors:
#
# $$dA \;=\; s\,B^\top dW \qquad\qquad dB \;=\; s\,dW A^\top$$
#
# Here are the three, in one layer of a real language model that reads Python code: what full fine-tuning computes in coral, what LoRA computes in cyan.

# %%
from copy import deepcopy

import numpy as np

import lora_np as ln
from lora_np import plots

base = ln.load_model("tiny").astype("float64")  # float64, because we are going to prove something
config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)  # False: B is random, not zero
model = ln.get_peft_model(base, config)
batch = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)[0]  # tokens, targets


def backward_of(model):
    loss, cache = model.loss(*batch)
    model.zero_grad()
    model.backward(cache)
    return float(loss)


full = deepcopy(model).merge_and_unload().unfreeze()  # the same function, as one weight W + sBA per layer, all of it trained
print(f"loss {backward_of(model):.6f} with the bypass, {backward_of(full):.6f} merged")

name = "model.layers.2.mlp.down_proj"
layers = {name: m for name, m in model.model.named_modules() if isinstance(m, ln.LoraLinear)}
A, B, s = layers[name].lora_A["default"], layers[name].lora_B["default"], config.scaling
dW = dict(full.named_parameters())[f"{name}.weight"].grad
print("dA = s Bᵀ dW:", np.allclose(A.grad, s * B.value.T @ dW), "  dB = s dW Aᵀ:", np.allclose(B.grad, s * dW @ A.value.T))
plots.gradient_shadows(dW, A.grad, B.grad, name);

# %% [markdown]
# This notebook derives these two lines, then the backward pass of every layer of the model. Each derivation ends in a few lines of NumPy and is
# proven on the spot by a derivative that knows nothing of the derivation.
#
# ## One rule
#
# For a loss $L$, a number, write $dX$ for $\partial L / \partial X$: it has the shape of $X$, because it says for each entry of $X$ how fast $L$ changes
# with it. A layer is given $dy$, from the layers above. It owes a gradient for each of its inputs.
#
# Write the forward pass with all its indices. Token $n$, input feature $j$, output feature $i$:
#
# $$y_{ni} = \sum_j W_{ij}\, x_{nj}$$
#
# The chain rule adds up all the ways on which $W_{ij}$ reaches the loss. It reaches $y_{ni}$ for this one $i$ and for every token $n$, each time with
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

print("dB:", np.allclose(dB, s * np.einsum("ni,pj,nj->ip", dy, A, x)))  # all indices at once, p for ρ
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
# $$f(x + ih) = f(x) + ih\,f'(x) - \tfrac{h^2}{2} f''(x) - \dots \qquad\Rightarrow\qquad f'(x) = \frac{\operatorname{Im} f(x + ih)}{h} + O(h^2)$$
#
# The imaginary part holds the derivative alone. Nothing is subtracted, so $h$ may be as small as one likes.
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
plots.step_sizes(steps, step_errors, "relative error of the derivative of x / (1 + exp(−x)) in float64, the worst of 20 points");

# %% [markdown]
# Read the slopes. On the right, where the bend of $f$ dominates, one line falls with $h$ and two with $h^2$. On the left both differences drown in
# rounding, about $\epsilon/h$ with $\epsilon$ the spacing of float64, until $x + h = x$ and nothing is left (an error of 1). Where the two effects balance, the forward difference gets half of the digits
# right and the central one two thirds. The complex step never turns up again: from some $h$ on it is exact to rounding. We take $h = 10^{-30}$.
#
# ## From one number to a matrix
#
# A layer's input has many entries and its output too. Two ideas make one number of it.
#
# - *Output:* draw a random $dy$ and take $L = \sum_{ni} dy_{ni}\,y_{ni}$. Its gradient with respect to $y$ is $dy$ itself, so a backward that is given $dy$ must
#   return the gradients of this $L$.
# - *Input:* draw a random direction $v$ of the shape of $X$ and step along it: $\operatorname{Im} L(X + ihv)/h = \sum dX \circ v$. One forward pass
#   tests all entries of $dX$ together. A wrong entry changes the sum, unless the mistake is orthogonal to $v$, which for a random $v$ has probability zero.

# %%
def check(forward, backward, **inputs):
    """Each gradient, projected on a random direction, against the complex step. Prints and returns the relative errors."""
    y, cache = forward(*inputs.values())
    dy = rng.standard_normal(y.shape)
    gradients = backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    h, found = 1e-30, {}
    for (name, X), dX in zip(inputs.items(), gradients, strict=True):
        v = rng.standard_normal(X.shape)
        stepped = inputs | {name: X + 1j * h * v}
        derivative = (dy * forward(*stepped.values())[0]).sum().imag / h  # Im L(X + ihv) / h
        size = max(np.linalg.norm(dX), abs(derivative)) or 1
        found[name] = abs(derivative - (dX * v).sum()) / size
        print(f"   d{name:7} {found[name]:.0e}   {'right' if found[name] < 1e-12 else 'WRONG'}")
    return found


print("our LoRA layer")
proof = {"LoRA": {"derived": [*check(lora_forward, lora_backward, x=x, A=A, B=B).values()]}}

# %% [markdown]
# Below $10^{-12}$ counts as right. In float64 a correct gradient usually lies between $10^{-15}$ and $10^{-17}$, and a wrong formula is seldom wrong by little. The
# library's `ln.gradcheck` is this function, with its inputs checked and several directions.
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


print("at the start, B = 0")
check(lora_forward, forgot_s, x=x, A=A, B=np.zeros_like(B))
print("later, B random")
proof["LoRA"]["mistake"] = check(lora_forward, forgot_s, x=x, A=A, B=B)["A"]

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


for what, weight in (("4 × 6", W), ("6 × 6", rng.standard_normal((k, k))), ("6 × 6, the identity", np.eye(k))):
    print("W", what)
    try:
        check(linear_forward, transposed, x=x, W=weight)
    except ValueError as error:
        print("  ", str(error).partition(",")[0])

# %% [markdown]
# On an oblong $W$ the product has no shape to take. On a square one it runs, and only the check sees it. On a symmetric one, such as the identity, the
# wrong formula *is* right, and no check can see it. **Check at a general point: nothing zero, nothing equal, nothing square, nothing symmetric.**
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
for name, value in {"x * x": z * z, "abs(x) ** 2": abs(z) ** 2, "x.conj() * x": z.conj() * z}.items():
    print(f"{name:13} {value.imag / h0:g}")

# %% [markdown]
# For real $x$ the three are the same, and a hand-derived gradient of them is equally right. Only the judge is misled: it calls a right gradient wrong. So the library
# writes `x * x`. (`np.linalg.norm` and `np.vdot` hide an absolute value and a conjugation.)
#
# ## Softmax
#
# $$p_i = \frac{e^{z_i - m}}{\sum_j e^{z_j - m}}$$
#
# $m$ is the largest $z$, so that $\exp$ cannot overflow. Complex numbers have no order, hence `z.real.max`: a plain number, not differentiated. May one do
# that? Yes: $m$ cancels, $p$ does not depend on it, whatever it is.
#
# $z_j$ reaches $p_j$ through the numerator, and *every* $p_i$ through the denominator:
#
# $$\frac{\partial p_i}{\partial z_j} = p_i\,(\delta_{ij} - p_j) \qquad\Rightarrow\qquad dz_j = \sum_i dp_i\,p_i\,(\delta_{ij} - p_j) = p_j \Big(dp_j - \sum_i dp_i\,p_i\Big)$$
#
# The mistake that everybody makes once is to stop after the first term, $dz = p \circ dp$.

# %%
def softmax_forward(z):
    e = np.exp(z - z.real.max(axis=-1, keepdims=True))  # (N, k)
    p = e / e.sum(axis=-1, keepdims=True)  # (N, k) / (N, 1) → (N, k)
    return p, p


def softmax_backward(dp, p):
    dot = (dp * p).sum(axis=-1, keepdims=True)  # Σ_i dp_i p_i, a number a row: (N, 1)
    return p * (dp - dot)  # (N, k)


def first_term_only(dp, p):
    return p * dp


def largest_difference(mine, its):
    return f"{max(abs(a - b).max() for a, b in zip(mine, its, strict=True)):.0e} from the library at most"


z, dp = rng.standard_normal((2, N, k))
p, _ = softmax_forward(z)
dz = softmax_backward(dp, p)
print(largest_difference([dz], [ln.ops.softmax_backward(dp, ln.ops.softmax_forward(z)[1])]))
proof["softmax"] = {"derived": [*check(softmax_forward, softmax_backward, z=z).values()]}
print("the second term missing")
proof["softmax"]["mistake"] = check(softmax_forward, first_term_only, z=z)["z"]

# %% [markdown]
# **Predict.** Adding one number to all $z$ of a row changes nothing. What is then the sum of a row of $dz$, and what is it for the mistake?

# %%
print("correct:", dz.sum(axis=-1).round(15) + 0.0, "\nmistake:", first_term_only(dp, p).sum(axis=-1).round(3))

# %% [markdown]
# Zero for the right one: along a direction in which the output does not change, the gradient has nothing. An invariance is a second, free check, and RMSNorm will have one too.
#
# ## Attention
#
# One head. Query $t$, key $u$, feature $c$:
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
    mask = np.triu(np.full((T, T), -1e30), k=1)  # added to a forbidden score: exp makes it exactly 0
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


T, head = 5, 4
q, key, v, do = rng.standard_normal((4, T, head))
o, attention_cache = attention_forward(q, key, v)
_, its_cache = ln.ops.attention_forward(*(a[None, None] for a in (q, key, v)))  # it wants (batch, heads, T, head)
print(largest_difference(attention_backward(do, attention_cache), [g[0, 0] for g in ln.ops.attention_backward(do[None, None], its_cache)]))
proof["attention"] = {"derived": [*check(attention_forward, attention_backward, q=q, k=key, v=v).values()]}
print("the 1/√d of dk missing")
proof["attention"]["mistake"] = check(attention_forward, dk_without_scale, q=q, k=key, v=v)["k"]
dscores = softmax_backward(do @ v.T, attention_cache[3])
print("largest |dz| at a forbidden place:", abs(np.triu(dscores, k=1)).max())

# %% [markdown]
# None of them: a forbidden $p$ is 0, and $dz$ has $p$ as a factor. (Why $-10^{30}$ and not $-\infty$? A complex product with $-\infty$ computes $\infty \cdot 0$, which is not a
# number.)
#
# The library's version is the same mathematics arranged for speed: blocks of queries, and $\sum_u dp_{tu}\,p_{tu} = \sum_c do_{tc}\,o_{tc}$, a sum over the few features instead of the
# many keys. Insert $dp = do\,v^\top$ to see it.
#
# ## RMSNorm
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


w, dn = rng.standard_normal(k), rng.standard_normal((N, k))  # dn: the gradient of what the norm returns
_, norm_cache = rms_norm_forward(x, w)
dx, dw = rms_norm_backward(dn, norm_cache)
print(largest_difference((dx, dw), ln.ops.rms_norm_backward(dn, ln.ops.rms_norm_forward(x, w, eps)[1])))
proof["RMSNorm"] = {"derived": [*check(rms_norm_forward, rms_norm_backward, x=x, w=w).values()]}
print("ρ taken for a constant")
proof["RMSNorm"]["mistake"] = check(rms_norm_forward, rho_taken_for_constant, x=x, w=w)["x"]

# %% [markdown]
# **Predict.** Twice as long an $x$ gives the same $y$ (up to $\varepsilon$). In which direction can $dx$ then not point?

# %%
for what, gradient in (("correct", dx), ("mistake", rho_taken_for_constant(dn, norm_cache)[0])):
    cosine = (gradient * x).sum(axis=-1) / (np.linalg.norm(gradient, axis=-1) * np.linalg.norm(x, axis=-1))
    print(f"{what}: |cosine of the angle between dx and x| at most {abs(cosine).max():.0e}")

# %% [markdown]
# Along $x$ itself; the two are perpendicular, but for $\varepsilon$. The second term takes out of $\rho\,g$ just the part that points along $x$.
#
# ## Rotary embedding
#
# Each pair $(x_c, x_{c+d/2})$ of a query or key is turned by an angle $\varphi$ that grows with its position. As a matrix, and its transpose:
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


_, rotary_cache = rotary_forward(q)
tables = ln.ops.rotary_tables(np.arange(T), head, 10000.0, float)
print(largest_difference([rotary_backward(do, rotary_cache)], [ln.ops.rotary_backward(do, ln.ops.rotary_forward(q, *tables)[1])]))
proof["rotary"] = {"derived": [*check(rotary_forward, rotary_backward, q=q).values()]}
print("turned further instead of back, a single token")
check(rotary_forward, turned_further, q=q[:1])
print(f"turned further instead of back, {T} tokens")
proof["rotary"]["mistake"] = check(rotary_forward, turned_further, q=q)["q"]

# %% [markdown]
# No. A single token stands at position 0, where nothing is turned: again a check at a special point that cannot fail.
#
# ## SwiGLU
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


def gate_not_differentiated(dy, cache):
    g, u, sigma = cache
    return dy * u * sigma, dy * g * sigma  # g σ(g), as if σ did not depend on g


g, u = rng.standard_normal((2, N, k))
_, swiglu_cache = swiglu_forward(g, u)
print(largest_difference(swiglu_backward(dn, swiglu_cache), ln.ops.swiglu_backward(dn, ln.ops.swiglu_forward(g, u)[1])))
proof["SwiGLU"] = {"derived": [*check(swiglu_forward, swiglu_backward, g=g, u=u).values()]}
print("σ taken for a constant")
proof["SwiGLU"]["mistake"] = check(swiglu_forward, gate_not_differentiated, g=g, u=u)["g"]

# %% [markdown]
# ## Cross-entropy
#
# Where the backward pass begins. For logits $z$ and the token $c_n$ that really came next at each of $N$ places:
#
# $$L = \frac1N \sum_n \Big(\log \sum_j e^{z_{nj}} - z_{n c_n}\Big) \qquad\Rightarrow\qquad dz_{nj} = \frac1N \big(p_{nj} - [\,j = c_n\,]\big), \qquad p = \operatorname{softmax}(z)$$
#
# The derivative of log-sum-exp is the softmax. What the model said, minus what it should have said, over $N$.

# %%
targets = rng.integers(0, k, N)


def cross_entropy_forward(z):
    m = z.real.max(axis=-1, keepdims=True)  # (N, k) → (N, 1)
    log_sum = np.log(np.exp(z - m).sum(axis=-1)) + m[:, 0]  # log Σ_j exp z_j: (N, k) → (N,)
    return (log_sum - z[np.arange(N), targets]).mean(), z  # a number


def cross_entropy_backward(dloss, z):
    dz, _ = softmax_forward(z)  # (N, k)
    dz[np.arange(N), targets] -= 1
    return dloss * dz / N


def sum_instead_of_mean(dloss, z):
    return N * cross_entropy_backward(dloss, z)


loss, _ = cross_entropy_forward(z)
print(largest_difference([cross_entropy_backward(1.0, z)], [ln.ops.cross_entropy_backward(1.0, ln.ops.cross_entropy_forward(z, targets)[1])]))
proof["cross-entropy"] = {"derived": [*check(cross_entropy_forward, cross_entropy_backward, z=z).values()]}
print("the 1/N missing")
proof["cross-entropy"]["mistake"] = check(cross_entropy_forward, sum_instead_of_mean, z=z)["z"]

# %% [markdown]
# ## The verdicts
#
# All checks of this notebook, a row a layer. **Predict.** How many powers of ten lie between the worst correct gradient and the least of the mistakes?

# %%
right = max(max(row["derived"]) for row in proof.values())
wrong = min(row["mistake"] for row in proof.values())
plots.relative_errors(
    proof,
    1e-12,
    f"{np.log10(wrong / right):.0f} powers of ten lie between a correct gradient and a mistake",
    "relative error against the complex step, in float64, a point a tensor",
);

# %% [markdown]
# This gap is what the complex step is for. With a central difference the correct gradients would lie where its line above has its lowest point, and a small mistake could
# hide among them.
#
# ## The whole model
#
# The layers are right one by one; is their composition? The loss of "tiny" is one function of all its factors $A$ and $B$, so the same check
# applies to the model as a whole, through five blocks with residuals, grouped heads and a tied embedding. And for each of its adapted layers the two identities of
# the first picture can be measured: LoRA's gradients from one backward pass, $dW$ from that of the merged model.
#
# **Predict.** The identities are exact on paper. Two backward passes that sum in different orders: to how many digits will they agree?

# %%
def relative(gradient, reference):
    return np.linalg.norm(gradient - reference) / np.linalg.norm(reference)


short = batch[0][:1, :32], batch[1][:1, :32]  # 32 tokens are enough for a proof
verdict = ln.gradcheck_model(model, *short, directions=1).raise_if_wrong()
print(f"{len(verdict.errors)} gradients of the whole model against the complex step: the worst is off by {max(verdict.errors.values()):.0e}")

dWs = {name.removesuffix(".weight"): p.grad for name, p in full.named_parameters()}
rows = {}
for name, layer in layers.items():
    lora_A, lora_B, scaling = layer.lora_A["default"], layer.lora_B["default"], layer.configs["default"].scaling
    row = rows.setdefault(name.rpartition(".")[2], {"dA = s Bᵀ dW": [], "dB = s dW Aᵀ": []})
    row["dA = s Bᵀ dW"].append(relative(lora_A.grad, scaling * lora_B.value.T @ dWs[name]))
    row["dB = s dW Aᵀ"].append(relative(lora_B.grad, scaling * dWs[name] @ lora_A.value.T))
worst = max(max(errors) for row in rows.values() for errors in row.values())
plots.relative_errors(
    rows,
    1e-12,
    f"In all {len(layers)} layers LoRA's gradients are dW, seen through B and A",
    f"relative difference of the two sides, in float64, a point a layer; the worst is {worst:.0e}",
);

# %% [markdown]
# ## The first step
#
# The adapter above had a random $B$. A real one starts at zero. **Predict.** Which of $dA$ and $dB$ are zero at the start, and which after one step?

# %%
fresh = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)


def largest_gradients(model):
    backward_of(model)
    named = [(name, abs(p.grad).max()) for name, p in model.named_parameters() if p.trainable]
    return [max(value for name, value in named if f".lora_{factor}." in name) for factor in "AB"]


print("at the start       largest |dA| {:.1e}   largest |dB| {:.1e}".format(*largest_gradients(fresh)))
ln.train(fresh, batches, ln.AdamW(lr=1e-2), steps=1)
print("after one step     largest |dA| {:.1e}   largest |dB| {:.1e}".format(*largest_gradients(fresh)))

# %% [markdown]
# $dA = s\,B^\top dW$ is exactly zero while $B$ is. The first step moves $B$ alone; from the second on both learn.

# %% [markdown]
# ## What a step costs
#
# A product of $(a, b)$ with $(b, c)$ costs $2abc$ operations, a multiplication and an addition for each term. Of the lines above, for $N$ tokens and a layer $d \times k$:
#
# | product | shapes | full fine-tuning | LoRA |
# |---|---|---|---|
# | $x W^\top$ | (N, k) (k, d) | $2Nkd$ | $2Nkd$ |
# | $dy\,W$ | (N, d) (d, k) | $2Nkd$ | $2Nkd$ |
# | $dW = dy^\top x$ | (d, N) (N, k) | $2Nkd$ | never computed |
# | $xA^\top$, $\;dh^\top x$, $\;dh\,A$ | each of sizes N, k and r | | $6Nkr$ |
# | $hB^\top$, $\;dy^\top h$, $\;dy\,B$ | each of sizes N, d and r | | $6Ndr$ |
#
# Is that what the library does? No stopwatch is needed: run its own code on arrays that count the matrix products they take part in.

# %%
class Counted(np.ndarray):
    """An array like any other, which adds 2abc to `flops` for each matrix product."""

    flops = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(a) for a in inputs]
        if ufunc is np.matmul:
            (a, b), (_, c) = plain[0].shape, plain[1].shape
            Counted.flops += 2 * a * b * c
        if out is not None:
            options["out"] = tuple(np.asarray(a) for a in out)
        return np.asarray(getattr(ufunc, method)(*plain, **options)).view(Counted)


def counted(forward, backward, *shapes):
    arrays = [np.ones(shape).view(Counted) for shape in shapes]
    Counted.flops = 0
    y, cache = forward(*arrays)
    backward(np.ones(y.shape).view(Counted), cache)
    return Counted.flops


tokens, fan_in, fan_out, rank = 32, 96, 64, 8
shapes = {"x": (tokens, fan_in), "W": (fan_out, fan_in), "A": (rank, fan_in), "B": (fan_out, rank)}
full_step = counted(ln.ops.linear_forward, ln.ops.linear_backward, shapes["x"], shapes["W"])
lora_step = counted(lambda *arrays: ln.ops.lora_linear_forward(*arrays, 2.0), ln.ops.lora_linear_backward, *shapes.values())
print(f"full  counted {full_step:,}   6Nkd = {6 * tokens * fan_in * fan_out:,}")
print(f"LoRA  counted {lora_step:,}   4Nkd + 6Nr(k + d) = {4 * tokens * fan_in * fan_out + 6 * tokens * rank * (fan_in + fan_out):,}")

# %% [markdown]
# For a square layer, $k = d$, a token costs $6d^2$ against $4d^2 + 12dr$ ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/) count the same in
# multiply-adds, $3N^2$ against $2N^2 + 6Nr$ with $N$ for the width):
#
# $$\frac{\text{LoRA}}{\text{full}} = \frac{4d^2 + 12dr}{6d^2} = \frac23 + 2\,\frac rd$$
#
# **Predict.** From which rank on is LoRA *dearer* than full fine-tuning, on a layer as wide as a 7B model's, and on one of "tiny"?

# %%
ranks, widths = [2**n for n in range(11)], (4096, base.config.hidden_size)
plots.step_flops(ranks, {d: [(4 * d**2 + 12 * d * r) / (6 * d**2) for r in ranks] for d in widths}, 2 / 3);

# %%
for width in widths:
    print(f"d = {width:5,}: r = 8 costs {(4 * width + 12 * 8) / (6 * width):.3f} of a full step; as much as a full step at r = d/6 = {width / 6:.0f}")

# %% [markdown]
# So a layer's step is never cheaper than two thirds (but for the lowest layer, whose $dx$ nobody needs); what LoRA saves beyond that is memory, the gradients and the
# optimizer's state of the frozen weights. Attention, norms and the loss cost the same for both and are not counted. Notebooks 05 and 10 measure seconds.
#
# ## Try
#
# 1. Add a trained bias, $y_{ni} = \dots + b_i$. Which index is summed in $db$? Write it and check it.
# 2. Put dropout in front of the bypass. A check that draws a *new* mask in each forward pass reports a wrong gradient: why, and what has to be held fixed?
#    (`ln.gradcheck_model` has an argument for it.)
# 3. Compose the functions of this notebook into a block, $x + \text{attention}(\text{norm}(x))$, then $x + \text{MLP}(\text{norm}(x))$, with LoRA on one projection, and check $dA$
#    and $dB$ through all of it.
# 4. After the first step of gradient descent from $B = 0$, $\Delta W = -\eta\,s^2\,dW A^\top\!A$. Measure the angle between it and full fine-tuning's $-\eta\,dW$ at several
#    ranks. How does it shrink with $r$, and is it zero at $r = k$?
# 5. `notebooks/exercises` asks for the same functions with the answers taken out: $dA$ and $dB$, RMSNorm, attention. `from lora_np.exercises import check` names the mistake it finds.
