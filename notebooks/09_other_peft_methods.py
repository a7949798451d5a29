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
# LoRA is one parameter-efficient method. This notebook presents eleven other methods, each with its equation and a few lines of code. Then the notebook compares all methods with three questions. Which method learns the most per trained number? How much time and memory does each method cost? How much does each method forget?
#
# **You will learn** to
#
# - explain where each method changes a Transformer block, and derive how many numbers the method trains;
# - implement the forward pass of DoRA, VeRA, a prefix and a bottleneck adapter, and check the result against the library;
# - judge a claim about a method by a comparison at each method's own best learning rate.
#
# **Before you start**: LoRA (notebook 02), attention with keys and values (notebook 01), the singular value decomposition (notebook 04), and the setting of notebook 05.
#
# *Reading: two sittings of 50 minutes each, one for the methods and one for the comparison. Tasks: 30 minutes. Running: about 10 seconds.*
#
# Three letters have other meanings in this notebook than in the other notebooks. The letter $v$ is the number of virtual tokens of a prefix, and the letter $m$ is the width of an adapter. The letter $\ell$ stands for the lengths of the rows of a matrix.
#
# ## The result first
#
# The model "tiny", which was trained on English prose, learns Python code. Every method trains for 200 steps at its own best learning rate.
#
# **Predict.** Does the method with the most trained parameters come closest to full fine-tuning? LoRA of rank 1 trains only an eighth of the parameters that LoRA of rank 8 trains. Which share of the gain of rank 8 does LoRA reach with rank 1?

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
# The line in the picture shows LoRA at ranks 1 to 64. DoRA trains more parameters than LoRA of rank 8, but the gain of DoRA is not higher. LoRA of rank 1 trains an eighth of the numbers that LoRA of rank 8 trains, and LoRA of rank 1 reaches most of the gain of rank 8. The second part of this notebook explains this picture in detail.
#
# # First sitting: the methods
#
# ## A map of the methods
#
# A method can change the model in three ways: it changes the weights, it gives the attention additional keys and values (a prefix), or it adds layers (adapters). A change of the weights can be merged into $W$, and the merged model costs no more than the base. Prefixes and adapters cannot be merged.
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
# | prefix with MLP | like prefix tuning; a small network makes the prefix during training | the network | see the code | no |
# | Houlsby adapters | a small network after attention and after the MLP | $W_\downarrow$, $W_\uparrow$, biases | $2\,(2md + d + m)$ per block | no |
# | Pfeiffer adapters | a small network after the MLP only | $W_\downarrow$, $W_\uparrow$, biases | $2md + d + m$ per block | no |

# %%
plots.method_diagrams();

