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
# # Other PEFT methods
#
# LoRA is one way to train little. This notebook has a dozen others, each with its equation and the few lines that are it, and then what they are worth when
# each gets the learning rate that suits it, on the same text, with the same number of steps.
#
# First the result. "tiny", which has read English, learns Python code.
#
# **Predict.** Which comes nearest to full fine-tuning: the method that trains the most numbers? And what does a tenth of LoRA's numbers buy?

# %%
import numpy as np
from IPython.display import Markdown

import lora_np as ln
from lora_np import plots
from lora_np.ledger import houlsby_parameters, prefix_parameters
from lora_np.peft import VeraConfig
from lora_np.studies import lesson
from lora_np.studies.claims_on_methods import against_lora, forgetting
from lora_np.studies.table import Table

compared, costs = (Table.load(f"../figures/data/{name}.json") for name in ("comparison", "method_costs"))
plots.quality_against_parameters(compared);

# %% [markdown]
# ## One call for all of them
#
# A method is a configuration. `get_peft_model` freezes the base and puts in what the configuration says.
#
# **Predict** the largest and the smallest count before you run this.

# %%
r, v, m = 8, 20, 11  # LoRA's rank, virtual tokens, an adapter's width
s = 8.0  # α/r

everywhere = {"r": r, "lora_alpha": s * r, "target_modules": "all-linear"}
configs = {
    "LoRA": ln.LoraConfig(**everywhere),
    "rsLoRA": ln.LoraConfig(**everywhere, use_rslora=True),
    "DoRA": ln.LoraConfig(**everywhere, use_dora=True),
    "PiSSA": ln.LoraConfig(**everywhere, init_lora_weights="pissa"),
    "LoRA-FA": ln.LoraConfig(**everywhere, freeze_A=True),
    "VeRA": VeraConfig(r=256, target_modules="all-linear"),
    "prefix": ln.PrefixTuningConfig(num_virtual_tokens=v),
    "Houlsby": ln.BottleneckConfig(bottleneck_size=m),
    "Pfeiffer": ln.BottleneckConfig(bottleneck_size=m, placement="pfeiffer"),
}
models = {name: ln.get_peft_model(ln.load_model("tiny"), config) for name, config in configs.items()}
trained = {name: ln.ledger.count(model).trainable for name, model in models.items()}

c = ln.load_model("tiny").config
d, L, kv = c.hidden_size, c.num_hidden_layers, c.num_key_value_heads * c.head_dim
shapes = [layer.base_layer.weight.value.shape for layer in models["LoRA"].lora_layers()]  # (out, in) of each
outs = sum(out for out, _ in shapes)
expected = {
    **dict.fromkeys(("LoRA", "rsLoRA", "PiSSA"), sum(r * (out + in_) for out, in_ in shapes)),
    "DoRA": sum(r * (out + in_) + out for out, in_ in shapes),  # and a length for each row
    "LoRA-FA": r * outs,  # B alone
    "VeRA": 256 * len(shapes) + outs,  # d and b
    "prefix": v * 2 * L * kv,  # a key and a value in each layer
    "Houlsby": 2 * L * (2 * m * d + d + m),
    "Pfeiffer": L * (2 * m * d + d + m),
}
for name, n in trained.items():
    print(f"{name:10}{n:>9,}  {n / ln.ledger.count(ln.load_model('tiny')).total:6.2%} of tiny")
assert trained == expected
assert prefix_parameters(20, layers=32, kv_heads=32, head_dim=128) == 5_242_880  # Llama-2-7B
assert houlsby_parameters(d, m) == 2 * m * d + d + m

# %% [markdown]
# Where they act, in one block of the Transformer:

# %%
plots.method_diagrams();

