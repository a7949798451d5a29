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
# # Other PEFT methods
#
# LoRA is one parameter-efficient method. This notebook presents eleven others, each with its equation and a few lines of code. Then it compares all methods: which method learns the most per trained number, what does each method cost, and what does each method forget?
#
# **You will learn** to
#
# - explain where each method changes a Transformer block, and derive how many numbers the method trains;
# - implement the forward pass of DoRA, VeRA, a prefix and a bottleneck adapter, and check it against the library;
# - judge a claim about a method by a comparison at each method's own best learning rate.
#
# **Before you start**: LoRA (notebook 02), attention with keys and values (notebook 01), the singular value decomposition (notebook 04), and the setting of notebook 05.
#
# *Reading: two sittings of 50 minutes, the methods and the comparison. Tasks: 30 minutes. Running: about 10 seconds.*
#
# Three letters mean something else here than in the other notebooks. The letter $v$ is the number of virtual tokens of a prefix, and $m$ is the width of an adapter. The letter $\ell$ stands for the lengths of the rows of a matrix.
#
# ## The result first
#
# "tiny", which knows English, learns Python code. Every method trains for 200 steps at its own best learning rate.
#
# **Predict.** Does the method that trains the most numbers come closest to full fine-tuning? How much of LoRA's gain remains if the rank is 1 instead of 8, so that LoRA trains only an eighth of the numbers?

# %%
import textwrap

import numpy as np
from IPython.display import Markdown

import lora_np as ln
from lora_np import plots
from lora_np.costs import houlsby_parameters, prefix_parameters
from lora_np.peft import VeraConfig
from lora_np.report.results import Findings
from lora_np.studies.harness.paired import paired_differences
from lora_np.studies.harness.table import Table, show
from lora_np.studies.harness.words import percent
from lora_np.studies.methods import claims, lesson
from lora_np.studies.methods.comparison import lora_by_rank


def load(name):
    return Table.load(f"../figures/data/{name}.json")


findings = Findings("../figures")
compared, costs = load("comparison"), load("method_costs")
ranks = lora_by_rank(compared, load("convergence"))  # LoRA's runs of notebook 05
plots.quality_against_parameters(compared, ranks);

# %% [markdown]
# The line shows LoRA at ranks 1 to 64. DoRA trains more numbers than LoRA and does not gain more. LoRA of rank 1 trains an eighth of the numbers of rank 8 and keeps most of the gain of rank 8. The second sitting reads this picture in detail.
#
# # First sitting: the methods
#
# ## A map of the methods
#
# There are three ideas: change the weights, give the attention more to read (a prefix), or add layers (adapters). A change of the weights can be merged into $W$ and then costs nothing. Prefixes and adapters cannot be merged.
#
# | method | where it changes the block | what it trains | numbers per linear layer or block | merged? |
# |---|---|---|---|---|
# | full fine-tuning | every weight | all weights | all | – |
# | LoRA | beside each linear layer: $+\,s\,BA$ | $A$, $B$ | $r\,(\text{in} + \text{out})$ | yes |
# | QLoRA (notebook 07) | like LoRA, $W$ in four bits | $A$, $B$ | like LoRA | after dequantising |
# | rsLoRA | like LoRA, other scaling | $A$, $B$ | like LoRA | yes |
# | LoRA+ | like LoRA, other learning rate for $B$ | $A$, $B$ | like LoRA | yes |
# | PiSSA | like LoRA, other start | $A$, $B$ | like LoRA | yes |
# | LoRA-FA | like LoRA, $A$ frozen | $B$ | $r \cdot \text{out}$ | yes |
# | DoRA | each linear layer: direction and length apart | $A$, $B$, lengths $\ell$ | $r\,(\text{in} + \text{out}) + \text{out}$ | yes |
# | VeRA | beside each linear layer, $A$ and $B$ shared and frozen | two vectors $\lambda_d$, $\lambda_b$ | $r + \text{out}$ | yes |
# | prefix tuning | $v$ extra keys and values in each attention | $P_K$, $P_V$ | $2\,v\,n_{kv}\,d_h$ per block | no |
# | prefix with MLP | the same; a small network makes the prefix during training | the network | see the code | no |
# | Houlsby adapters | a small network after attention and after the MLP | $W_\downarrow$, $W_\uparrow$, biases | $2\,(2md + d + m)$ per block | no |
# | Pfeiffer adapters | a small network after the MLP only | $W_\downarrow$, $W_\uparrow$, biases | $2md + d + m$ per block | no |

# %%
plots.method_diagrams();

# %% [markdown]
# rsLoRA, LoRA+ and PiSSA would look like LoRA in such a drawing. In a drawing of LoRA-FA, $A$ would be grey.
#
# ## One call for all of them
#
# A method is a configuration. `get_peft_model` freezes the base and inserts the adapter that the configuration describes. The scaling $s = \alpha/r = 8$ is the same as in notebook 05, so that the runs of both notebooks can be compared.
#
# **Predict** which method trains the most numbers and which the fewest.

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
models = {name: ln.get_peft_model(ln.load_model("tiny"), c) for name, c in configs.items()}
trained = {name: ln.costs.count(model).trainable for name, model in models.items()}

