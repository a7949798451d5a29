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
# # Merging and multi-LoRA serving
#
# An adapter is small, so one base model can have many adapters. This notebook shows what many adapters on one base cost, and when an adapter can be merged into the weights or combined with another adapter.
#
# **You will learn** to
#
# - explain how rows with different adapters share one batch, and compute the cost in bytes;
# - compute how a merge changes the outputs and the speed, and how repeated merges change the weights;
# - recognise three checks of a merge that say nothing about the quality of the merged model.
#
# **Before you start**: the LoRA layer and its merge (notebook 02).
#
# *Reading: 55 minutes. Tasks: 30 minutes. Running: about 15 seconds.*
#
# ## The result first
#
# In the picture, one base with up to a thousand adapters computes batches of 32 rows. Five workloads differ in how they choose the adapter of each row. The alternative (grey) is one merged model per adapter.
#
# **Predict.** How many merged models fit into the memory that one base with a thousand adapters needs?

# %%
import statistics
import time

import numpy as np
from IPython.display import Markdown

import lora_np as ln
from lora_np import plots
from lora_np.peft.lora.layer import LoraAdapter
from lora_np.peft.mixed import AdapterRows
from lora_np.report.results import Findings
from lora_np.studies.harness.table import Table, show
from lora_np.studies.serving import merging

findings = Findings("../figures")
served = Table.load("../figures/data/serving.json")
plots.serving_chart(served);

# %% jupyter={"source_hidden": true}
# displays how many merged models need as much memory as all adapters on one base
most = served.rows[-1]
base_bytes = most["merged_bytes"] / most["adapters"]
Markdown(
    f"The base has {base_bytes / 1e6:.2f} MB, "
    f"an adapter {most['adapter_bytes'] / 1e6:.2f} MB. "
    f"The base with {most['adapters']:,} adapters needs as much memory as "
    f"{most['bytes'] / base_bytes:.0f} merged models."
)

# %% [markdown]
# The speed depends on the workload. If all rows use one adapter ("identical"), a merged model is the fastest. If each row uses a different adapter ("distinct"), merged models are slow. Each row goes through its own model, so the work of the base is done 32 times.
#
# On "tiny" an adapter has a tenth of the base's size, because the matrices are narrow. In a wider model the share is smaller. For a 7B model, an adapter with the same settings has a few thousandths of the base's size. ([Sheng et al. 2023](https://arxiv.org/abs/2311.03285) serve thousands of adapters at once.)
#
# ## Two adapters
#
# The rest of this notebook uses two trained adapters. The first adapter learns Python code. The second adapter learns a voice: an old lighthouse keeper who answers questions. The base knows English prose.
#
# The losses are held-out losses on 64 windows of 64 bytes per domain. These windows are shorter than the windows of notebooks 05 and 07, so the model has less context. Therefore the base's loss on code is higher here than in those notebooks. Compare only losses of the same table.

# %%
config = ln.LoraConfig(r=8, lora_alpha=64, target_modules="all-linear")  # as in notebook 05
model = ln.get_peft_model(ln.load_model("tiny"), config, "code")
model.add_adapter("voice", config, seed=1)
steps = 60
for name in ("code", "voice"):
    model.set_adapter(name)  # now this adapter trains, and the other one is frozen
    batches = ln.data.Batches(merging.corpus(name, "train"), batch_size=8, seq_len=64)
    schedule = ln.WarmupCosine(steps, warmup=6)
    ln.train(model, batches, ln.AdamW(lr=4e-3), steps, schedule=schedule, max_grad_norm=1.0)

heldout = {
    name: ln.data.heldout_batches(merging.corpus(name, "heldout"), 32, 64, windows=64)
    for name in ("code", "voice")
}


def loss(domain, adapter=None):
    """Return the held-out loss on a domain, in nats per byte; None means the base."""
    if adapter is None:
        with model.disable_adapter():
            return ln.evaluate(model, heldout[domain])
    model.set_adapter(adapter, inference_mode=True)
    return ln.evaluate(model, heldout[domain])


def show_losses(*adapters):
    lines = []
    for name in adapters:
        losses = {domain: loss(domain, name) for domain in ("code", "voice")}
        lines.append({"nats per byte": name or "base"} | losses)
    show(lines, {"nats per byte": "", "code": ".3f", "voice": ".3f"})


show_losses(None, "code", "voice")

