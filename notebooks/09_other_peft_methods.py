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
# LoRA is one way to train little. This notebook has eleven others (one of them, QLoRA, is notebook 07's), each with its equation and the few lines that are it, and then
# what they are worth when each gets the learning rate that suits it, on the same text, with the same number of steps.
#
# First the result. "tiny", which has read English, learns Python code.
#
# **Predict.** Which comes nearest to full fine-tuning: the method that trains the most numbers? And what does an eighth of LoRA's numbers buy?

# %%
import numpy as np
from IPython.display import Markdown

import lora_np as ln
from lora_np import plots
from lora_np.costs import houlsby_parameters, prefix_parameters
from lora_np.peft import VeraConfig
from lora_np.studies.harness.paired import paired_differences
from lora_np.studies.harness.table import Table, show
from lora_np.studies.methods import lesson
from lora_np.studies.methods.claims import forgetting, promises_markdown
from lora_np.studies.methods.comparison import lora_by_rank

compared, costs, convergence = (Table.load(f"../figures/data/{name}.json") for name in ("comparison", "method_costs", "convergence"))
ranks = lora_by_rank(compared, convergence)  # notebook 05's runs: the same base, text, steps, batch and α/r
plots.quality_against_parameters(compared, ranks);

# %% [markdown]
# The cyan line is LoRA itself with more numbers or fewer. It is the fairer question to a method that trains few: does LoRA do as well with as many? Between two ranks the
# line is straight over the logarithm of the count. Runs of one seed read the text in the same order, so each is held against the line of its own seed; a method is *above* or
# *below* where all three say so.

# %%
rows = {row["method"]: row for row in lesson.summary(compared)}
counts = sorted({row["trainable"] for row in ranks.rows})


def lora_with_as_many(n, seed):
    shares = [next(row["recovered"] for row in ranks.where(trainable=count, seed=seed)) for count in counts]
    return np.interp(np.log(n), np.log(counts), shares)


verdicts, lines = {}, []
for method, row in sorted(rows.items(), key=lambda item: item[1]["trainable"]):
    if method not in ("full", "lora"):
        runs = compared.where(phase="seeds", method=method)
        apart = [run["recovered"] - lora_with_as_many(run["trainable"], run["seed"]) for run in runs]
        verdict = verdicts[method] = "above" if min(apart) > 0 else "below" if max(apart) < 0 else "not told apart"
        points = ", ".join(f"{100 * difference:+.1f}" for difference in apart)
        lines.append({
            "method": row["label"],
            "trained": row["trainable"],
            "gain": row["recovered"],
            "less LoRA with as many, points by seed": points,
            "verdict": verdict,
        })
print("gain: the share of full fine-tuning's")
show(lines, dict(zip(lines[0], ("", ",", ".0%", "", ""), strict=True)))
print(f"\nnot told apart from LoRA with as many: {', '.join(rows[m]['label'] for m, verdict in verdicts.items() if verdict == 'not told apart')}")
print(f"above: {', '.join(rows[m]['label'] for m, verdict in verdicts.items() if verdict == 'above') or 'none'}")
one, of_lora = (np.mean([row["recovered"] for row in ranks.where(r=r)]) for r in (1, 8))
print(f"LoRA of rank 1, an eighth of the numbers of rank 8, has {one / of_lora:.0%} of its gain")

# %% [markdown]
# To the question: no. DoRA trains the most after full fine-tuning and stands third, behind LoRA and QLoRA by less than a point. The count decides less than one would think: an eighth of LoRA's numbers
# buys most of LoRA's gain, and a prefix with MLP trains three times as many numbers as VeRA and gains a third less.
#
# Nothing lies above the line. But do not make much of a point or two below it: rsLoRA, which at one rank is LoRA with another $\alpha$, is such a distance away, so much the setting and a grid of rates a factor of two apart
# can do. What lies further off says something of the method: here LoRA+, the adapters and above all the prefixes are a worse way to spend their numbers than LoRA of a suitable rank. (Read the table and not the picture
# where points were moved aside.)
#
# (The picture's title names those that tie with the *best* one, seed against seed. A method with a higher mean can be missing among them: it lost to the best by a little, but with every seed.)

# %% [markdown]
# ## One call for all of them
#
# A method is a configuration. `get_peft_model` freezes the base and puts in what the configuration says.
#
# **Predict** the largest and the smallest count before you run this.