tiny = ln.load_model("tiny").config
d, blocks = tiny.hidden_size, tiny.num_hidden_layers
kv = tiny.num_key_value_heads * tiny.head_dim  # numbers in a token's keys
shapes = [layer.base_layer.weight.value.shape for layer in models["LoRA"].lora_layers()]
outs = sum(out for out, _ in shapes)
of_lora = sum(r * (out + in_) for out, in_ in shapes)  # (out, in) of each layer
expected = {
    **dict.fromkeys(("LoRA", "rsLoRA", "PiSSA"), of_lora),
    "DoRA": of_lora + outs,  # and one length per row
    "LoRA-FA": r * outs,  # B only
    "VeRA": 256 * len(shapes) + outs,  # λ_d and λ_b
    "prefix": v * 2 * blocks * kv,  # a key and a value in each block
    "Houlsby": 2 * blocks * (2 * m * d + d + m),
    "Pfeiffer": blocks * (2 * m * d + d + m),
}
assert trained == expected
whole = ln.costs.count(ln.load_model("tiny")).total
lines = [{"method": name, "trained": n, "of tiny": n / whole} for name, n in trained.items()]
show(lines, {"method": "", "trained": ",", "of tiny": ".2%"})

# %% [markdown]
# The section about each method has four parts: the idea, the equation, the code, and one number.
#
# ## rsLoRA: another scaling
#
# **Idea.** The update should not shrink as the rank grows, so that ranks can be compared fairly.
#
# **Equation.** $s = \dfrac{\alpha}{r} \;\longrightarrow\; s = \dfrac{\alpha}{\sqrt r}$
#
# **Code.** `LoraConfig(use_rslora=True)`.
#
# **One number.** At a fixed rank, rsLoRA is LoRA with a larger $\alpha$. At $r = 8$, this larger $\alpha$ is $\sqrt 8 \approx 2.8$ times LoRA's $\alpha$. Notebook 06 compares ranks.
#
# ## LoRA+: another learning rate for B
#
# **Idea.** $A$ starts random and $B$ starts at zero, so the best learning rates of $A$ and $B$ may differ.
#
# **Equation.** $\eta_B = 16\,\eta_A$
#
# **Code.** `AdamW(lr_ratio={"lora_B": 16})`. The learning rates of $A$ and $B$ are not the only scales: $\alpha$ and the size of $A$ can be changed too. Adam divides each gradient by its usual size, so a scaled gradient gives the same step. Therefore these two settings train the same model (for $\varepsilon \to 0$, without weight decay and clipping):
#
# $$\bigl(\alpha,\; A,\; B,\; \eta_A,\; \eta_B\bigr) \;\sim\; \bigl(\tfrac{\alpha}{pq},\; pA,\; qB,\; p\,\eta_A,\; q\,\eta_B\bigr)$$
#
# Here $p$ and $q$ are any two positive numbers. **Predict.** The first model trains with $p = q = 1$, the second with $p = 8$ and $q = 1/4$. How large is the difference of their losses in the first four steps, in float32?

# %%
batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)


def losses(p, q):
    config = ln.LoraConfig(r=r, lora_alpha=s * r / (p * q), target_modules="all-linear")
    model = ln.get_peft_model(ln.load_model("tiny"), config)
    for name, parameter in model.named_parameters():
        parameter.value *= p if ".lora_A." in name else q if ".lora_B." in name else 1
    ratio = {"lora_A": p, "lora_B": q}
    optimizer = ln.AdamW(lr=4e-3, eps=1e-30, weight_decay=0, lr_ratio=ratio)
    return ln.train(model, batches, optimizer, steps=4, progress=False).column("loss")


one, other = losses(1, 1), losses(8, 1 / 4)
print("losses:", np.round(one, 4))
print("largest difference:", np.abs(np.subtract(one, other)).max())

# %% [markdown]
# **One number.** The difference is exactly zero, because powers of two change only exponents. So two of the four scales ($\alpha$, the size of $A$, $\eta_A$, $\eta_B$) are redundant. A comparison of two values of $\alpha$ at one learning rate therefore acts like a comparison of two learning rates.
#
# ## DoRA: length and direction apart
#
# **Idea.** Train the length of each row of $W$ separately from its direction.
#
# **Equation.** With $V = W + s\,BA$ of shape (out, in) and its row $V_o$:
#
# $$y_o = \frac{\ell_o}{\lVert V_o \rVert}\; x V_o^\top, \qquad \text{at the start } \ell_o = \lVert W_o \rVert$$
#
# (The paper and `lora_np/ops/dora.py` call the lengths $m$.)
#
# **Code.**

# %%
def dora(x, W, A, B, lengths):
    """x (N, in), W (out, in), A (r, in), B (out, r), lengths (out,) → y (N, out)."""
    V = W + s * B @ A  # (out, in)
    V *= (lengths / np.linalg.norm(V, axis=1))[:, None]  # each row gets its length
    return x @ V.T  # (N, in) (in, out) → (N, out)