# %% [markdown]
# Each adapter is good at its own domain. But with the voice adapter, the model is worse at code than the base: the voice adapter makes it forget code. This forgetting matters in experiment 2.
#
# ## A merged model is as fast as the base
#
# $$x W^\top + s\,(x A^\top) B^\top \;=\; x\,(W + s\,BA)^\top$$
#
# **Predict.** The left side is the model before the merge, the right side the merged model. How large is the largest difference of a logit between the two in float32, relative to the largest logit: zero, about 1e-7, or about 1e-3?

# %%
tokens = heldout["voice"][0][0][:4]
model.set_adapter("voice", inference_mode=True)
unmerged, _ = model.forward(tokens)
layer = model.lora_layers()[0]
adapter = layer.adapters["voice"]
W, A, B = layer.base_layer.weight.value, adapter.lora_A.value, adapter.lora_B.value
by_hand = W + config.scaling * B @ A  # (out, in) + (out, r) (r, in)

model.merge_adapter()
merged, _ = model.forward(tokens)
same = np.allclose(by_hand, layer.base_layer.weight.value, atol=1e-6)
print("the merged weight equals W + s·BA:", same)
difference = abs(merged - unmerged).max() / abs(unmerged).max()
print(f"largest relative difference of a logit: {difference:.0e}")
model.unmerge_adapter()

# %% [markdown]
# The difference is not zero, because the two sides of the equation add in a different order, and each addition rounds. The merged model computes no bypass. The next table shows how long one token takes before and after a merge, on one thread:

# %%
lines = [
    row | {"ms": 1000 * row["token_seconds"], "× base": row["token_ratio"]}
    for row in Table.load("../figures/data/merge_latency.json").rows
]
show(lines, {"model": "", "state": "", "ms": ".1f", "× base": ".2f"})

# %% [markdown]
# A merged model has one disadvantage: it answers every request with this one adapter.
#
# ## What many merges leave in the weights
#
# The adapter can be removed again, $W \leftarrow (W + s\,BA) - s\,BA$, and another adapter can be merged. Both the addition and the subtraction round.
#
# **Predict.** In the first case, one adapter is merged and removed a hundred times. In the second case, eight adapters are merged and removed one after another. In which case does the error of $W$ grow? By what factor do the errors in float16 and in float32 differ?

# %%
plots.merge_drift(merging.drift(cycles=(1, 2, 3, 5, 10, 20, 30, 50, 100)));

# %% [markdown]
# With one adapter, only the first merge and removal changes $W$. After every later merge and removal, $W$ has the same numbers as before. This follows from a theorem about rounding to even (Knuth, *The Art of Computer Programming*, 4.2.2). With several adapters, each adapter causes different rounding errors, and the errors add up like steps in random directions. The format float32 has 13 bits of precision more than float16, so the errors of the two formats differ by a factor of $2^{13}$. In float32 the error stays harmless for a long time. If the weights have 16 bits, keep a copy of the base, and do not merge and remove adapters repeatedly.
#
# ## Many adapters on one base
#
# Switching to another adapter needs no arithmetic: all adapters share the base's weights, and each call names the adapter that it uses.

# %%
sizes = {
    "base": sum(p.value.nbytes for name, p in model.named_parameters() if "lora_" not in name)
}
for a in ("code", "voice"):
    sizes[a] = sum(p.value.nbytes for name, p in model.named_parameters() if f".{a}." in name)
print("bytes:", ", ".join(f"{name} {n:,}" for name, n in sizes.items()))

weight = layer.base_layer.weight.value
started = time.perf_counter()
for _ in range(100):
    model.set_adapter("code", inference_mode=True)
    model.set_adapter("voice", inference_mode=True)
switch = (time.perf_counter() - started) / 200
started = time.perf_counter()
model.merge_adapter()
model.unmerge_adapter()
merge = time.perf_counter() - started
print(f"to switch: {1e6 * switch:.0f} µs; to merge and unmerge: {1e6 * merge:.0f} µs")
print("the base's weight is still the same array:", layer.base_layer.weight.value is weight)

# %% [markdown]
# ## Mixed batches
#
# Now every row $i$ of a batch has its own adapter $\mathrm{idx}[i]$, or none ($\mathrm{idx}[i] = -1$). The formula is below, and the next cell computes it with a loop over the rows:
#
# $$y_i \;=\; x_i W^\top + s\,\bigl(x_i A_{\mathrm{idx}[i]}^\top\bigr)\, B_{\mathrm{idx}[i]}^\top$$