# %%
r, v, m = 8, 20, 11  # LoRA's rank, virtual tokens, an adapter's width
s = 8.0  # α/r: notebook 05's, so that its runs can stand beside these. With each rate swept it decides a point or two (see rsLoRA)

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
trained = {name: ln.costs.count(model).trainable for name, model in models.items()}

c = ln.load_model("tiny").config
d, L, kv = c.hidden_size, c.num_hidden_layers, c.num_key_value_heads * c.head_dim
shapes = [layer.base_layer.weight.value.shape for layer in models["LoRA"].lora_layers()]  # (out, in) of each
outs = sum(out for out, _ in shapes)
expected = {
    **dict.fromkeys(("LoRA", "rsLoRA", "PiSSA"), sum(r * (out + in_) for out, in_ in shapes)),
    "DoRA": sum(r * (out + in_) + out for out, in_ in shapes),  # and a length for each row
    "LoRA-FA": r * outs,  # B alone
    "VeRA": 256 * len(shapes) + outs,  # λ_d and λ_b
    "prefix": v * 2 * L * kv,  # a key and a value in each layer
    "Houlsby": 2 * L * (2 * m * d + d + m),
    "Pfeiffer": L * (2 * m * d + d + m),
}
for name, n in trained.items():
    print(f"{name:10}{n:>9,}  {n / ln.costs.count(ln.load_model('tiny')).total:6.2%} of tiny")
assert trained == expected
assert prefix_parameters(20, layers=32, kv_heads=32, head_dim=128) == 5_242_880  # Llama-2-7B
assert houlsby_parameters(d, m) == 2 * m * d + d + m

# %% [markdown]
# Where they act, in one block of the Transformer:

# %%
plots.method_diagrams();

# %% [markdown]
# Three ideas, then: a change of the weights, by few numbers (LoRA, QLoRA, DoRA, VeRA) or by as many as there are (full fine-tuning); something more to attend to (a prefix);
# and more layers (adapters). A change of the weights can be added into $W$, and then costs nothing. The other two cannot.
#
# Those without a drawing act where one of these does: rsLoRA, LoRA+ and PiSSA are drawn as LoRA is (they differ in $s$, in the rates, and in what $W$, $A$ and $B$ start as), LoRA-FA too, with a grey $A$; a prefix with MLP is a prefix
# once it has been trained.
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
# What else could one scale? Adam divides the gradient by its own size, so it takes the same steps for a gradient a hundred times as large. It follows, for ε → 0 and without
# weight decay or clipping of gradients, that all these are the same training:
#
# $$\bigl(\alpha,\; A,\; B,\; \eta_A,\; \eta_B\bigr) \;\sim\; \bigl(\tfrac{\alpha}{pq},\; pA,\; qB,\; p\,\eta_A,\; q\,\eta_B\bigr)$$
#
# **Predict.** $p = 8$, $q = 1/4$, four steps. How large is the difference of the losses, in float32?

# %%
batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)


def losses(p, q):
    config = ln.LoraConfig(r=r, lora_alpha=s * r / (p * q), target_modules="all-linear")
    model = ln.get_peft_model(ln.load_model("tiny"), config)
    for name, parameter in model.named_parameters():
        parameter.value *= p if ".lora_A." in name else q if ".lora_B." in name else 1
    optimizer = ln.AdamW(lr=4e-3, eps=1e-30, weight_decay=0, lr_ratio={"lora_A": p, "lora_B": q})
    return ln.train(model, batches, optimizer, steps=4, progress=False).column("loss")


print(losses(1, 1))
print(losses(8, 1 / 4))
assert losses(1, 1) == losses(8, 1 / 4)

# %% [markdown]
# None at all: a factor of two changes an exponent and no digit. α, the size of $A$ at the start and the two rates are four numbers ($B$ starts at zero and has no size). Two
# of them, $p$ and $q$, are free, so two degrees of freedom remain. A comparison of two α at one learning rate compares learning rates.
#
# ### DoRA: length and direction apart
#
# $$V = W + s\,BA, \qquad y_o = \frac{\ell_o}{\lVert V_o \rVert}\; x V_o^\top \qquad (V_o: \text{row } o)$$
#
# $\ell$ trains the length of each row, $A$ and $B$ its direction. At the start $\ell_o = \lVert W_o \rVert$. (The paper and `lora_np/ops/dora.py` call it $m$, which here is an adapter's width.)