def relative_error(a, b):
    return f"{abs(a - b).max() / abs(b).max():.0e}"


rng = np.random.default_rng(0)
layer = models["DoRA"].lora_layers()[0]
adapter = layer.adapters["default"]
adapter.lora_B.value[...] = rng.normal(size=adapter.lora_B.value.shape) / 10
trained_parts = (adapter.lora_A, adapter.lora_B, adapter.lora_magnitude_vector)
parts = [p.value for p in (layer.base_layer.weight, *trained_parts)]
x = rng.normal(size=(5, d)).astype(np.float32)
y, _ = layer.forward(x, ln.Context(adapter="default"))
print("error against the library:", relative_error(dora(x, *parts), y))

# %% [markdown]
# **One number.** $\lVert V_o \rVert$ depends on $A$ and $B$ too. The paper and PEFT treat this norm as a constant in the backward pass, which saves a product. But this *detached* gradient is not the true gradient of the loss. The library can compute both gradients: `dora_norm="detached"` and `"true"`. **Predict** the cosine between the detached and the true gradient, for $A$, for $B$ and for $\ell$.

# %%
def gradients(norm):
    options = {"use_dora": True, "dora_norm": norm, "init_lora_weights": False}
    model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(**everywhere, **options))
    _, cache = model.loss(*batches[0])
    model.backward(cache)
    found = {}
    for part, word in {"A": "lora_A", "B": "lora_B", "ℓ": "magnitude"}.items():
        grads = [p.grad.ravel() for name, p in model.named_parameters() if word in name]
        found[part] = np.concatenate(grads)
    return found


true, detached = gradients("true"), gradients("detached")
lines = []
for part, g in true.items():
    other = detached[part]
    size, length = np.linalg.norm(g), np.linalg.norm(other)
    cosine = g @ other / (size * length)
    lines.append({"gradient of": part, "cosine": cosine, "length": length / size})
show(lines, {"gradient of": "", "cosine": ".4f", "length": ".3f"})

# %% [markdown]
# (`length` is the norm of the detached gradient divided by the norm of the true gradient.) For $\ell$ the two gradients are equal. The detached gradients of $A$ and $B$ have slightly different directions from the true gradients. A step along a detached gradient also stretches the rows of $V$, which does not change $y$. The comparison below uses the detached gradient, like the paper and PEFT.
#
# ## PiSSA: start from the largest part of W
#
# **Idea.** LoRA's bypass starts at zero. PiSSA's bypass starts as the largest part of $W$ itself, and the rest of $W$ is frozen.
#
# **Equation.** $W = U \Sigma V^\top, \qquad s\,B_0 A_0 = U_r \Sigma_r V_r^\top, \qquad \text{frozen: } W - s\,B_0 A_0$
#
# **Code.** **Predict** the largest singular value of the frozen part.

# %%
name = "model.layers.2.mlp.up_proj"
W = dict(ln.load_model("tiny").named_parameters())[f"{name}.weight"].value
U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
A0 = np.sqrt(sigma[:r, None] / s) * Vt[:r]  # (r, in)
B0 = U[:, :r] * np.sqrt(sigma[:r] / s)  # (out, r)
rest = W - s * B0 @ A0

frozen = dict(models["PiSSA"].model.named_modules())[name].base_layer.weight.value
left = np.linalg.svd(frozen, compute_uv=False)
print("singular values of W:          ", sigma[: r + 3].round(2), "…")
print("singular values of the frozen: ", left[:3].round(2), "…")
print("error against the library:", relative_error(rest, frozen))

# %% [markdown]
# **One number.** The largest singular value of the frozen part is the ninth singular value of $W$. So exactly the first eight singular values ($r = 8$) are gone.
#
# ## LoRA-FA: A stays frozen
#
# **Idea.** Save activation memory: a frozen $A$ needs no gradient, so the input $x$ need not be kept for the backward pass.
#
# **Equation.** With $h = xA^\top$:
#
# $$dB = s\,dy^\top h \;\text{ needs } h\ (N \times r); \qquad dA = s\,B^\top dy^\top x \;\text{ needs } x\ (N \times \text{in})$$
#
# **Code.**

# %%
x = rng.normal(size=(1024, d)).astype(np.float32)  # N = 1024 tokens
lines = []
for method, keep_x in (("LoRA", True), ("LoRA-FA", False)):
    A = rng.normal(size=(r, d)).astype(np.float32)
    B = np.zeros((tiny.intermediate_size, r), np.float32)
    _, cache = ln.ops.lora_forward(x, A, B, s, keep_x)
    arrays = [part for part in cache if isinstance(part, np.ndarray)]
    kept = sum(part.size for part in arrays if part is not A and part is not B)
    lines.append({"method": method, "numbers kept for the backward pass": kept})
show(lines, {"method": "", "numbers kept for the backward pass": ","})