# %% [markdown]
# The figure does not draw four variants. Drawings of rsLoRA, LoRA+ and PiSSA would look like the drawing of LoRA, and in a drawing of LoRA-FA, $A$ would be grey.
#
# ## One call for all methods
#
# You choose a method by its configuration class. `get_peft_model` freezes the base and inserts the adapter that the configuration describes. This notebook and notebook 05 use the same scaling, $s = \alpha/r = 8$, so that the runs of both notebooks can be compared.
#
# **Predict.** Which method trains the most parameters? Which method trains the fewest parameters?

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
# The section about each method has four parts: the idea, the equation, the code, and one number that characterises the method.
#
# ## rsLoRA: another scaling
#
# **Idea.** The change of $W$ in a training step should not become smaller at a higher rank, so that ranks can be compared fairly.
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
# **Code.** `AdamW(lr_ratio={"lora_B": 16})`. The learning rates of $A$ and $B$ are not the only scales: $\alpha$ and the size of $A$ can be changed too. Adam divides each gradient by its usual size, so a gradient multiplied by a constant gives the same step as before. Therefore the following two settings train the same model (for $\varepsilon \to 0$, without weight decay and clipping):
#
# $$\bigl(\alpha,\; A,\; B,\; \eta_A,\; \eta_B\bigr) \;\sim\; \bigl(\tfrac{\alpha}{pq},\; pA,\; qB,\; p\,\eta_A,\; q\,\eta_B\bigr)$$
#
# Here $p$ and $q$ are any two positive numbers. **Predict.** The first model trains with $p = q = 1$, and the second model trains with $p = 8$ and $q = 1/4$. How large is the difference between the losses of the two models in the first four steps, in float32?

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
# **One number.** The difference between the losses is exactly zero, because multiplying a floating-point number by a power of two changes only its exponent. So two of the four scales ($\alpha$, the size of $A$, $\eta_A$, $\eta_B$) are redundant. Comparing two values of $\alpha$ at one learning rate is therefore like comparing two learning rates at one $\alpha$.
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
# **One number.** The norm $\lVert V_o \rVert$ depends on $A$ and $B$ too. The paper and PEFT treat this norm as a constant in the backward pass, which saves a matrix product. But the gradient with a constant norm, called *detached*, is not the true gradient of the loss. The library can compute both gradients: `dora_norm="detached"` and `"true"`. **Predict.** How large is the cosine between the detached gradient and the true gradient, for $A$, for $B$ and for $\ell$?

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
# (`length` is the norm of the detached gradient divided by the norm of the true gradient.) For $\ell$ the detached gradient equals the true gradient. The detached gradients of $A$ and $B$ have slightly different directions from the true gradients. A step along a detached gradient also stretches the rows of $V$, which does not change $y$. The comparison of the methods in the second sitting uses the detached gradient, like the paper and PEFT.
#
# ## PiSSA: start from the largest part of W
#
# **Idea.** LoRA's bypass starts at zero. PiSSA's bypass starts as the part of $W$ that belongs to its $r$ largest singular values, and the rest of $W$ is frozen.
#
# **Equation.** $W = U \Sigma V^\top, \qquad s\,B_0 A_0 = U_r \Sigma_r V_r^\top, \qquad \text{frozen: } W - s\,B_0 A_0$
#
# **Code.** **Predict.** How large is the largest singular value of the frozen part?

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
# **One number.** The largest singular value of the frozen part is the ninth singular value of $W$. So the frozen part no longer contains the eight largest singular values of $W$ ($r = 8$).
#
# ## LoRA-FA: A stays frozen
#
# **Idea.** A frozen $A$ needs no gradient, so the input $x$ need not be kept for the backward pass. LoRA-FA saves the memory of $x$.
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
# **One number.** A layer with LoRA-FA keeps $r$ numbers per token for the backward pass, and a layer with LoRA keeps $r + \text{in}$ numbers per token. The saving in a whole model is smaller than in one layer. The projections q, k and v share one input, so LoRA keeps this input only once.
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
# **One number.** With $r = 256$ VeRA trains fewer parameters than any other method here that changes the weights (see the table above). But VeRA's products with $A$ and $B$ need as many multiplications as LoRA's products with $r = 256$.
#
# ## Prefix tuning: more to attend to
#
# **Idea.** Do not change any weight. Each layer gets $v$ keys and values that belong to no token, and only these keys and values are trained.
#
# **Equation.**
#
# $$\mathrm{softmax}\!\left(\frac{q\,[P_K, K]^\top}{\sqrt{d_h}}\right) [P_V, V]$$
#
# **Code.** The keys and values of the prefix enter the attention in the same way as the cached keys and values of earlier tokens.

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
# **One number.** **Predict.** All keys and values of a prefix are zero. Does the model with this prefix give the same outputs as the base?

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
# No, the outputs differ. A score of zero has the weight $e^0 = 1$ in the softmax. So the $v$ zero keys take a share of the attention, and the zero values add nothing to the output. (On this batch the loss with the zero prefix happens to be a little lower than the loss of the base.) Training starts with a random prefix. The random prefix makes the model worse than the base, and training first has to repair this harm.
#
# *Prefix with MLP* is the way in which the paper trains a prefix. The rows of a small trained table pass through two linear layers with a tanh between them. The result is the keys and values of the prefix for all layers of the model. The two linear layers are discarded after training.
# `PrefixTuningConfig(prefix_projection=True)` selects this way.
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
# **One number.** Such an adapter can be merged into 0 of the model's weights. The function $\sigma$ is not linear, so no matrix has the same effect as the adapter.
#
# *End of the first sitting.*
#
# # Second sitting: the comparison
#
# ## What the methods cost
#
# **Predict.** With which methods is a training step of the small model "tiny" *slower* than a step of full fine-tuning?