# %%
def dora(x, W, A, B, lengths):
    """x (N, in), W (out, in), A (r, in), B (out, r), lengths (out,) → y (N, out)."""
    V = W + s * B @ A  # (out, in)
    return x @ (lengths[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)).T  # (N, in) (in, out)


rng = np.random.default_rng(0)
layer = models["DoRA"].lora_layers()[0]
layer.adapters["default"].lora_B.value[...] = rng.normal(size=layer.adapters["default"].lora_B.value.shape) / 10
W, A, B, lengths = (p.value for p in (layer.base_layer.weight, layer.adapters["default"].lora_A, layer.adapters["default"].lora_B, layer.adapters["default"].lora_magnitude_vector))
x = rng.normal(size=(5, d)).astype(np.float32)
y, _ = layer.forward(x, ln.Context(adapter="default"))
print(f"differs from the library by {abs(y - dora(x, W, A, B, lengths)).max() / abs(y).max():.0e}")

# %% [markdown]
# The lengths $\lVert V_o \rVert$ depend on $A$ and $B$ too. The paper and PEFT take them for constants in the backward pass, which spares a product. That is no longer the gradient of the
# loss: a row of $V$ may then be stretched, though stretching changes nothing in $y$. Both are here, `dora_norm="detached"` and `"true"`.
#
# **Predict.** The two gradients of the same loss: what is the cosine between them, for $A$, for $B$, for $\ell$?

# %%
def gradients(norm):
    config = ln.LoraConfig(**everywhere, use_dora=True, dora_norm=norm, init_lora_weights=False)
    model = ln.get_peft_model(ln.load_model("tiny"), config)
    _, cache = model.loss(*batches[0])
    model.backward(cache)
    parts = {"A": "lora_A", "B": "lora_B", "ℓ": "magnitude"}
    return {part: np.concatenate([p.grad.ravel() for name, p in model.named_parameters() if word in name]) for part, word in parts.items()}


true, detached = gradients("true"), gradients("detached")
for part, g in true.items():
    other = detached[part]
    print(f"{part}: cosine {g @ other / np.linalg.norm(g) / np.linalg.norm(other):.4f}, length {np.linalg.norm(other) / np.linalg.norm(g):.3f} of the true one")

# %% [markdown]
# Where the cosine is 1 the two agree; the others point a little aside and are a little longer, by the stretching. The comparison below trains with the detached one, as the paper and PEFT do.
#
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
# $$y = xW^\top + \lambda_b \circ \bigl((\lambda_d \circ (x A^\top))\, B^\top\bigr), \qquad \Delta W = \Lambda_b\, B\, \Lambda_d\, A, \qquad \Lambda = \mathrm{diag}(\lambda)$$
#
# $A$ and $B$ are drawn once and shared by all layers; each layer trains two vectors, $\lambda_d$ of $r$ numbers and $\lambda_b$ of as many as it has outputs.

# %%
def vera(x, A, B, lambda_d, lambda_b):
    """x (N, in), A (r, in), B (out, r), λ_d (r,), λ_b (out,) → δ (N, out)."""
    return lambda_b * ((lambda_d * (x @ A.T)) @ B.T)  # (N, r), then (N, out)


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
# Neither is. A score of zero is $e^0 = 1$, so $v$ zeros take their share of the attention and give nothing for it. (On this batch that happens to lower the loss a little.) And a random
# prefix, with which training begins, is worse than none: prefix tuning has something to win back first. So has QLoRA, to which rounding the base has done some harm, and a little the prefix with MLP; all others
# start as the base.
#
# *Prefix with MLP*, in the picture at the top, is the paper's own way to train: a small table goes through two linear layers with a tanh between them, which make the keys and values of all
# layers. They are thrown away after training, so it trains more numbers than it keeps. `PrefixTuningConfig(prefix_projection=True)`.
#
# ## Adapters: more layers
#
# $$z = y + W_\uparrow\, \sigma(W_\downarrow\, y + b_\downarrow) + b_\uparrow$$
#
# A bottleneck $d \to m \to d$ with a skip of its own, after what each half of the block has computed (Houlsby), or after the MLP alone (Pfeiffer).