# %% [markdown]
# **One number.** The layer keeps $r$ instead of $r + \text{in}$ numbers per token. The saving in a whole model is smaller: three projections share one input, so LoRA keeps this input only once.
#
# ## VeRA: the same random factors everywhere
#
# **Idea.** Draw $A$ and $B$ once, share them in all layers, and train only two vectors per layer.
#
# **Equation.** $y = xW^\top + \lambda_b \circ \bigl((\lambda_d \circ (x A^\top))\, B^\top\bigr), \qquad \Delta W = \Lambda_b\, B\, \Lambda_d\, A, \qquad \Lambda = \mathrm{diag}(\lambda)$
#
# **Code.**

# %%
def vera(x, A, B, lambda_d, lambda_b):
    """x (N, in), A (r, in), B (out, r), λ_d (r,), λ_b (out,) → the bypass (N, out)."""
    return lambda_b * ((lambda_d * (x @ A.T)) @ B.T)  # (N, r), then (N, out)


A, B = (rng.normal(size=shape) for shape in ((256, d), (d, 256)))
vectors = rng.normal(size=256), rng.normal(size=d)
x = rng.normal(size=(5, d))
reference, _ = ln.ops.vera_forward(x, A, B, *vectors)
print("error against the library:", relative_error(vera(x, A, B, *vectors), reference))

# %% [markdown]
# **One number.** With $r = 256$ VeRA trains fewer numbers than any other method here that changes the weights (see the table above). But the products of VeRA are as wide as the products of LoRA with $r = 256$.
#
# ## Prefix tuning: more to attend to
#
# **Idea.** Change no weight. Each layer gets $v$ keys and values that belong to no token, and only these keys and values are trained.
#
# **Equation.**
#
# $$\mathrm{softmax}\!\left(\frac{q\,[P_K, K]^\top}{\sqrt{d_h}}\right) [P_V, V]$$
#
# **Code.** The prefix enters the attention in the same way as the key/value cache of earlier tokens.

# %%
def with_prefix(q, K, V, P_K, P_V):
    """q, K, V (t, d_h), P_K, P_V (v, d_h) → (t, d_h). Every token sees the whole prefix."""
    t, keys = len(K), np.concatenate([P_K, K])  # (v + t, d_h)
    S = q @ keys.T / np.sqrt(q.shape[-1])  # scores (t, v + t)
    S[:, len(P_K) :][np.triu_indices(t, 1)] = -np.inf  # no token sees a later one
    P = np.exp(S - S.max(axis=1, keepdims=True))
    P /= P.sum(axis=1, keepdims=True)
    return P @ np.concatenate([P_V, V])  # (t, v + t) (v + t, d_h) → (t, d_h)


q, K, V = rng.normal(size=(3, 6, tiny.head_dim))
P_K, P_V = rng.normal(size=(2, v, tiny.head_dim))
inputs = (np.concatenate(each)[None, None] for each in ([q], [P_K, K], [P_V, V]))
reference, _ = ln.ops.attention_forward(*inputs)
mine = with_prefix(q, K, V, P_K, P_V)
print("error against the library:", relative_error(mine, reference[0, 0]))

# %% [markdown]
# **One number.** **Predict.** All keys and values of a prefix are zero. Does the model equal the base?

# %%
tokens, targets = batches[0]
lines = [{"model": "base", "loss": ln.load_model("tiny").loss(tokens, targets)[0]}]
for start in ("zero", None):
    config = ln.PrefixTuningConfig(num_virtual_tokens=v, init_weights=start)
    model = ln.get_peft_model(ln.load_model("tiny"), config)
    loss, _ = model.loss(tokens, targets)
    lines.append({"model": f"prefix, {start or 'random'}", "loss": loss})
show(lines, {"model": "", "loss": ".3f"})

# %% [markdown]
# No. A score of zero has the weight $e^0 = 1$ in the softmax. So the $v$ zero keys take a share of the attention, and the zero values contribute nothing. (On this batch the loss happens to fall a little.) Training starts with a random prefix. The random prefix makes the model worse than the base, and training first has to repair this harm.
#
# *Prefix with MLP* is the way in which the paper trains a prefix. A small trained table passes through two linear layers with a tanh between them. The result is the prefix's keys and values for all layers. The two layers are discarded after training:
# `PrefixTuningConfig(prefix_projection=True)`.
#
# ## Adapters: more layers
#
# **Idea.** Insert a small network with a skip connection after a sublayer: after attention and after the MLP (Houlsby), or after the MLP only (Pfeiffer).
#
# **Equation.** With a bottleneck $d \to m \to d$:
#
# $$z = y + W_\uparrow\, \sigma(W_\downarrow\, y + b_\downarrow) + b_\uparrow$$
#
# **Code.**

# %%
layer = dict(models["Houlsby"].model.named_modules())["model.layers.0.mlp.down_proj"]
down, up = layer.adapters["default"].bottleneck_down, layer.adapters["default"].bottleneck_up
up.weight.value[...] = rng.normal(size=up.weight.value.shape) / 10