# %%
Markdown(lesson.costs_markdown(compared, costs))

# %% [markdown]
# - *share* is the number of trained parameters divided by the number of the base's parameters.
# - *state* is the memory of the trained parameters, of their gradients and of AdamW's two averages.
# - *step* is the time of a training step, divided by the time of a step of full fine-tuning.
# - *peak* is the largest memory that a training step needs, without the memory of the base's weights. (QLoRA makes only the base's weights smaller.)
# - *prompt* is the time to read a prompt, and *token* is the time to write one token, each divided by the base's time. *merged* shows the ratios *prompt* and *token* after $\Delta W$ was merged into the weights.
#
# All times are medians on one BLAS thread. In each round, every model is measured once, in a new random order. The times are CPU times, so they do not include the time of other processes on the machine.

# %% jupyter={"source_hidden": true}
# displays the methods whose steps are slower than a step of full fine-tuning
slow = {row["label"]: row["step_ratio"] for row in lesson.summary(compared, costs)}
slow = ", ".join(f"{label} ({ratio:.2f}×)" for label, ratio in slow.items() if ratio > 1.01)
Markdown(f"These methods have a slower step than full fine-tuning: {slow}.")

# %% [markdown]
# - *LoRA* does not compute $dW$, but in such a small model the thin products with $A$ and $B$ take almost as long as $dW$. In a larger model, the thin products take a smaller share of the step's time than in "tiny". The cost of the thin products is proportional to $r\,(\text{in} + \text{out})$, and the cost of $dW$ is proportional to $\text{in} \cdot \text{out}$.
# - *VeRA*'s products with $A$ and $B$ are not thin, because the rank $r$ of VeRA is 256, twice the width of the model "tiny".
# - *DoRA* needs the norms of $V$'s rows in every pass. To compute these norms, DoRA needs $W A^\top$, a product with all of $W$, even for a single token. In a larger model, this product takes nearly the same share of the time as in a small model. But the products with $A$ and $B$ take a smaller share of the time in a larger model than in a small model.
# - *QLoRA* dequantises $W$ in every pass, even for a single token.
#
# Are small differences between the times of two methods real? A merged model is the base with other numbers in its weights, so it must take exactly as long as the base. Copies of the base and merged models are called *plain models* here. The scatter of the plain models' times shows the error of the measurement. (Several copies of the base were measured, and all times are divided by the median over the copies. With a single copy, an error in the time of this copy would make all ratios too high or all too low.)

# %% jupyter={"source_hidden": true}
# prints the scatter of the plain models' times, and the ratios of models that cannot be merged
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
# If the time ratio of a method is above the range of the plain models' ratios, the method really takes longer than the base. A ratio inside this range can be noise. Houlsby adapters make writing a token slower, both on "tiny" and on SmolLM2-135M. With a prefix, each token attends to $v$ more keys in each layer. The cost of these $v$ keys is measurable when a prompt is read, on both models. When a single token is written, the cost of these keys is close to the noise.
#
# ## What the methods learn
#
# Each method runs at its own best learning rate, which was chosen on another held-out text. The table shows the mean gain of each method and the range of the gain over three seeds.

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
# If all methods used one learning rate, the comparison would only show which methods this learning rate suits. In LoRA+, the best learning rate of $B$ equals LoRA's best learning rate. So here LoRA+ is LoRA with a sixteen times smaller learning rate for $A$. The loss of LoRA+ is close to the loss of LoRA-FA, whose $A$ does not change at all. The LoRA+ paper promises an advantage for models that are much wider than "tiny".
#
# ## Does LoRA gain as much if it trains equally few numbers?
#
# The comparison of a method with LoRA is fair if LoRA trains as many numbers as the method. The first picture of this notebook allows this comparison, because its line shows the gain of LoRA at the ranks 1 to 64. Between two ranks, the line is interpolated over the logarithm of the parameter count. Runs with the same seed read the text in the same order, so each run is
# compared with LoRA's line for the same seed. A method is *above* the line if its gain is higher than LoRA's line with all three seeds. A method is *below* the line if its gain is lower than LoRA's line with all three seeds.