# %%
layer = dict(models["Houlsby"].model.named_modules())["model.layers.0.mlp.down_proj"]
down, up = layer.adapters["default"].bottleneck_down, layer.adapters["default"].bottleneck_up
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
# ## What they cost
#
# - *share* is of the base's numbers; *state* the bytes of what trains, its gradients and Adam's two averages.
# - *step* is a training step's seconds, to full fine-tuning's; *peak* the memory of a step without the base's weights (which are all that QLoRA makes smaller).
# - *prompt* is reading the tokens of a question, *token* each that is written after it, to the base's; *merged* is the same with ΔW added into the weights.
#
# One BLAS thread; all sides in turns.
#
# **Predict.** Which methods make a step *slower* than full fine-tuning's, on a model as small as this one?

# %%
asked = costs.settings
print(f"a prompt of {asked['prompt']} tokens, {asked['new_tokens']} written; steps of {asked['batch_size']} × {asked['seq_len']} tokens; medians of {asked['rounds']} rounds")
Markdown(lesson.costs_markdown(compared, costs))

# %%
slower = {row["label"]: row["step_ratio"] for row in lesson.summary(compared, costs) if row["step_ratio"] > 1.01}
print("a step slower than full fine-tuning's:", ", ".join(f"{label} {ratio:.2f}×" for label, ratio in slower.items()))

real, real_costs = (Table.load(f"../figures/data/{name}.json") for name in ("comparison_smollm2", "method_costs_smollm2"))
lines = []
for row in real_costs.rows:
    if row["method"] != "full":
        (small,) = costs.where(method=row["method"])
        name = real_costs.settings["labels"][row["method"]]
        lines.append({"a token, not merged": name, "tiny, ×": small["token_ratio"], "SmolLM2-135M, ×": row["token_ratio"]})
print()
show(lines, {"a token, not merged": "", "tiny, ×": ".2f", "SmolLM2-135M, ×": ".2f"})

# %% [markdown]
# - *LoRA* spares $dW$, and on so small a model its two thin products take about as long. They shrink beside the others as the model grows: $r(d_{in} + d_{out})$ against $d_{in} d_{out}$.
# - *VeRA*'s products are not thin: its $r$ is 256, twice the width of "tiny".
# - *DoRA* needs the lengths of $V$'s rows in every pass, and for them $W A^\top$: one more product with all of $W$, however few tokens there are. Less LoRA's own part, that hardly shrinks with size.
# - *QLoRA* decodes $W$ from four bits in every pass. Nor does that vanish: it is paid for each pass, however short.
#
# And a prefix? Each token attends to $v$ more keys in each layer. Is it paid for? Merged models are the base with other numbers, so what *they* scatter is the measurement's own noise:

# %%
for name, table in (("tiny", costs), ("SmolLM2-135M", real_costs)):
    merged = [row["merged_token_ratio"] for row in table.rows if row["method"] != "full" and row["merged_token_ratio"]]
    prompts = [row["merged_prompt_ratio"] for row in table.rows if row["method"] != "full" and row["merged_prompt_ratio"]]
    print(f"{name}: merged models {min(merged):.2f} to {max(merged):.2f}× the base's token, {min(prompts):.2f} to {max(prompts):.2f}× its prompt")
    for kind in ("prefix", "houlsby", "pfeiffer"):
        for row in table.rows:
            if row["method"].startswith(kind):
                print(f"    {table.settings['labels'][row['method']]:18}{row['token_ratio']:5.2f}×, the prompt {row['prompt_ratio']:.2f}×")

# %% [markdown]
# What is outside that scatter is a cost, what is inside it cannot be told. Houlsby adapters make each token slower, on both models. A prefix shows where a prompt is read on SmolLM2; its token is at the edge of the noise
# there, and within it on "tiny".
#
# ## What they are worth
#
# Each method at the best of its own learning rates, chosen on other text than it is judged by; means over three seeds, and their range.

# %%
Markdown(lesson.results_markdown(compared))

# %% [markdown]
# Look at the best rates:

# %%
rates = {method: row["lr"] for method, row in rows.items() if method != "lora+"}  # LoRA+ has two
slow, fast = ([rows[method]["label"] for method in rates if rates[method] == rate] for rate in (min(rates.values()), max(rates.values())))
print(f"{', '.join(fast)}: best at {max(rates.values()) / min(rates.values()):.0f} times the rate that is best for {' and '.join(slow)}")
for method in ("lora", "lora+", "lora-fa"):
    print(f"{rows[method]['label']:8} best rate {lesson.best_rate(rows[method]):20}{rows[method]['recovered']:.0%} of full's gain")

# %% [markdown]
# A comparison of all at one rate would have been a comparison of nothing. And LoRA+: the rate of $B$ that is best for it is LoRA's own. So here it is LoRA with an $A$ that moves sixteen times
# slower, and it ends near LoRA-FA, whose $A$ does not move at all. Its promise is about models far wider than this one.
#
# What the papers promise of LoRA's relatives, and what came out here. Runs of one seed read the text in the same order, so each is compared with LoRA's of its own seed. (rsLoRA promises something
# for high ranks; at one rank it is LoRA with another α.)

# %%
Markdown(promises_markdown(compared))

# %% [markdown]
# So there are leads, and they are early ones. Before they are the methods' merit, ask what else differs: each runs at its own best rate, and DoRA's and PiSSA's are smaller than LoRA's.

# %%
print("held-out loss on the way, the first seed")
for method, lr in (("lora", rows["lora"]["lr"]), ("lora", rows["dora"]["lr"]), ("dora", rows["dora"]["lr"]), ("pissa", rows["pissa"]["lr"])):
    (row,) = compared.where(phase="sweep", method=method, lr=lr)
    print(f"{rows[method]['label']:6} at {lr:<6g}" + "".join(f"{loss:8.3f}" for loss in row["heldout"]) + ("   ← its best" if lr == rows[method]["lr"] else ""))

# %% [markdown]
# LoRA at DoRA's rate has DoRA's lead, step by step, and the same end within a few thousandths. So the lead belongs to the rate, which was chosen by the end alone. At the end none is ahead: PiSSA is not told apart from LoRA, DoRA is behind by
# at most 0.002 nats, and LoRA+, LoRA-FA and, with far fewer numbers, VeRA clearly.
#
# ## What is forgotten
#
# All of them started from a model that reads English. **Predict.** Two methods that have learned the same amount of code: have they forgotten the same amount of prose?

# %%
plots.methods_learned_and_forgotten(compared);

# %%
print("LoRA forgets less?", forgetting(compared))

base, prose = compared.settings["base_loss"], compared.settings["base_prose"]
print("\nthe first seed, at every rate that was tried (*: the best):")
for method in ("full", "lora", "dora", "houlsby"):
    for row in compared.where(phase="sweep", method=method):
        mark = "*" if row["lr"] == rows[method]["lr"] else " "
        print(f"{compared.settings['labels'][method]:18}{row['lr']:8.2g}{mark}  learned {base - row['final']:.3f}   forgotten {row['prose'][-1] - prose:.3f}")

# %% [markdown]
# Read along the lines: a line that lies lower forgets less *for the same learning*; one that is only shorter forgets less because it learned less. But each line is that of a method *and* of its best rate: DoRA's lies below LoRA's
# because it is drawn at half the rate. At equal rates the two forget alike (the list).
# [Biderman et al. 2024](https://arxiv.org/abs/2405.09673) found LoRA's line below that of full fine-tuning, on billions of tokens and models thousands of times as large. Whether it
# is so here the first line says. The list below it says what decides more than the method: the learning rate. It was chosen by the code alone, and near the best one the loss on code hardly
# changes, while the loss on prose does. At half its best rate (with one seed) LoRA gives up 1 % of what it learned, full fine-tuning 5 %, and each forgets much less. Who wants to keep what the model knew should
# take the smaller of two rates that learn alike.
#
# Some lines do not start at the base: prefix tuning's starts far off, because the random prefix has made the model worse at both texts before the first step; so, a little, do those of the prefix with MLP and of QLoRA.
# Also see where the lines of full fine-tuning and LoRA turn: most is forgotten early, while the rate is highest, and some of it comes back as the rate falls.
#
# ## The tutorials' numbers, and ours
#
# What a comparison table as many LoRA tutorials print it says of four methods, beside what was measured here.

# %%
Markdown(f"{lesson.RULE}\n\n{lesson.lesson_markdown(lesson.beside_ours(compared, costs))}")