def bottleneck(y, down, up):
    """y (N, d) → z (N, d)."""
    a = y @ down.weight.value.T + down.bias.value  # (N, d) (d, m) → (N, m)
    gelu = 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    return y + gelu @ up.weight.value.T + up.bias.value  # (N, m) (m, d) → (N, d)


x = rng.normal(size=(5, tiny.intermediate_size)).astype(np.float32)
y, _ = layer.forward(x)  # without the adapter
z, _ = layer.forward(x, ln.Context(adapter="default"))
print("error against the library:", relative_error(bottleneck(y, down, up), z))
try:
    models["Houlsby"].merge_adapter()
except ValueError as error:
    print(textwrap.fill(f"ValueError: {error}", 90))

# %% [markdown]
# **One number.** The number of weights into which an adapter can be merged is 0. The function $\sigma$ is not linear, so no matrix has the same effect as the adapter.
#
# *End of the first sitting.*
#
# # Second sitting: the comparison
#
# ## What the methods cost
#
# **Predict.** With which methods is a training step *slower* than with full fine-tuning, on a model as small as "tiny"?

# %%
Markdown(lesson.costs_markdown(compared, costs))

# %% [markdown]
# - *share* is the number of trained numbers divided by the number of the base's parameters.
# - *state* is the memory of the trained numbers, of their gradients and of AdamW's two averages.
# - *step* is the time of a training step, divided by the time of a step of full fine-tuning.
# - *peak* is the largest memory of a training step without the base's weights. (QLoRA makes only the base's weights smaller.)
# - *prompt* and *token* are the times to read a prompt and to write one token, divided by the base's times. *merged* means the same two ratios with $\Delta W$ merged.
#
# All times are medians on one BLAS thread. The models take turns, in a new random order in each round. The seconds are CPU seconds, so other processes of the machine do not count.

# %% jupyter={"source_hidden": true}
# displays which methods make a step slower than full fine-tuning's
slow = {row["label"]: row["step_ratio"] for row in lesson.summary(compared, costs)}
slow = ", ".join(f"{label} ({ratio:.2f}×)" for label, ratio in slow.items() if ratio > 1.01)
Markdown(f"A step is slower than full fine-tuning's with: {slow}.")

# %% [markdown]
# - *LoRA* does not compute $dW$, but in so small a model the thin products with $A$ and $B$ take almost as long. In a larger model the thin products take a smaller share of the time. The cost of the thin products is proportional to $r\,(\text{in} + \text{out})$, and the cost of $dW$ is proportional to $\text{in} \cdot \text{out}$.
# - *VeRA*'s products are not thin: its $r$ is 256, twice the width of "tiny".
# - *DoRA* needs the norms of $V$'s rows in every pass. To compute these norms, DoRA needs $W A^\top$, a product with all of $W$, even for a single token. The share of this product in the time hardly shrinks as the model grows. The share of the products with $A$ and $B$ does shrink.
# - *QLoRA* decodes $W$ in every pass, also for a single token.
#
# Are small differences between these times real? A merged model is the base with other numbers, so it must take exactly as long as the base. Copies of the base and merged models are called *plain models* here. The scatter of the plain models' times shows the error of the measurement. (Several copies of the base were measured, and all times are divided by the median over the copies. With a single copy, an error in its time would move all ratios in one direction.)

# %% jupyter={"source_hidden": true}
# prints the scatter of plain models, and the ratios of the models that cannot be merged
real, real_costs = load("comparison_smollm2"), load("method_costs_smollm2")
lines = []
for model, table in (("tiny", costs), ("SmolLM2-135M", real_costs)):
    plain = dict(table.settings.get("base_ratios", {}))
    if plain:
        times = {part: f"{min(each):.2f} to {max(each):.2f}" for part, each in plain.items()}
        copies = f"{len(plain['token'])} copies of the base"
        lines.append({"model": model, "what": copies} | times)
    others = [row for row in table.rows if row["method"] != "full"]
    merged = [row for row in others if row["merged_token_ratio"]]
    times = {}
    for part in ("token", "prompt"):
        ratios = [row[f"merged_{part}_ratio"] for row in merged]
        times[part] = f"{min(ratios):.2f} to {max(ratios):.2f}"
    lines.append({"model": model, "what": f"{len(merged)} merged models"} | times)
    for row in table.rows:
        if row["merged_token_ratio"] is None:
            name = table.settings["labels"][row["method"]]
            times = {part: f"{row[f'{part}_ratio']:.2f}" for part in ("token", "prompt")}
            lines.append({"model": model, "what": name} | times)
show(lines, {"model": "", "what": "", "token": "", "prompt": ""})

# %% [markdown]
# A ratio outside the range of the plain models is a real cost. A ratio inside this range can be noise. Houlsby adapters make each token slower, on both models. With a prefix, each token attends to $v$ more keys in each layer. This cost is measurable when a prompt is read, on both models. For a single token the cost is close to the noise.
#
# ## What the methods learn
#
# Each method runs at its own best learning rate, which was chosen on another held-out text. The table shows the mean and the range over three seeds.