# %%
def loop(x, W, A, B, s, idx):
    """x (b, in), W (out, in), A (n, r, in), B (n, out, r), idx (b,) → y (b, out)."""
    y = np.empty((len(x), len(W)), x.dtype)
    for i, k in enumerate(idx):
        y[i] = x[i] @ W.T  # (in,) (in, out) → (out,)
        if k >= 0:
            y[i] += s * (x[i] @ A[k].T) @ B[k].T  # (in,) (in, r) (r, out) → (out,)
    return y


# %% [markdown]
# The loop loads $W$ from memory once per row, and does very little arithmetic with $W$ for this row. But $W$ is the same for all rows, so one product can serve the whole batch. The rows that use the same adapter are called a *segment*. All rows of a segment can share one product with $A$ and one with $B$:

# %%
def grouped(x, W, A, B, s, idx):
    y = x @ W.T  # (b, in) (in, out) → (b, out), once for all rows
    for k in np.unique(idx[idx >= 0]):
        rows = np.flatnonzero(idx == k)  # the segment of adapter k, n rows
        y[rows] += s * (x[rows] @ A[k].T) @ B[k].T  # (n, in) (in, r) (r, out) → (n, out)
    return y


# %% [markdown]
# If each row has a different adapter, every segment has one row, and Python's calls take longer than the arithmetic. Then the factors of all adapters are stacked, and one batched product computes all rows. ([Chen et al. 2023](https://arxiv.org/abs/2310.18547) call this product SGMV and wrote it as one GPU kernel.)

# %%
def batched(x, W, A, B, s, idx):
    y = x @ W.T
    rows = np.flatnonzero(idx >= 0)
    h = s * x[rows, None] @ A[idx[rows]].swapaxes(1, 2)  # (n, 1, in) (n, in, r) → (n, 1, r)
    y[rows] += (h @ B[idx[rows]].swapaxes(1, 2))[:, 0]  # (n, 1, r) (n, r, out) → (n, 1, out)
    return y


# %% [markdown]
# **Predict.** 32 rows have 32 different adapters, in a layer as wide as SmolLM2's. Which of the three functions is the fastest?

# %%
rng = np.random.default_rng(0)
b, d, f, r = 32, 576, 1536, 8  # rows, hidden size, MLP size, rank
library = ln.AdaptedLinear(ln.Linear(rng.standard_normal((f, d), dtype="float32")))
for k in range(b):
    factors = rng.standard_normal((r, d)), rng.standard_normal((f, r))
    settings = ln.LoraConfig(r=r, lora_alpha=16)
    library.adapters[str(k)] = LoraAdapter.build(settings, library.base_layer, factors)
x = rng.standard_normal((b, d), dtype="float32")
W, s = library.base_layer.weight.value, 16 / r
stacked = [library.adapters[str(k)] for k in range(b)]
A = np.stack([each.lora_A.value for each in stacked])  # (n, r, in)
B = np.stack([each.lora_B.value for each in stacked])  # (n, out, r)

lines = []
cases = {"32 adapters": np.arange(b), "3 adapters and the base": rng.integers(-1, 3, b)}
for title, idx in cases.items():
    names = AdapterRows(["__base__" if k < 0 else str(k) for k in idx])
    y, _ = library.forward(x[:, None], ln.Context(adapter=names))  # (b, 1, in) → (b, 1, out)
    for function in (loop, grouped, batched):
        seconds = []
        for _ in range(15):
            started = time.perf_counter()
            mine = function(x, W, A, B, s, idx)
            seconds.append(time.perf_counter() - started)
        error, ms = abs(mine - y[:, 0]).max() / abs(y).max(), 1000 * statistics.median(seconds)
        line = {"32 rows on": title, "function": function.__name__, "ms": ms, "error": error}
        lines.append(line)
show(lines, {"32 rows on": "", "function": "", "ms": ".2f", "error": ".0e"})

# %% [markdown]
# `error` is the relative difference from the library's result. Segments are good for a few adapters with many rows each. The batched product is good for many adapters with one row each. The library chooses between the two functions by the size of the segments (`lora_np/peft/mixed.py`) and keeps the stacked factors from one step to the next.
#
# In a whole model, an argument of the call names the adapter of each row:

# %%
prompts = {
    "code": "import sys\n\n\ndef ",
    "voice": "<|im_start|>user\nWhy is the sea salt?<|im_end|>\n<|im_start|>assistant\n",
    "__base__": "The answer is ",
}
names = list(prompts)
encoded = [ln.data.encode(text) for text in prompts.values()]
answers = ln.generate(model, encoded, max_new_tokens=60, adapter_names=names)
for (name, text), answer in zip(prompts.items(), answers, strict=True):
    print(f"{name:9}{text.splitlines()[-1]!r} →\n         {ln.data.decode(answer)!r}")

three = np.stack([tokens[0]] * 3)
mixed, _ = model.forward(three, adapter_names=names)
print()
for i, name in enumerate(names):
    alone, _ = model.forward(three[i : i + 1], adapter_names=[name])
    print(f"row {i}, {name}: error {abs(mixed[i] - alone[0]).max() / abs(alone).max():.0e}")

# %% [markdown]
# Each row continues in the style of its adapter. The logits of each row in the mixed batch equal the logits of the same row alone, up to rounding. The generated text has no meaning. "tiny" has one million parameters and writes byte by byte, and each adapter was trained for only 60 steps. The adapters learned how Python and answers look, but not what they mean. The held-out losses above measure better what each adapter learned. Notebook 10 trains a real language model.
#
# **Predict.** A decode step computes the next token of each of 32 rows, in a whole model. How much longer does the step take if each row has its own adapter than if all rows share one adapter?

# %% jupyter={"source_hidden": true}
# prints the time of a decode step with one adapter and with one adapter per row
step = Table.load("../figures/data/serving_step.json")
lines = []
for row in step.rows:
    ratios = {"× one adapter": row["to_one"], "× lora_np": row["to_ours"]}
    line = {"model": row["model"], "adapters": row["competitor"]}
    lines.append(line | {"ms": 1000 * row["seconds"]} | ratios)
show(lines, dict(zip(lines[0], ("", "", ".1f", ".2f", ".2f"), strict=True)))

# %%
Markdown(findings.say("serving.tiny.each", "serving.smollm2.each"))

# %% [markdown]
# The products with the base's weights take most of the time, and they are computed once in both cases. PEFT's mixed batch runs the adapters one after another in every layer. The result is correct, but with 32 adapters this is slow.
#
# ## Lab: when the checks of a merge mislead
#
# In each of the three experiments, one number suggests that the result is good or that it is useless. The held-out loss shows whether this is true. Write down your prediction each time.
#
# ### 1. The average of an adapter and itself
#
# Two files contain adapters that compute the same logits. You average the factors of the two adapters: $\tfrac12 (A_1 + A_2)$ and $\tfrac12(B_1 + B_2)$. You check that each number of the result is the mean of the two averaged numbers. **Predict** the loss of the averaged adapter on the voice.

# %%
model.add_adapter("twin", config)
layers = model.lora_layers()
for layer in layers:  # (B M)(M⁻¹ A) = B A for every invertible M; here M = −1
    voice, twin = layer.adapters["voice"], layer.adapters["twin"]
    twin.lora_A.value[...] = -voice.lora_A.value
    twin.lora_B.value[...] = -voice.lora_B.value

lines = []
for kind in ("linear", "cat"):
    name = f"average, {kind}"
    report = model.add_weighted_adapter(["voice", "twin"], [0.5, 0.5], name, kind)
    lines.append({"combination type": kind, "error of ΔW": report.error})
show(lines, {"combination type": "", "error of ΔW": ".0e"})
A1, A2, mean = (layer.adapters[n].lora_A.value for n in ("voice", "twin", "average, linear"))
print("each number of A is the mean of the two:", np.allclose(mean, (A1 + A2) / 2), "\n")
show_losses(None, "voice", "twin", "average, linear", "average, cat")