# %% [markdown]
# The shares do not carry over to a small model: LoRA's numbers grow with $d$, the base's with $d^2$. Here are the same methods on paper, on a model of the size that
# such tables speak of, by the same rule,

# %%
llama = ln.costs.architecture_of("llama-2-7b")
for name, method, n in (
    ("LoRA r = 8, all linear", "lora", ln.costs.count("llama-2-7b", ln.LoraConfig(r=8, target_modules="all-linear")).trainable),
    ("prefix, 20 tokens", "prefix", prefix_parameters(20, 32, 32, 128)),
    ("Houlsby adapters, m = 128", "houlsby", 2 * 32 * houlsby_parameters(4096, 128)),
):
    share, said = n / llama.parameters, lesson.LESSON[method]["share"]
    print(f"{name:28}{n:>14,}  {share:.2%} of Llama-2-7B; the tables say {said.words}: {said.verdict(share)}")

# %% [markdown]
# (An adapter's $m$ is free, and with it its share.)
#
# ## On a real model
#
# The lesson's four methods and DoRA on SmolLM2-135M, which learns a voice (notebook 10). (The other seven were left out for their time, 10 to 25 minutes of two cores each.) Here LoRA trains 1.8 % of the numbers.
#
# **Predict.** Is the order the same as on "tiny"? And does prefix tuning, which there forgot less than LoRA, do so here?

# %%
plots.quality_against_parameters(real);

# %%
Markdown(lesson.results_markdown(real))

# %%
Markdown(lesson.costs_markdown(real, real_costs))

# %%
Markdown(lesson.lesson_markdown(lesson.beside_ours(real, real_costs)))

# %%
for method in ("dora", "houlsby", "qlora", "prefix"):
    apart = paired_differences(real.where(phase="seeds", method=method), real.where(phase="seeds", method="lora"), "forgotten")
    print(f"{real.settings['labels'][method]:18}prose forgotten, less LoRA's of the same seed: " + ", ".join(f"{x:+.3f}" for x in apart))

# %% [markdown]
# LoRA and DoRA stay on top and the prefix last; QLoRA and the adapters change places. In forty steps on a small text LoRA and DoRA do all that full fine-tuning does.
#
# QLoRA's best rate is LoRA's, so that the rate is not what it lacks. Rounding the base costs it 0.20 nats before training; training wins two thirds of that back, and 0.06 remain (notebook 07 follows where). It also forgets more
# than LoRA, with every seed.
#
# Prefix tuning, with 0.17 % of the numbers, falls behind most, differs most from seed to seed, and forgets several times as much as the others. Its twenty random keys and values stand in front of *every* text and make the model
# worse at all of them before the first step. Probably forty steps teach them what helps the voice, and not to stay out of the way elsewhere; the tables cannot tell that from harm that was there at the start.
#
# ## To take with you
#
# - One call, one configuration class a method. What trains is counted by a formula that fits in a line.
# - A change of the weights can be merged, and then costs nothing. An adapter cannot, and each token pays for Houlsby's two a block. Nor can a prefix; what its token costs was hardly more here than the noise.
# - That a method trains few numbers is worth something only if LoRA of a smaller rank does worse with as many. On "tiny" none passed that test.
# - Compare at each method's own learning rate, or not at all.
# - How little is trained says how much is kept in a file. It does not say how much memory or time a step takes, nor how well it learns.
#
# ## Try
#
# 1. Merge VeRA by hand: in one layer of `models["VeRA"]` compute $\Lambda_b B \Lambda_d A$, add it to `W`, and compare the outputs for a random `x`. Why must the change of every layer be computed anew, though all share $A$ and $B$?
# 2. At which $r$ does VeRA train as many numbers as LoRA with $r = 1$? Use the two formulas of `expected`. Does the same $r$ do on Llama-2-7B?
# 3. Give a prefix 1, 5 and 80 virtual tokens, random and zero, and print the loss before any training. How does the harm grow with $v$?
# 4. Take the $\sigma$ (and the biases) out of `adapter`. It is now $z = (I + W_\uparrow W_\downarrow)\, y$: merge it into the layer before it, and check. What is the rank of the change?
# 5. Turn LoRA+ round: `lr_ratio={"lora_B": 1 / 16}`, and train 50 steps at two or three rates of $A$. Which of the two factors needs the larger rate?