# %%
Markdown(lesson.results_markdown(compared))

# %% jupyter={"source_hidden": true}
# displays the range of the best learning rates
rows = {row["method"]: row for row in lesson.summary(compared)}
rates = {row["label"]: row["lr"] for method, row in rows.items() if method != "lora+"}
low, high = min(rates.values()), max(rates.values())
fast = ", ".join(label for label, rate in rates.items() if rate == high)
slow = " and ".join(label for label, rate in rates.items() if rate == low)
Markdown(f"The best rate of {fast} is {high / low:.0f} times the best rate of {slow}.")

# %% [markdown]
# With one learning rate for all methods, the comparison would only show which methods this rate suits. Look also at LoRA+: the best learning rate of $B$ in LoRA+ equals LoRA's best learning rate. So here LoRA+ is LoRA with a sixteen times smaller learning rate for $A$. The loss of LoRA+ is close to that of LoRA-FA, whose $A$ does not move at all. The LoRA+ paper promises an advantage for much wider models.
#
# ## Does LoRA do as well with as many numbers?
#
# A method that trains few numbers is fairly compared with a LoRA that trains equally few numbers. The line in the first picture, LoRA at other ranks, allows this comparison. Between two ranks the line is interpolated over the logarithm of the number of trained numbers. Runs with the same seed read the text in the same order, so each run is
# compared with the line of its own seed. A method is *above* the line if its gain is higher than the line with all three seeds. It is *below* the line if its gain is lower than the line with all three seeds.

# %% jupyter={"source_hidden": true}
# prints each method's gain less the gain of LoRA with as many numbers, seed by seed
counts = sorted({row["trainable"] for row in ranks.rows})
lines = []
for method, row in sorted(rows.items(), key=lambda item: item[1]["trainable"]):
    if method in ("full", "lora"):
        continue
    apart = []
    for run in compared.where(phase="seeds", method=method):
        line = [ranks.where(trainable=n, seed=run["seed"])[0]["recovered"] for n in counts]
        there = np.interp(np.log(run["trainable"]), np.log(counts), line)
        apart.append(run["recovered"] - there)
    verdict = "above" if min(apart) > 0 else "below" if max(apart) < 0 else "seeds differ"
    points = ", ".join(f"{100 * each:+.1f}" for each in apart)
    line = {"method": row["label"], "trained": row["trainable"], "gain": row["recovered"]}
    lines.append(line | {"points above LoRA's line, by seed": points, "verdict": verdict})
show(lines, dict(zip(lines[0], ("", ",", ".0%", "", ""), strict=True)))

# %%
above, mixed = (
    ", ".join(line["method"] for line in lines if line["verdict"] == verdict)
    for verdict in ("above", "seeds differ")
)
one, eight = (np.mean([row["recovered"] for row in ranks.where(r=k)]) for k in (1, 8))
Markdown(
    f"Above the line: {above or 'no method'}. The seeds differ for {mixed}. LoRA of rank 1, "
    f"with an eighth of the numbers of rank 8, has {percent(one / eight)} of its gain."
)

# %% [markdown]
# One or two percentage points below the line mean little. rsLoRA is that far below the line, although rsLoRA is only LoRA with another $\alpha$. Such a distance can come from $\alpha$, or from the tried learning rates, which differ by factors of two. Larger distances say something about the method. Here LoRA+, the adapters and above all the prefixes gain less than LoRA with as many numbers.
#
# (The title of the first picture names the methods that are as good as the *best* method. A method that is worse than the best method with every seed is not named, even if the difference is small.)
#
# ## What the papers promise
#
# Each method is compared with LoRA, seed by seed.

# %%
promised = claims.promises(compared, costs)
table = [[f"{c.claim} ({c.source})", c.verdict, c.below] for c in promised]
Markdown(lesson.markdown(["claim", "holds here", "measured"], table))

# %% [markdown]
# So some methods are ahead of LoRA, but only early in the training. Before you attribute a lead to the method, ask what else differs. Each method runs at its own best learning rate, and the best learning rates of DoRA and PiSSA are smaller than LoRA's. Is LoRA as good early in the training if LoRA uses DoRA's learning rate?

# %% jupyter={"source_hidden": true}
# prints the held-out loss at each evaluation: LoRA at two rates, DoRA, PiSSA; first seed
lines = []
rates = {method: rows[method]["lr"] for method in ("lora", "dora", "pissa")}
chosen = [("lora", rates["lora"]), ("lora", rates["dora"]), *list(rates.items())[1:]]
for method, lr in chosen:
    (row,) = compared.where(phase="sweep", method=method, lr=lr)
    line = {"method": rows[method]["label"], "rate": f"{lr:g}"}
    names = ["step 25", *map(str, row["steps"][2:])]
    lines.append(line | dict(zip(names, row["heldout"][1:], strict=True)))