# %% [markdown]
# Three ideas, then: a change of the weights that has few numbers (the first five), something more to attend to (a prefix), and more layers (adapters). Only the
# first can be added into $W$ and cost nothing afterwards.
#
# ## LoRA's family
#
# ### rsLoRA: another scale
#
# $$s = \frac{\alpha}{r} \quad\longrightarrow\quad s = \frac{\alpha}{\sqrt r}$$
#
# One character in the code. It is made for comparing ranks, which notebook 06 does; at one rank it is LoRA with another α.
#
# ### LoRA+: another learning rate for B
#
# $A$ starts random and $B$ at zero, and one learning rate serves both. LoRA+ gives $B$ its own, 16 times as large. In the code: `AdamW(lr_ratio={"lora_B": 16})`.
# What else could one scale? Adam divides the gradient by its own size, so it takes the same steps for a gradient a hundred times as large. It follows that all these are
# the same training:
#
# $$\bigl(\alpha,\; A,\; B,\; \eta_A,\; \eta_B\bigr) \;\sim\; \bigl(\tfrac{\alpha}{pq},\; pA,\; qB,\; p\,\eta_A,\; q\,\eta_B\bigr)$$
#
# **Predict.** $p = 8$, $q = 1/4$, four steps. How large is the difference of the losses, in float32?

# %%
batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)


def losses(p, q):
    config = ln.LoraConfig(r, s * r / (p * q), "all-linear")
    model = ln.get_peft_model(ln.load_model("tiny"), config)
    for name, parameter in model.named_parameters():
        parameter.value *= p if ".lora_A." in name else q if ".lora_B." in name else 1
    optimizer = ln.AdamW(lr=4e-3, eps=1e-30, weight_decay=0, lr_ratio={"lora_A": p, "lora_B": q})
    return ln.train(model, batches, optimizer, steps=4, progress=False).column("loss")


print(losses(1, 1))
print(losses(8, 1 / 4))
assert losses(1, 1) == losses(8, 1 / 4)

# %% [markdown]
# None at all: a factor of two changes an exponent and no digit. So α, the size of $A$ at the start and the two rates are three numbers too many for two degrees of freedom. A
# comparison of two α at one learning rate compares learning rates.
#
# ### DoRA: length and direction apart
#
# $$V = W + s\,BA, \qquad y_o = \frac{m_o}{\lVert V_o \rVert}\; x V_o^\top \qquad (V_o: \text{row } o)$$
#
# $m$ trains the length of each row, $A$ and $B$ its direction. At the start $m_o = \lVert W_o \rVert$.

# %%
def dora(x, W, A, B, m):
    """x (N, in), W (out, in), A (r, in), B (out, r), m (out,) → y (N, out)."""
    V = W + s * B @ A  # (out, in)
    return x @ (m[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)).T  # (N, in) (in, out)


rng = np.random.default_rng(0)
layer = models["DoRA"].lora_layers()[0]
layer.lora_B["default"].value[...] = rng.normal(size=layer.lora_B["default"].value.shape) / 10
W, A, B, lengths = (p.value for p in (layer.base_layer.weight, layer.lora_A["default"], layer.lora_B["default"], layer.lora_magnitude_vector["default"]))
x = rng.normal(size=(5, d)).astype(np.float32)
y, _ = layer.forward(x, ln.Context(adapter="default"))
print(f"differs from the library by {abs(y - dora(x, W, A, B, lengths)).max() / abs(y).max():.0e}")

# %% [markdown]
# The lengths $\lVert V_o \rVert$ depend on $A$ and $B$ too. The paper and PEFT take them for constants in the backward pass, which spares a product. That is no longer the gradient of the
# loss: a row of $V$ may then be stretched, though stretching changes nothing in $y$. Both are here, `dora_norm="detached"` and `"true"`.
#
# **Predict.** The two gradients of the same loss: what is the cosine between them, for $A$, for $B$, for $m$?