# %% jupyter={"source_hidden": true}
# prints how far each method's gain is above LoRA's line (see the text above), seed by seed
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
# If a method is one or two percentage points below LoRA's line, this distance means little. For example, rsLoRA is one to two percentage points below the line, although rsLoRA is only LoRA with another $\alpha$. Such a distance can come from $\alpha$, or from the tried learning rates, which differ by factors of two. Only a larger distance shows a difference between the methods. LoRA+, the adapters and above all the prefixes have a lower gain than LoRA with the same parameter count.
#
# (The title of the first picture in this notebook names the methods that are as good as the *best* method. The title does not name a method that is worse than the best method with every seed, even if the difference is small.)
#
# ## What the papers promise
#
# The next table compares each promise of the papers with our measurements. A method and LoRA are compared seed by seed.

# %%
promised = claims.promises(compared, costs, real)
table = [[f"{c.claim} ({c.source})", c.verdict, c.below] for c in promised]
Markdown(lesson.markdown(["claim", "holds here", "measured"], table))

# %% [markdown]
# So some methods have a lower loss than LoRA, but only early in the training. Before you conclude that the method causes this lead, ask what else differs between the runs. Each method runs at its own best learning rate, and the best learning rates of DoRA and PiSSA are smaller than the best learning rate of LoRA. If LoRA uses DoRA's learning rate, is LoRA as good as DoRA early in the training?

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
# At DoRA's learning rate, LoRA has nearly the same losses as DoRA, early in the training and at the end. So DoRA's early lead comes from the learning rate. At the end of the training, no method is ahead of LoRA.
#
# ## What the methods forget
#
# All methods start from a model that was trained on English prose. **Predict.** If two methods have reached the same loss on code, do they also have the same loss on prose?

# %%
plots.methods_learned_and_forgotten(compared);

# %% [markdown]
# Each line in the picture belongs to one method. If the line of method X is lower than the line of method Y, X forgets less than Y *for the same learning*. If the line of X is only shorter than the line of Y, X forgets less because X learned less. Some lines do not start at the point of the base. For example, a random prefix makes the model worse at code and at prose before the first step.
#
# [Biderman et al. 2024](https://arxiv.org/abs/2405.09673) found that LoRA forgets less than full fine-tuning. The paper's models are thousands of times as large as "tiny" and read billions of tokens. The next sentences compare LoRA and full fine-tuning on the model "tiny":

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
# The learning rate has a larger effect on forgetting than the method. The learning rate was chosen by the loss on code only. Near the best learning rate, the loss on code hardly changes, but the loss on prose does change:

# %%
rates = [f"methods.forgetting.{method}.smaller_rate" for method in ("lora", "full")]
Markdown(findings.say(*rates))

# %% [markdown]
# If two learning rates lead to nearly the same loss on code, take the smaller one, because the model then forgets less. The table of learning rates also explains why DoRA's line is low in the picture: DoRA's best learning rate is half of LoRA's best learning rate. At the same learning rate, DoRA and LoRA forget nearly the same amount.
#
# ## The tutorials' numbers and ours
#
# Many LoRA tutorials print a table that compares four methods. The next cell shows the entries of this table beside our measurements.