show(lines, {name: "" if name in ("method", "rate") else ".3f" for name in lines[0]})

# %% [markdown]
# At DoRA's learning rate, LoRA has nearly the same losses as DoRA, early in the training and at the end. So the lead comes from the learning rate. At the end no method is ahead of LoRA.
#
# ## What the methods forget
#
# All methods start from a model that was trained on English prose. **Predict.** Two methods have learned the same amount of code. Have they forgotten the same amount of prose?

# %%
plots.methods_learned_and_forgotten(compared);

# %% [markdown]
# A method with a lower line forgets less *for the same learning*. A method whose line is only shorter forgets less because it learned less. Some lines do not start at the point of the base: a random prefix makes the model worse at both texts before the first step.
#
# [Biderman et al. 2024](https://arxiv.org/abs/2405.09673) found that LoRA forgets less than full fine-tuning, with billions of tokens and models thousands of times as large as "tiny". The next sentences compare LoRA and full fine-tuning here:

# %%
Markdown(findings.say("methods.forgetting.lora", "methods.forgetting.full"))

# %% jupyter={"source_hidden": true}
# prints what the first seed learned and forgot at every rate that was tried
base, prose = compared.settings["base_loss"], compared.settings["base_prose"]
lines = []
for method in ("full", "lora", "dora", "houlsby"):
    for row in compared.where(phase="sweep", method=method):
        found = {"learned": base - row["final"], "forgotten": row["prose"][-1] - prose}
        best = {"": "best" if row["lr"] == rows[method]["lr"] else ""}
        lines.append({"method": rows[method]["label"], "rate": row["lr"]} | found | best)
show(lines, {"method": "", "rate": "g", "learned": ".3f", "forgotten": ".3f", "": ""})

# %% [markdown]
# The learning rate matters more for forgetting than the method. The learning rate was chosen by the loss on code only. Near the best learning rate, the loss on code hardly changes, but the loss on prose does change:

# %%
rates = [f"methods.forgetting.{method}.smaller_rate" for method in ("lora", "full")]
Markdown(findings.say(*rates))

# %% [markdown]
# To keep what the model knew, take the smaller of two learning rates that learn equally well. The table also explains DoRA's low line in the picture: DoRA's best learning rate is half of LoRA's. At equal learning rates, DoRA and LoRA forget about equally much.
#
# ## The tutorials' numbers and ours
#
# Many LoRA tutorials print a table that compares four methods. The next cell shows the entries of this table beside our measurements.

# %%
Markdown(f"{lesson.RULE}\n\n{lesson.lesson_markdown(lesson.lesson_rows(compared, costs))}")

# %% [markdown]
# The tutorials' shares of trained numbers do not hold for a small model. The number of LoRA's parameters grows with $d$, the number of the base's parameters with $d^2$. The next cell counts the same methods for Llama-2-7B, a model of the size for which such tutorials are written. (The width $m$ of an adapter is a free choice, and the adapter's share depends on it.)

# %%
assert prefix_parameters(20, layers=32, kv_heads=32, head_dim=128) == 5_242_880  # Llama-2-7B
whole = ln.costs.architecture_of("llama-2-7b").parameters
adapted = ln.costs.count("llama-2-7b", ln.LoraConfig(r=8, target_modules="all-linear"))
numbers = {
    ("LoRA, r = 8, all linear layers", "lora"): adapted.trainable,
    ("prefix, 20 tokens", "prefix"): prefix_parameters(20, 32, 32, 128),
    ("Houlsby adapters, m = 128", "houlsby"): 2 * 32 * houlsby_parameters(4096, 128),
}
lines = []
for (name, method), n in numbers.items():
    entry = lesson.LESSON[method]["share"]
    line = {"Llama-2-7B": name, "trained": n, "share": n / whole, "tutorials": entry.words}
    lines.append(line | {"verdict": entry.verdict(n / whole)})
show(lines, {"Llama-2-7B": "", "trained": ",", "share": ".2%", "tutorials": "", "verdict": ""})

# %% [markdown]
# ## On a real model
#
# SmolLM2-135M learns a voice (notebook 10) by four methods besides full fine-tuning and LoRA. (The others were left out because each run takes 10 to 25 minutes.)
#
# **Predict.** Is the order of the methods the same as on "tiny"? On "tiny" prefix tuning forgot less than LoRA. Does prefix tuning forget less than LoRA on SmolLM2-135M too?

# %%
plots.quality_against_parameters(real);

# %%
Markdown(lesson.results_markdown(real))

# %%
Markdown(lesson.costs_markdown(real, real_costs))

# %%
Markdown(lesson.lesson_markdown(lesson.lesson_rows(real, real_costs)))

# %% jupyter={"source_hidden": true}
# prints the forgotten prose of each method less LoRA's of the same seed
lora = real.where(phase="seeds", method="lora")
lines = []
for method in ("dora", "houlsby", "qlora", "prefix"):
    runs = real.where(phase="seeds", method=method)
    apart = ", ".join(f"{x:+.3f}" for x in paired_differences(runs, lora, "forgotten"))
    name = real.settings["labels"][method]
    lines.append({"method": name, "forgotten less LoRA's, by seed": apart})