# %% [markdown]
# The average of type `linear` does nothing: the model has the losses of the base. The factors $-B$ and $-A$ give the same adapter, because $(-B)(-A) = BA$, but the mean of $A$ and $-A$ is zero. The factors $A$ and $B$ have no meaning separately, since $(BM)(M^{-1}A) = BA$ for every invertible $M$, and each training ends with a different $M$. The result of `linear` depends on $M$. The result of `cat`, $\sum w_i \Delta W_i$, does not depend on $M$. With two adapters, `linear` multiplies both factors of adapter $i$ by $\sqrt{w_i}$. Multiplying out shows which terms `linear` adds to the sum:
#
# $$(\sqrt{w_1} B_1 + \sqrt{w_2} B_2)(\sqrt{w_1} A_1 + \sqrt{w_2} A_2) = w_1 B_1 A_1 + w_2 B_2 A_2 + \sqrt{w_1 w_2}\,(B_1 A_2 + B_2 A_1)$$
#
# Therefore this library reports the error of $\Delta W$ for every combination. The error is computed from the products $BA$ and not from the factors.
#
# ### 2. Exactly the sum, and worse than the base
#
# `cat` gives exactly the requested sum. **Predict.** You combine half of the code adapter with half of the voice adapter. Is the loss on code between the losses of the two adapters, equal to the base's loss, or above the base's loss?

# %%
lines = []
for weights in ([0.5, 0.5], [0.7, 0.3], [1.0, 1.0]):
    name = "cat " + " + ".join(f"{w:.0%}" for w in weights)
    report = model.add_weighted_adapter(["code", "voice"], weights, name, "cat")
    lines.append({"code + voice": name, "error of ΔW": report.error})
show(lines, {"code + voice": "", "error of ΔW": ".0e"})
print()
show_losses(None, "code", "voice", *(line["code + voice"] for line in lines))

# %% [markdown]
# With equal halves the loss on code is above the base's loss. Half of the voice adapter makes the model forget more code than half of the code adapter teaches. The reported error is zero, and this is correct, because the report compares the combination with the sum that was *requested*. Only held-out text of each domain shows whether this sum is useful. The harm occurs although the two weights sum to one.
#
# ### 3. A large error that does little harm
#
# `svd` keeps only the 8 largest of the 16 directions of the sum, and the reported error of the result is large. **Predict.** Which share of `cat`'s gain does `svd` lose? The gain is the base's loss minus the loss of the combination. The picture shows all combination types, each at its own best scale. The two adapters of the picture were trained longer. (The study evaluates on longer windows than this notebook, so the losses in the picture are lower.)

# %%
joined = Table.load("../figures/data/combinations.json")
plots.combinations_chart(joined);

# %%
row = {kind: joined.where(kind=kind)[0] for kind in ("base", "cat", "svd", "linear")}
both = {kind: row[kind]["code"] + row[kind]["voice"] for kind in row}
lines = [
    {
        "type": kind,
        "error of ΔW": row[kind]["error"],
        "gain, both domains": both["base"] - both[kind],
        "of cat's gain": (both["base"] - both[kind]) / (both["base"] - both["cat"]),
    }
    for kind in ("cat", "svd", "linear")
]
show(lines, dict(zip(lines[0], ("", ".2f", ".2f", ".0%"), strict=True)))

# %% [markdown]
# A large part of the norm of $\Delta W$ is in directions that hardly change the loss. Even `linear`, at its best scale, keeps most of the gain. The error of $\Delta W$ is a useful warning. The types that work on $\Delta W$ have lower losses than the types that work on $A$ and $B$ separately. But the error of $\Delta W$ does not replace a measured loss.
#
# **Conclusions of the lab.** Compare merges by $\Delta W$, never by $A$ and $B$. Then evaluate the merged model on held-out text of every domain for which you will use it. Evaluate the weights as they are *stored*: notebook 07 shows that rounding to 16, 8 or 4 bits can remove a small $\Delta W$. Keep the adapter file too, because only the file contains the adapter exactly as it was trained.
#
# ## A server
#
# Requests do not arrive in batches. `AdapterServer` forms batches while requests arrive (*continuous batching*, [Yu et al. 2022](https://www.usenix.org/conference/osdi22/presentation/yu)). Between two steps, new requests join the batch and finished requests leave it. Each row has its own adapter. **Predict.** The server has room for two rows. In which order do the four requests of the next cell finish?

# %%
server = ln.AdapterServer(model, max_batch=2)
requests = [("code", 24), ("voice", 8), ("__base__", 8), ("code", 4)]  # adapter, new tokens


def report(request):
    print(f"         finished: {request.adapter}, {len(request.tokens)} tokens")


for name, length in requests:
    server.submit(ln.data.encode(prompts[name]), name, length, on_finish=report)
steps = 0
while not server.idle:
    if steps % 4 == 0:
        running = ", ".join(request.adapter for request in server.running) or "none"
        print(f"step {steps:2}: running {running}; {len(server.waiting)} waiting")
    server.step()
    steps += 1