# %%
Markdown(f"{lesson.RULE}\n\n{lesson.lesson_markdown(lesson.lesson_rows(compared, costs))}")

# %% [markdown]
# Tutorials state which share of a model's numbers each method trains. For a small model, the shares that the tutorials state are not correct. The number of LoRA's parameters grows with the model's width $d$, and the number of the base's parameters grows with $d^2$. The next cell counts LoRA, a prefix and Houlsby adapters for Llama-2-7B, because such tutorials are written for models of this size. (The width $m$ of an adapter is a free choice, and the adapter's share depends on $m$.)

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
# SmolLM2-135M learns to answer like a lighthouse keeper (notebook 10). The next picture shows the gain of each method at its own best learning rate.
#
# **Predict.** Do SmolLM2-135M and the model "tiny" give the same order of the methods? On "tiny", prefix tuning forgot less than LoRA. Does prefix tuning forget less than LoRA on SmolLM2-135M too?

# %%
plots.quality_against_parameters(real);

# %%
Markdown(lesson.results_markdown(real))

# %%
Markdown(lesson.costs_markdown(real, real_costs))

# %%
Markdown(lesson.lesson_markdown(lesson.lesson_rows(real, real_costs)))

# %% jupyter={"source_hidden": true}
# prints how much more each method forgets than LoRA with the same seed
lora = real.where(phase="seeds", method="lora")
lines = []
for method in real.settings["labels"]:
    if method in ("full", "lora"):
        continue
    runs = real.where(phase="seeds", method=method)
    apart = ", ".join(f"{x:+.3f}" for x in paired_differences(runs, lora, "forgotten"))
    name = real.settings["labels"][method]
    lines.append({"method": name, "forgotten minus LoRA's, by seed": apart})
show(lines, {"method": "", "forgotten minus LoRA's, by seed": ""})

# %% [markdown]
# As on the model "tiny", LoRA and DoRA are among the methods with the largest gain, and prefix tuning has the smallest gain. rsLoRA gains about as much as LoRA, but forgets more than LoRA with every seed. With every seed, PiSSA, LoRA+ and LoRA-FA gain less and forget more than LoRA. VeRA trains about a twelfth of LoRA's parameters. VeRA gains less than LoRA with every seed, but more than prefix tuning, which trains about as many parameters as VeRA. On "tiny", QLoRA gains more than Houlsby adapters; on SmolLM2-135M, Houlsby adapters gain more than QLoRA. With every seed, Pfeiffer adapters gain less and forget less than LoRA. In forty steps on a small text, LoRA and DoRA learn as much as full fine-tuning.
#
# QLoRA and LoRA have the same best learning rate, so the learning rate does not explain QLoRA's higher loss. The rounded base explains most of the difference:

# %%
Markdown(findings.say("qlora.smollm2.gap", "qlora.smollm2.rounding"))