# %%
def gradients(norm):
    config = ln.LoraConfig(**everywhere, use_dora=True, dora_norm=norm, init_lora_weights=False)
    model = ln.get_peft_model(ln.load_model("tiny"), config)
    _, cache = model.loss(*batches[0])
    model.backward(cache)
    parts = {"A": "lora_A", "B": "lora_B", "m": "magnitude"}
    return {part: np.concatenate([p.grad.ravel() for name, p in model.named_parameters() if word in name]) for part, word in parts.items()}


true, detached = gradients("true"), gradients("detached")
for part, g in true.items():
    other = detached[part]
    print(f"{part}: cosine {g @ other / np.linalg.norm(g) / np.linalg.norm(other):.4f}, length {np.linalg.norm(other) / np.linalg.norm(g):.3f} of the true one")

# %% [markdown]
# ### PiSSA: start where W is large
#
# $$W = U \Sigma V^\top, \qquad s\,B_0 A_0 = U_r \Sigma_r V_r^\top, \qquad \text{frozen: } W - s\,B_0 A_0$$
#
# LoRA's bypass starts at nothing. PiSSA's starts as the largest part of $W$ itself; what is frozen is the rest. **Predict** the singular values of what is left in the base.

# %%
name = "model.layers.2.mlp.up_proj"
W = dict(ln.load_model("tiny").named_parameters())[f"{name}.weight"].value
U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
A0, B0 = np.sqrt(sigma[:r, None] / s) * Vt[:r], U[:, :r] * np.sqrt(sigma[:r] / s)  # (r, in), (out, r)
rest = W - s * B0 @ A0

theirs = dict(models["PiSSA"].model.named_modules())[name].base_layer.weight.value
left = np.linalg.svd(theirs, compute_uv=False)
print("of W:   ", sigma[: r + 4].round(2), "…")
print("left:   ", left[:4].round(2), "…")
print(f"the tail: {np.allclose(left[:-r], sigma[r:], atol=1e-4)}; the same by hand: {np.allclose(rest, theirs, atol=1e-5)}")

# %% [markdown]
# ### LoRA-FA: A stays as it was drawn
#
# $$dB = s\,dy^\top (x A^\top) \;-\text{ needs } xA^\top\ (N \times r); \qquad dA = s\,B^\top dy^\top x \;-\text{ needs } x\ (N \times \text{in})$$
#
# If $A$ does not train, its input need not be kept until the backward pass.

# %%
x = rng.normal(size=(1024, d)).astype(np.float32)
for keep_x in (True, False):
    A, B = rng.normal(size=(r, d)).astype(np.float32), np.zeros((c.intermediate_size, r), np.float32)
    _, cache = ln.ops.lora_forward(x, A, B, s, keep_x)
    kept = sum(part.size for part in cache if isinstance(part, np.ndarray) and part is not A and part is not B)
    print(f"{'LoRA' if keep_x else 'LoRA-FA':8} keeps {kept:,} numbers of {len(x):,} tokens")

# %% [markdown]
# (In a block three projections share one input, and a frozen base keeps none of them for itself; so the saving is real, and smaller than it looks here.)
#
# ### VeRA: the same random factors everywhere
#
# $$y = xW^\top + b \circ \bigl((d \circ (x A^\top))\, B^\top\bigr), \qquad \Delta W = \Lambda_b\, B\, \Lambda_d\, A$$
#
# $A$ and $B$ are drawn once and shared by all layers; each layer trains two vectors.

# %%
def vera(x, A, B, d, b):
    """x (N, in), A (r, in), B (out, r), d (r,), b (out,) → δ (N, out)."""
    return b * ((d * (x @ A.T)) @ B.T)  # (N, r), then (N, out)


A, B = (rng.normal(size=shape) for shape in ((256, d), (d, 256)))
vectors = rng.normal(size=256), rng.normal(size=d)
x = rng.normal(size=(5, d))
print(np.allclose(vera(x, A, B, *vectors), ln.ops.vera_forward(x, A, B, *vectors)[0]))