# %% [markdown]
# The short requests do not wait for the long request that came first. The optional dependencies `serve` add an HTTP interface with OpenAI's protocol. The field `model` of a request names the adapter:
#
# ```
# pip install -e ".[serve]"
# python -m lora_np serve --model smollm2-135m --adapter keeper=keeper/
#
# curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \
#      -d '{"model": "keeper", "prompt": "The lamp", "max_tokens": 20, "stream": true}'
# ```
#
# ```python
# from openai import OpenAI
#
# client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
# messages = [{"role": "user", "content": "Why does bread rise?"}]
# for chunk in client.chat.completions.create(model="keeper", messages=messages, stream=True):
#     print(chunk.choices[0].delta.content or "", end="")
# ```
#
# ## Recap
#
# Adapters share the base's weights. Here the base with a thousand adapters needs a tenth of the memory of a thousand merged models. In a mixed batch the product with $W$ is computed once for all rows, and only the small products with $A$ and $B$
# differ. A merged model gives the same outputs as the base with the adapter, up to rounding, and is as fast as the base. But a merged model serves one adapter only. The factors $A$ and $B$ have no meaning separately: combine adapters by their $\Delta W$, and evaluate the result on held-out
# text of each domain.
#
# ## Three questions
#
# 1. Why can one product with $W$ serve a batch in which every row has a different adapter?
#
# <details><summary>Answer</summary>
#
# $W$ is the same for all rows. Only the bypass $s\,(x A^\top) B^\top$ depends on the adapter, and this bypass is added afterwards.
#
# </details>
#
# 2. In which case is a merged model better than a mixed batch?
#
# <details><summary>Answer</summary>
#
# A merged model is better if all requests use the same adapter. Then the bypass costs time in every layer and has no advantage.
#
# </details>
#
# 3. Two adapters have the same $\Delta W$. Why can the mean of their factors have a different $\Delta W$?
#
# <details><summary>Answer</summary>
#
# $(BM)(M^{-1}A) = BA$ for every invertible $M$. The factors can differ although the products are equal, and the product of two means is not the mean of the products.
#
# </details>
#
# ## Try
#
# 1. In experiment 1 let $M$ be a rotation: `M, _ = np.linalg.qr(rng.standard_normal((8, 8)))`, $A_2 = M^\top A$, $B_2 = BM$. How large is the error of `linear` now? Does the error depend on the weights, if both weights are equal?
#
# <details><summary>Hint</summary>
#
# Use the same `M` in every layer, and add the combination with the weights `[0.5, 0.5]`, then with `[0.2, 0.2]`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The error is about 0.64 of the sum's norm, with both pairs of weights. With equal weights $w$, every term of the product has the factor $\sqrt{w}\sqrt{w} = w$, so the *relative* error does not depend on $w$.
#
# </details>
#
# 2. Let `cat` have the weights (share, 1 − share) for the code and the voice adapter. From which share of the code adapter on is the combination better than the base on both domains?
#
# <details><summary>Hint</summary>
#
# Repeat the cell of experiment 2 with shares from 0.5 to 0.9.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The combination is better on both domains from a share of about 0.55 on. At this share the loss on code is 1.638, and the base's loss is 1.647. On the voice, every tried share has a far lower loss than the base.
#
# </details>
#
# 3. With how many rows per segment is `grouped` faster than `batched` on your machine?
#
# <details><summary>Hint</summary>
#
# `idx = np.arange(32) // n` has segments of n rows. Measure both functions for n = 1, 2, 4, 8, 16.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The number depends on the machine, but a few rows per segment are enough. Then `grouped` needs fewer calls than with one row per segment. The function `batched` gains nothing from rows that share an adapter. The library's limit is `SMALL_SEGMENT` in `lora_np/peft/mixed.py`.
#
# </details>
#
# 4. The adapter "average, cat" of experiment 1 has rank 16 and the same $\Delta W$ as the voice adapter. Combine "average, cat" with the code adapter by `linear`, then by `svd`. Why must `linear` raise an error?
#
# <details><summary>Hint</summary>
#
# Read the error message, and write down the shapes of $A_1 + A_2$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# `linear` adds the factors. The shape of $A_1$ is (16, in) and the shape of $A_2$ is (8, in), so $A_1$ and $A_2$ cannot be added. `svd` works on $\Delta W$, whose shape does not depend on the rank.
#
# </details>