# %% [markdown]
# With every seed, QLoRA also forgets more than LoRA. Of all these methods, prefix tuning has the smallest gain. The results of prefix tuning differ more between the seeds than the results of the other methods. With every seed, prefix tuning also forgets more than twice as much as any other method. The prefix's twenty random keys and values are in front of *every* text and make the model worse at all texts before the first step. In forty steps the prefix probably learns to help with the keeper's answers. But the training never asks the prefix to leave other texts unchanged. The tables do not show whether this harm to other texts existed before the first step or arose in training.
#
# ## Recap
#
# A PEFT method changes the weights, adds keys and values to the attention, or adds layers. Only a change of the weights can be merged, and the merged model costs no more than the base. A formula of one line counts the numbers that a method trains. But this count does not tell how much memory and time the method needs, or how well the method learns. If a method trains few numbers, compare it with LoRA at a rank that trains as few numbers. On "tiny", each other method was compared with LoRA of the same parameter count. None of these methods had the higher gain with every seed. Compare methods only at the best learning rate of each method, seed by seed. Also measure how much each method forgets.
#
# ## Three questions
#
# 1. Why can DoRA and VeRA be merged, but not Houlsby's adapters?
#
# <details><summary>Answer</summary>
#
# DoRA and VeRA replace $W$ by another matrix of the same shape. A Houlsby adapter contains $\sigma$, which is not linear, so no matrix has the same effect as the adapter.
#
# </details>
#
# 2. Why does a prefix of zeros change the outputs of the model?
#
# <details><summary>Answer</summary>
#
# The prefix's keys get the score 0, so each key has the weight $e^0 = 1$ before the softmax is normalised. The prefix takes a share of the attention from the real tokens, and its values add only zeros to the output.
#
# </details>
#
# 3. A paper reports that its method is ahead of LoRA after 50 steps. Which questions do you ask before you believe that the method is better than LoRA?
#
# <details><summary>Answer</summary>
#
# Did each method have its own best learning rate? Is the method still ahead of LoRA at the end of the training, and with every seed? Is LoRA as good after 50 steps if LoRA uses the other method's learning rate?
#
# </details>
#
# ## Try
#
# 1. Merge VeRA by hand. In one layer of `models["VeRA"]` compute the product $\Lambda_b B \Lambda_d A$ and add it to $W$. For a random $x$, compare the outputs of the layer before and after merging. Why must you compute this product separately for every layer, although all layers share $A$ and $B$?
#
# <details><summary>Hint</summary>
#
# `layer = dict(models["VeRA"].model.named_modules())["model.layers.0.self_attn.q_proj"]`; `layer.delta_weight("default")` gives the library's matrix. Set $\lambda_b$ to random numbers first, because it starts at zero.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The outputs before and after merging differ by about 1e-7 of the largest output. Each layer has its own $\lambda_d$ and $\lambda_b$, and these two vectors scale the rows and columns of the shared factors differently.
#
# </details>
#
# 2. With which $r$ does VeRA train as many numbers as LoRA with $r = 1$? Use the formulas for LoRA and VeRA in `expected`. Does VeRA need the same $r$ for Llama-2-7B?
#
# <details><summary>Hint</summary>
#
# Solve `x * len(shapes) + outs == sum(out + in_ for out, in_ in shapes)` for x.
#
# </details>
#
# <details><summary>Answer</summary>
#
# For the model "tiny", VeRA needs $r \approx 165$. The terms with *out* are equal on both sides and cancel, so VeRA's $r$ must equal the mean input width of the layers. For Llama-2-7B this $r$ is about 5,083. At fixed ranks, VeRA trains a smaller share of LoRA's parameter count in a wider model.
#
# </details>
#
# 3. Make prefixes with 1, 5 and 80 virtual tokens. Fill each prefix once with zeros and once with random numbers, and print the loss before any training. How does the loss depend on the number $v$ of virtual tokens?
#
# <details><summary>Hint</summary>
#
# Put the cell that prints the loss of the zero prefix and the random prefix into a loop over `num_virtual_tokens`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With up to 20 virtual tokens the loss on this batch changes little, and the loss is not always higher than the loss of the base (one batch is a noisy measure). With 80 virtual tokens the loss is clearly higher than the loss of the base, which is 2.31. The loss is 2.36 with zeros and 2.52 with random numbers.
#
# </details>
#
# 4. Remove $\sigma$ and the biases from `bottleneck`. Now $z = (I + W_\uparrow W_\downarrow)\, y$. Merge this adapter into the layer whose output is $y$, and check that the output $z$ stays the same. What is the rank of the change of this layer's weight?
#
# <details><summary>Hint</summary>
#
# If $y = x W^\top$, the merged weight is $(I + W_\uparrow W_\downarrow) W$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The outputs before and after merging agree up to rounding. The change $W_\uparrow W_\downarrow W$ has rank $m = 11$ at most, so without $\sigma$ the adapter is a LoRA of rank $m$.
#
# </details>