show(lines, {"method": "", "forgotten less LoRA's, by seed": ""})

# %% [markdown]
# As on "tiny", LoRA and DoRA are at the top and the prefix is last. Compared with "tiny", QLoRA and the adapters have exchanged their places in the order. In forty steps on a small text, LoRA and DoRA learn as much as full fine-tuning.
#
# QLoRA and LoRA have the same best learning rate, so the learning rate does not explain QLoRA's higher loss. The rounded base explains it:

# %%
Markdown(findings.say("qlora.smollm2.gap", "qlora.smollm2.rounding"))

# %% [markdown]
# QLoRA also forgets more than LoRA with every seed. Prefix tuning trains the fewest numbers, gains the least, differs most between the seeds, and forgets several times as much as the other methods. The prefix's twenty random keys and values are in front of *every* text and make the model worse at all texts before the first step. Probably forty steps teach the prefix to help the voice, but not to leave other texts unchanged. The tables do not show whether the harm to other texts was there from the start or arose in training.
#
# ## Recap
#
# A PEFT method changes the weights, adds keys and values to the attention, or adds layers. Only a change of the weights can be merged, and a merged change costs nothing. A formula of one line counts the numbers that a method trains. But this count does not tell how much memory and time the method needs or how well it learns. If a method trains few numbers, compare it with LoRA of a rank that trains equally few numbers. In this comparison on "tiny", no method was better than LoRA with every seed. Compare methods only at the best learning rate of each method, seed by seed. Measure also what each method forgets.
#
# ## Three questions
#
# 1. Why can DoRA and VeRA be merged, but not Houlsby's adapters?
#
# <details><summary>Answer</summary>
#
# DoRA and VeRA replace $W$ by another matrix of the same shape. An adapter contains $\sigma$, which is not linear, so no matrix has the same effect.
#
# </details>
#
# 2. Why does a prefix of zeros change the outputs of the model?
#
# <details><summary>Answer</summary>
#
# The prefix's keys get the score 0, so each key has the weight $e^0 = 1$ before the softmax is normalised. The prefix takes attention from the real tokens and contributes zeros.
#
# </details>
#
# 3. A paper reports that its method is ahead of LoRA after 50 steps. What do you ask?
#
# <details><summary>Answer</summary>
#
# Did each method have its own best learning rate? Does the lead remain at the end, and with every seed? Is LoRA as good after 50 steps if LoRA uses the other method's learning rate?
#
# </details>
#
# ## Try
#
# 1. Merge VeRA by hand. In one layer of `models["VeRA"]` compute $\Lambda_b B \Lambda_d A$, add it to $W$, and compare the outputs for a random $x$. Why must you compute this product anew for every layer, although all layers share $A$ and $B$?
#
# <details><summary>Hint</summary>
#
# `layer = dict(models["VeRA"].model.named_modules())["model.layers.0.self_attn.q_proj"]`; `layer.delta_weight("default")` gives the library's matrix. Set $\lambda_b$ to random numbers first, because it starts at zero.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The outputs agree to about 1e-7 of the largest number. Each layer has its own $\lambda_d$ and $\lambda_b$, and they scale the rows and columns of the shared factors differently.
#
# </details>
#
# 2. With which $r$ does VeRA train as many numbers as LoRA with $r = 1$? Use the two formulas of `expected`. Is it the same $r$ for Llama-2-7B?
#
# <details><summary>Hint</summary>
#
# Solve `x * len(shapes) + outs == sum(out + in_ for out, in_ in shapes)` for x.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With $r \approx 165$ on "tiny". The terms with out cancel, so $r$ must equal the mean input width of the layers. For Llama-2-7B this $r$ is about 5,083: the wider the model, the fewer numbers VeRA trains compared with LoRA.
#
# </details>
#
# 3. Make prefixes with 1, 5 and 80 virtual tokens, each with zeros and with random numbers, and print the loss before any training. How does the harm grow with $v$?
#
# <details><summary>Hint</summary>
#
# Put the cell of the prefix's loss into a loop over `num_virtual_tokens`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With up to 20 tokens the loss on this batch changes little, and it does not always rise (one batch is a noisy measure). With 80 tokens the loss is clearly higher: 2.36 with zeros and 2.52 with random numbers, against the base's 2.31.
#
# </details>
#
# 4. Remove $\sigma$ and the biases from `bottleneck`. Now $z = (I + W_\uparrow W_\downarrow)\, y$: merge this adapter into the layer before it, and check the outputs. What is the rank of the change of this layer's weight?
#
# <details><summary>Hint</summary>
#
# If $y = x W^\top$, the merged weight is $(I + W_\uparrow W_\downarrow) W$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The outputs agree up to rounding. The change $W_\uparrow W_\downarrow W$ has rank $m = 11$ at most: without $\sigma$ the adapter is a LoRA of rank $m$.
#
# </details>