# %% [markdown]
# ## Prefix tuning: something more to attend to
#
# $$\mathrm{softmax}\!\left(\frac{q\,[P_K, K]^\top}{\sqrt{d_h}}\right) [P_V, V]$$
#
# No weight changes. Each layer gets $v$ keys and values that no token made, and these are trained. They enter by the same door as the cache of tokens read before.

# %%
def with_prefix(q, K, V, P_K, P_V):
    """q (t, d_h), K and V (t, d_h), P_K and P_V (v, d_h) → (t, d_h). Every token sees the whole prefix."""
    t, keys = len(K), np.concatenate([P_K, K])  # (v + t, d_h)
    scores = q @ keys.T / np.sqrt(q.shape[-1])
    scores[:, len(P_K) :][np.triu_indices(t, 1)] = -np.inf  # no token sees a later one
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ np.concatenate([P_V, V])  # (t, v + t) (v + t, d_h)


q, K, V = rng.normal(size=(3, 6, c.head_dim))
P_K, P_V = rng.normal(size=(2, v, c.head_dim))
ours, _ = ln.ops.attention_forward(*(np.concatenate(x)[None, None] for x in ([q], [P_K, K], [P_V, V])))
print(np.allclose(with_prefix(q, K, V, P_K, P_V), ours[0, 0]))

# %% [markdown]
# **Predict.** All keys and values of a prefix are zero. Is the model the base?

# %%
tokens, targets = batches[0]
print(f"base                {ln.load_model('tiny').loss(tokens, targets)[0]:.3f} nats a byte")
for start in ("zero", None):
    model = ln.get_peft_model(ln.load_model("tiny"), ln.PrefixTuningConfig(num_virtual_tokens=v, init_weights=start))
    print(f"prefix, {start or 'random':12}{model.loss(tokens, targets)[0]:.3f}")

# %% [markdown]
# Neither is. A score of zero is $e^0 = 1$, so $v$ zeros take their share of the attention and give nothing for it. And a random prefix, with which training begins, is worse
# than none: unlike all others, prefix tuning has something to win back first.
#
# ## Adapters: more layers
#
# $$z = y + W_\uparrow\, \sigma(W_\downarrow\, y + b_\downarrow) + b_\uparrow$$
#
# A bottleneck $d \to m \to d$ with a skip of its own, after what each half of the block has computed (Houlsby), or after the MLP alone (Pfeiffer).

# %%
layer = dict(models["Houlsby"].model.named_modules())["model.layers.0.mlp.down_proj"]
down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
up.weight.value[...] = rng.normal(size=up.weight.value.shape) / 10


def adapter(y, down, up):
    """y (N, d) → z (N, d)."""
    h = y @ down.weight.value.T + down.bias.value  # (N, d) (d, m) → (N, m)
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return y + gelu @ up.weight.value.T + up.bias.value  # (N, m) (m, d) → (N, d)


x = rng.normal(size=(5, c.intermediate_size)).astype(np.float32)
y, _ = layer.forward(x)  # of the base
z, _ = layer.forward(x, ln.Context(adapter="default"))
print(f"differs from the library by {abs(z - adapter(y, down, up)).max() / abs(z).max():.0e}")
try:
    models["Houlsby"].merge_adapter()
except ValueError as error:
    print("merged?", error)

# %% [markdown]
# Because of $\sigma$ it is no matrix, and cannot go into one.
#
# ## What they are worth
#
# Each method at the best of its own learning rates, chosen on other text than it is judged by; a step and an answer timed in turns. "share" is of the base's numbers, "state" the bytes of what trains, its
# gradients and Adam's two averages; "peak" the memory of a step; the ratios are to full fine-tuning's step and to the base's answer.
#
# **Predict.** Which methods make a step *slower* than full fine-tuning's, on a model as small as this one?

# %%
Markdown(lesson.comparison_markdown(compared, costs))

# %% [markdown]
# On such a small model LoRA's thin products take as long as what they spare, and DoRA and VeRA have more of them. On a large model a thin product is nearly
# free (notebook 03 counts it). And look at the best rates:

# %%
rates = {row["label"]: row["lr"] for row in lesson.summary(compared)}
slowest, fastest = min(rates, key=rates.get), max(rates, key=rates.get)
print(f"{fastest} learns best at {rates[fastest] / rates[slowest]:.0f} times the rate that is best for {slowest}")

# %% [markdown]
# A comparison of all at one rate would have been a comparison of nothing.
#
# What the papers promise of LoRA's relatives, and what came out here:

# %%
for method in ("lora+", "dora", "pissa", "lora-fa", "vera", "rslora"):
    print(f"{compared.settings['labels'][method]:9}{against_lora(compared, method)}")

# %% [markdown]
# ## What is forgotten
#
# All of them started from a model that reads English. **Predict.** Two methods that have learned the same amount of code: have they forgotten the same amount of prose?

# %%
plots.methods_learned_and_forgotten(compared);

# %%
print("LoRA forgets less?", forgetting(compared))

base, prose = compared.settings["base_loss"], compared.settings["base_prose"]
print("\nthe first seed, at every rate that was tried:")
for method in ("full", "lora", "dora", "houlsby"):
    for row in compared.where(phase="sweep", method=method):
        print(f"{compared.settings['labels'][method]:18}{row['lr']:8.2g}   learned {base - row['final']:.3f}   forgotten {row['prose'][-1] - prose:.3f}")

# %% [markdown]
# Read along the lines: a line that lies lower forgets less *for the same learning*; one that is only shorter forgets less because it learned less.
# [Biderman et al. 2024](https://arxiv.org/abs/2405.09673) found LoRA's line below that of full fine-tuning, on billions of tokens and models thousands of times as large. Whether it
# is so here the first line says. The list below it says what decides more than the method: the learning rate. It was chosen by the code alone, and near the best one the loss on code hardly
# changes, while the loss on prose does. Who wants to keep what the model knew should take the smaller of two rates that learn alike.
#
# Also see where the lines of full fine-tuning and LoRA turn: most is forgotten early, while the rate is highest, and some of it comes back as the rate falls.
#
# ## The lesson's numbers, and ours
#
# What a lesson on LoRA says of the methods, beside what was measured here. "agrees", "less" and "more" follow one rule:

# %%
print(lesson.__doc__.split("\n\n", 1)[1])
Markdown(lesson.lesson_markdown(lesson.beside_ours(compared, costs)))

# %% [markdown]
# The shares do not carry over to a small model: LoRA's numbers grow with $d$, the base's with $d^2$. Here are the same methods on paper, on a model of the size that
# the lesson speaks of,

# %%
llama = ln.ledger.architecture_of("llama-2-7b")
for name, n in {
    "LoRA r = 8, all linear": ln.ledger.count("llama-2-7b", 8, "all-linear").trainable,
    "prefix, 20 tokens": prefix_parameters(20, 32, 32, 128),
    "Houlsby adapters, m = 128": 2 * 32 * houlsby_parameters(4096, 128),
}.items():
    print(f"{name:28}{n:>14,}  {n / llama.parameters:.2%} of Llama-2-7B")

# %% [markdown]
# and here they are on SmolLM2-135M, which learns a voice (notebook 10):

# %%
real = Table.load("../figures/data/comparison_smollm2.json")
real_costs = Table.load("../figures/data/method_costs_smollm2.json")
Markdown(lesson.comparison_markdown(real, real_costs))

# %%
Markdown(lesson.lesson_markdown(lesson.beside_ours(real, real_costs)))

# %% [markdown]
# ## To take with you
#
# - One call, one configuration class a method. What trains is counted by a formula that fits in a line.
# - Only a change of weights can be merged. Prefixes and adapters are paid for with every token.
# - Compare at each method's own learning rate, or not at all.
# - How little is trained says how much is kept in a file. It does not say how much memory or time a step takes, nor how well it learns.
