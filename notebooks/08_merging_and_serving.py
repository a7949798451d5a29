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
# An adapter is small, so one base can carry many. They can be used side by side, a batch with another adapter in each row; or an adapter is added
# into the weights, and costs nothing any more; or several are made one. The first always computes what was asked for. The other two sometimes do not, and
# look as if they did: that is the lab, "when merging lies", in the second half.
#
# First the result. One base, up to a thousand adapters, a batch of 32 rows whose adapters are drawn in five ways. Grey is the alternative: a merged model for
# each adapter.
#
# **Predict.** With a thousand adapters, how many of the grey models would fit into the memory of the cyan one?

# %%
import statistics
import time

import ml_dtypes
import numpy as np

import lora_np as ln
from lora_np import plots
from lora_np.peft.lora.layer import LoraAdapter
from lora_np.peft.mixed import AdapterRows
from lora_np.quantization.four_bits import dequantize_4bit, quantize_4bit
from lora_np.studies.harness.table import Table, show
from lora_np.studies.serving import merging

served = Table.load("../figures/data/serving.json")
plots.serving_chart(served);

# %%
most = served.rows[-1]
print(f"base {most['merged_bytes'] / most['adapters'] / 1e6:.2f} MB, an adapter {most['adapter_bytes'] / 1e6:.2f} MB: {most['adapters']} adapters on one base take "
      f"as much as {most['bytes'] / (most['merged_bytes'] / most['adapters']):.0f} merged models")
print(f"made by `{served.command}`")

# %% [markdown]
# Speed depends on who asks for what. Where all rows ask for one adapter ("identical"), merging it is the cheapest. Where each asks for another, the grey side has to go through a model for
# each row, and the base's work is done 32 times.
#
# On "tiny" an adapter is a tenth of the base, because its matrices are narrow. The wider the model, the smaller the share: the same adapters on a 7B model are
# a few thousandths of it ([Sheng et al. 2023](https://arxiv.org/abs/2311.03285) serve thousands at once).
#
# ## Two adapters
#
# All that follows is done with two real ones. The first learns Python code, the second learns a voice, an old lighthouse keeper who answers questions. The
# base has read English prose.

# %%
config = ln.LoraConfig(r=8, lora_alpha=64, target_modules="all-linear")
model = ln.get_peft_model(ln.load_model("tiny"), config, "code")
model.add_adapter("voice", config, seed=1)
steps = 60
for name in ("code", "voice"):
    model.set_adapter(name)  # from now on this one trains, and the other one is frozen like the base
    batches = ln.data.Batches(merging.corpus(name, "train"), batch_size=8, seq_len=64)
    ln.train(model, batches, ln.AdamW(lr=4e-3), steps, schedule=ln.WarmupCosine(steps, warmup=6), max_grad_norm=1.0)

heldout = {name: ln.data.heldout_batches(merging.corpus(name, "heldout"), 32, 64, windows=64) for name in ("code", "voice")}


def loss(name, adapter=None):
    """Held-out nats a byte on a domain; without an adapter, of the base with the weights that it has at the moment."""
    if adapter is None:
        with model.disable_adapter():
            return ln.evaluate(model, heldout[name])
    model.set_adapter(adapter, inference_mode=True)
    return ln.evaluate(model, heldout[name])


def show_losses(*adapters):
    lines = [{"nats a byte": name or "base", "code": loss("code", name), "voice": loss("voice", name)} for name in adapters]
    show(lines, {"nats a byte": "", "code": ".3f", "voice": ".3f"})


show_losses(None, "code", "voice")

# %% [markdown]
# Each is good at its own. And the voice has made the model worse at code than the base was: it has forgotten. Keep that in mind.
#
# ## Merged, it costs what the base costs
#
# $$x W^\top + s\,(x A^\top) B^\top \;=\; x\,(W + s\,BA)^\top$$
#
# **Predict.** How large is the largest difference of a logit, in float32: zero, about 1e-7 of it, or about 1e-3?

# %%
tokens = heldout["voice"][0][0][:4]
model.set_adapter("voice", inference_mode=True)
unmerged, _ = model.forward(tokens)
layer = model.lora_layers()[0]
W, A, B = layer.base_layer.weight.value, layer.adapters["voice"].lora_A.value, layer.adapters["voice"].lora_B.value  # (out, in), (r, in), (out, r)
by_hand = W + config.scaling * B @ A  # (out, in)

model.merge_adapter()
merged, _ = model.forward(tokens)
print("W + s·BA, as the library has it:", np.allclose(by_hand, layer.base_layer.weight.value, atol=1e-6))
print(f"largest difference of a logit: {abs(merged - unmerged).max() / abs(unmerged).max():.0e} of the largest")
model.unmerge_adapter()

print("\na token, compared in the same rounds on one thread:")
for row in Table.load("../figures/data/merge_latency.json").rows:
    print(f"{row['model']:14}{row['state']:10}{1000 * row['token_seconds']:8.1f} ms{row['token_ratio']:7.2f}× the base")

# %% [markdown]
# Not zero: the two sides round in another order. That is all that differs, and the bypass's time is gone. What was given up is the choice: a merged model
# answers everybody with this one adapter.
#
# ## What is left in the weights
#
# One can take it out again, $W \leftarrow (W + s\,BA) - s\,BA$, and merge another. Each of these two steps rounds.
#
# **Predict.** The same adapter is merged and taken out a hundred times, or eight adapters in turns. In which of the two does the error grow? By how much
# does float16 differ from float32?

# %%
plots.merge_drift(merging.drift(cycles=(1, 2, 3, 5, 10, 20, 30, 50, 100)));

# %% [markdown]
# The same one does its harm in the first round. After that $W$ is a number from which $+\,\Delta$ and $-\,\Delta$ lead back to itself (a theorem about rounding to even:
# Knuth, *The Art of Computer Programming*, 4.2.2). Another adapter rounds elsewhere, so the errors add up, like steps in random directions. Between the dtypes lies nothing but the
# fineness of their numbers, from float16 to float32 13 bits, a factor of $2^{13}$. In float32 the drift is harmless for a long time. In 16 bits, keep the base and never merge in turns.
#
# ## Many adapters on one base
#
# Switching needs no arithmetic at all: the base's weights are shared, and a call names the adapter it wants. What it costs is bytes, and they can be counted.

# %%
base_bytes = sum(p.value.nbytes for name, p in model.named_parameters() if "lora_" not in name)
adapter_bytes = {a: sum(p.value.nbytes for name, p in model.named_parameters() if f".{a}." in name) for a in ("code", "voice")}
print(f"base {base_bytes:,} bytes, adapters {adapter_bytes}")

weight = layer.base_layer.weight.value
started = time.perf_counter()
for _ in range(100):
    model.set_adapter("code", inference_mode=True)
    model.set_adapter("voice", inference_mode=True)
switch = (time.perf_counter() - started) / 200
started = time.perf_counter()
model.merge_adapter()
model.unmerge_adapter()
print(f"to switch: {1e6 * switch:.0f} µs; to merge and unmerge instead: {1e6 * (time.perf_counter() - started):.0f} µs")
print("the weight is the same array:", layer.base_layer.weight.value is weight)

# %% [markdown]
# ## Mixed batches
#
# Now every row of a batch has an adapter of its own, $\mathrm{idx}[i]$, or none. Written down, and as a loop:
#
# $$y_i \;=\; x_i W^\top + s\,\bigl(x_i A_{\mathrm{idx}[i]}^\top\bigr)\, B_{\mathrm{idx}[i]}^\top$$

# %%
def loop(x, W, A, B, s, idx):
    """x (b, in), W (out, in), A (n, r, in), B (n, out, r), idx (b,), −1 for none → y (b, out)."""
    y = np.empty((len(x), len(W)), x.dtype)
    for i, k in enumerate(idx):
        y[i] = x[i] @ W.T  # (in,) (in, out) → (out,)
        if k >= 0:
            y[i] += s * (x[i] @ A[k].T) @ B[k].T  # (in,) (in, r) (r, out) → (out,)
    return y


# %% [markdown]
# A model's weights have to come from memory for every one of these products, and a row alone makes little of them. $W$ is the same for all rows, so its product
# is one for the whole batch. The rows of one adapter, a *segment*, go through theirs together:

# %%
def grouped(x, W, A, B, s, idx):
    y = x @ W.T  # (b, in) (in, out) → (b, out), once
    for k in np.unique(idx[idx >= 0]):
        rows = np.flatnonzero(idx == k)  # the segment of adapter k
        y[rows] += s * (x[rows] @ A[k].T) @ B[k].T  # (n, in) (in, r) (r, out) → (n, out)
    return y


# %% [markdown]
# If each row has another adapter, every segment has one row, and Python's calls cost more than the arithmetic. Then the factors are stacked, and one batched product does
# all of them ([Chen et al. 2023](https://arxiv.org/abs/2310.18547) call it SGMV, and wrote it as one GPU kernel):

# %%
def batched(x, W, A, B, s, idx):
    y = x @ W.T
    rows = np.flatnonzero(idx >= 0)
    h = s * x[rows, None] @ A[idx[rows]].swapaxes(1, 2)  # (n, 1, in) (n, in, r) → (n, 1, r)
    y[rows] += (h @ B[idx[rows]].swapaxes(1, 2))[:, 0]  # (n, 1, r) (n, r, out) → (n, 1, out)
    return y


# %% [markdown]
# **Predict.** 32 rows, each on an adapter of its own, at the width of SmolLM2. Which of the three is fastest, and by what factor does the loop lose?

# %%
rng = np.random.default_rng(0)
rows, width, out, r = 32, 576, 1536, 8
library = ln.AdaptedLinear(ln.Linear(rng.standard_normal((out, width), dtype="float32")))
for k in range(rows):
    factors = rng.standard_normal((r, width)), rng.standard_normal((out, r))
    library.adapters[str(k)] = LoraAdapter.build(ln.LoraConfig(r=r, lora_alpha=16), library.base_layer, factors)
x = rng.standard_normal((rows, width), dtype="float32")
W, s = library.base_layer.weight.value, 16 / r
adapters = [library.adapters[str(k)] for k in range(rows)]
A, B = (np.stack([getattr(adapter, name).value for adapter in adapters]) for name in ("lora_A", "lora_B"))

for title, idx in {"32 rows, 32 adapters": np.arange(rows), "32 rows, 3 adapters and the base": rng.integers(-1, 3, rows)}.items():
    who = AdapterRows(["__base__" if k < 0 else str(k) for k in idx])
    y = library.forward(x[:, None], ln.Context(adapter=who))[0][:, 0]  # (b, 1, in) → (b, 1, out): a token a row
    print(title)
    for f in (loop, grouped, batched):
        seconds = []
        for _ in range(15):
            started = time.perf_counter()
            mine = f(x, W, A, B, s, idx)
            seconds.append(time.perf_counter() - started)
        print(f"  {f.__name__:8}{1000 * statistics.median(seconds):8.2f} ms   differs from the library by {abs(mine - y).max() / abs(y).max():.0e}")

# %% [markdown]
# Few adapters with many rows each: segments. Many with a row each: the batched product. The library takes either, by the size of the segments (`lora_np/peft/mixed.py`),
# and keeps the stack from one step to the next. In a whole model it is an argument of the call:

# %%
beginnings = ["import sys\n\n\ndef ", "<|im_start|>user\nWhy is the sea salt?<|im_end|>\n<|im_start|>assistant\n", "The answer is "]
names = ["code", "voice", "__base__"]
answers = ln.generate(model, [ln.data.encode(text) for text in beginnings], max_new_tokens=60, adapter_names=names)
for name, text, answer in zip(names, beginnings, answers, strict=True):
    print(f"{name:9}{text.splitlines()[-1]!r} → {ln.data.decode(answer)!r}")

three = np.stack([tokens[0]] * 3)
mixed, _ = model.forward(three, adapter_names=names)
for i, name in enumerate(names):
    alone, _ = model.forward(three[i : i + 1], adapter_names=[name])
    print(f"row {i}, {name}: differs from the row alone by {abs(mixed[i] - alone[0]).max() / abs(alone).max():.0e}")

# %% [markdown]
# **Predict.** A whole decode step of 32 rows. How much longer does it take when each row has an adapter of its own than when all have the same one?

# %%
step = Table.load("../figures/data/serving_step.json")
for row in step.rows:
    print(f"{row['model']:14}{row['competitor']:12}{1000 * row['seconds']:8.1f} ms   {row['to_one']:5.2f}× one adapter   {row['to_ours'] or float('nan'):5.2f}× ours")

# %% [markdown]
# The base's products are most of the step, and they are made once either way. PEFT's mixed batch goes through the adapters one after another in every layer; that is
# right, and with 32 of them slow.
#
# ## Lab: when merging lies
#
# Five experiments. Each has a number that says "all is well", or "all is lost", and the held-out loss to ask after it. Write your prediction down each time.
#
# ### 1. The average of an adapter and itself
#
# Two files hold the same adapter: each computes the same logits. You average their factors, $\tfrac12 (A_1 + A_2)$ and $\tfrac12(B_1 + B_2)$, and check that each
# number is the mean of the two. **Predict** what the average has learned.

# %%
model.add_adapter("twin", config)
layers = model.lora_layers()
for layer in layers:
    layer.adapters["twin"].lora_A.value[...] = -layer.adapters["voice"].lora_A.value  # (B M)(M⁻¹ A) = B A for every invertible M; here M = −1
    layer.adapters["twin"].lora_B.value[...] = -layer.adapters["voice"].lora_B.value

for kind in ("linear", "cat"):
    print(model.add_weighted_adapter(["voice", "twin"], [0.5, 0.5], f"average, {kind}", kind))
A1, A2, A_average = (layer.adapters[name].lora_A.value for name in ("voice", "twin", "average, linear"))
print("each number of A is the mean of the two:", np.allclose(A_average, (A1 + A2) / 2), "\n")
show_losses(None, "voice", "twin", "average, linear", "average, cat")

# %% [markdown]
# Nothing: it is the base. $(-B)(-A) = BA$ is the same adapter, and the mean of $A$ and $-A$ is zero. $A$ and $B$ apart mean nothing, since $(BM)(M^{-1}A) = BA$ for
# every invertible $M$, and training ends at a different $M$ every time. What `linear` makes depends on it; what `cat` makes, $\sum w_i \Delta W_i$, does not. For two adapters
# $\sqrt{w}$ goes on both factors, and multiplying out shows what comes beside the sum:
#
# $$(\sqrt{w_1} B_1 + \sqrt{w_2} B_2)(\sqrt{w_1} A_1 + \sqrt{w_2} A_2) = w_1 B_1 A_1 + w_2 B_2 A_2 + \sqrt{w_1 w_2}\,(B_1 A_2 + B_2 A_1)$$
#
# So every combination here reports its error of ΔW, computed from the products and not from the factors.
#
# ### 2. Exactly the sum, and worse than the base
#
# `cat` is exact. **Predict:** half of the code adapter and half of the voice. Where does its loss on code lie: between those of its parents, at the base, or above the base?

# %%
for weights in ([0.5, 0.5], [0.7, 0.3], [1.0, 1.0]):
    name = "cat " + " + ".join(f"{w:.0%}" for w in weights)
    print(f"{name}: error of ΔW {model.add_weighted_adapter(['code', 'voice'], weights, name, 'cat').error:.0e}")
print()
show_losses(None, "code", "voice", *[name for name in model.peft_config if name.startswith("cat")])

# %% [markdown]
# Above it: half a voice makes the model forget more code than half a code adapter teaches. The report says 0, and rightly, since it says whether the combination is what was
# *asked for*. Whether that was a good thing to ask only held-out text of each domain knows. Weights that sum to one are no protection.
#
# ### 3. A large error that hardly harms
#
# Now the other way. `svd` keeps the best 8 of the 16 directions, and its report is alarming. **Predict** which part of the gain is lost. Here are all the types, of two adapters that were
# trained for longer, each at its own best scale.

# %%
joined = Table.load("../figures/data/combinations.json")
plots.combinations_chart(joined);

# %%
cat, svd, linear = (joined.where(kind=kind)[0] for kind in ("cat", "svd", "linear"))
before = joined.where(kind="base")[0]
for row in (cat, svd, linear):
    gain, whole = (sum(before[d] - one[d] for d in ("code", "voice")) for one in (row, cat))
    print(f"{row['kind']:8}error of ΔW {row['error']:.2f}; gain over the base, on both together, {gain:.2f} nats: {gain / whole:.0%} of cat's")

# %% [markdown]
# Much of the norm of ΔW lies in directions that matter little. Even `linear`, at the scale that suits it best, keeps most of the gain. The error of ΔW is a warning, and a fair one between the types (those in cyan, which work on ΔW, come out ahead of those in green, on $A$ and $B$ apart), but it is no loss.
#
# ### 4. Merged, and rounded
#
# Published models come in 16 bits, and some in fewer. There the sum has to be rounded to what the format has: $W' = \mathrm{round}(W + \Delta W)$. If a ΔW is less than half a step, $W' = W$ and the number has learned nothing.
# An adapter that has been trained for a short time is small; here ours is shrunk, to see when that begins to matter. **Predict**, for a tenth of the adapter: what share of the weights has not changed at
# all in bfloat16, in 8 bits, in 4? And which share of the adapter's effect is lost?

# %%
def to(dtype):
    return lambda x: x.astype(dtype).astype("float32")


FORMATS = {
    "bfloat16": to(ml_dtypes.bfloat16),
    "float8 (e4m3)": to(ml_dtypes.float8_e4m3fn),
    "NF4": lambda x: dequantize_4bit(quantize_4bit(x)),
}
originals = [layer.base_layer.weight.value for layer in layers]
deltas = [layer.delta_weight("voice") for layer in layers]


def loss_with(weights):
    """Of the base, with these weights in it for as long as it takes."""
    for layer, weight in zip(layers, weights, strict=True):
        layer.base_layer.weight.value = weight
    measured = loss("voice")
    for layer, weight in zip(layers, originals, strict=True):
        layer.base_layer.weight.value = weight
    return measured


lines = []
for title, rounded in FORMATS.items():
    base = [rounded(w) for w in originals]
    start = loss_with(base)
    for share in (1, 0.1, 0.01):
        exact = [w + share * delta for w, delta in zip(base, deltas, strict=True)]
        stored = [rounded(w) for w in exact]
        same = np.mean(np.concatenate([(a == b).ravel() for a, b in zip(stored, base, strict=True)]))
        off = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(stored, exact, strict=True)) / sum(np.sum((share * d) ** 2) for d in deltas))
        stays = (start - loss_with(stored)) / (start - loss_with(exact))
        lines.append({"format": title, "ΔW times": share, "weights unchanged": same, "ΔW off by": off, "of the gain stays": stays})
show(lines, {"format": "", "ΔW times": "g", "weights unchanged": ".0%", "ΔW off by": ".2f", "of the gain stays": ".0%"})

# %% [markdown]
# Two surprises. bfloat16 leaves many weights as they were and yet keeps nearly all of the effect: that is in the large entries of ΔW, and what rounding does to the small ones points in no direction. And in NF4
# most weights change while next to nothing of a small adapter remains: the largest number of a block is its scale, and when that moves, so does everything beside it. *How many numbers changed* says
# nothing.
#
# ### 5. Over a quantised base
#
# So for QLoRA. **Predict** what the library does when it is told to merge into four bits. And the way around it, to merge into the weights from *before* they were quantised, which are lying about on disk: is that the same model?

# %%
rounded = FORMATS["NF4"]
quantized = ln.get_peft_model(ln.quantize_model(ln.load_model("tiny"), double_quant=False), config, "voice", seed=1)
batches = ln.data.Batches(merging.corpus("voice", "train"), batch_size=8, seq_len=64)
ln.train(quantized, batches, ln.AdamW(lr=4e-3), 20, schedule=ln.WarmupCosine(20, warmup=4), max_grad_norm=1.0)
try:
    quantized.merge_adapter()
except RuntimeError as error:
    print(f"RuntimeError: {error}\n")

with_bypass = ln.evaluate(quantized, heldout["voice"])
ours = [layer.delta_weight("voice") for layer in ln.dequantize_model(quantized).lora_layers()]
nf4 = [rounded(w) for w in originals]
ways = {
    "as it was trained: NF4 and the bypass": with_bypass,
    "dequantised, merged, left in float32": loss_with([w + d for w, d in zip(nf4, ours, strict=True)]),
    "merged into the weights from before": loss_with([w + d for w, d in zip(originals, ours, strict=True)]),
    "merged and quantised again": loss_with([rounded(w + d) for w, d in zip(nf4, ours, strict=True)]),
}
for way, measured in ways.items():
    print(f"{way:40}{measured:.4f} nats a byte")

# %% [markdown]
# Only the second is the model that was trained, at float32's size. The third has another base under the adapter, which may be a little better or worse but was never tested; the fourth is
# experiment 4. With a quantised base, serve the bypass: a mixed batch over QLoRA needs no merging.
#
# **What to take along.** Judge a merge by ΔW, never by $A$ and $B$. Then judge it by held-out text, of every domain that it is to serve. Do both with the weights as they are *stored*. And keep the adapter: it is the only
# copy that has been tested.
#
# ## A server
#
# Requests do not come in batches. `AdapterServer` batches them as they come (*continuous batching*, [Yu et al. 2022](https://www.usenix.org/conference/osdi22/presentation/yu)): one joins between two steps, another leaves, and each row
# has its adapter. **Predict:** with room for two rows, in which order do these four finish?

# %%
server = ln.AdapterServer(model, max_batch=2)
for name, text, length in [("code", beginnings[0], 24), ("voice", beginnings[1], 8), ("__base__", beginnings[2], 8), ("code", "class ", 4)]:
    server.submit(ln.data.encode(text), name, length, on_finish=lambda r: print(f"         finished: {r.adapter}, {ln.data.decode(r.tokens)!r}"))
steps = 0
while not server.idle:
    if steps % 4 == 0:
        print(f"step {steps:2}: rows {[request.adapter for request in server.running]}, {len(server.waiting)} waiting")
    server.step()
    steps += 1

# %% [markdown]
# The short ones do not wait for the long one that came first. With the extra `serve` there is an HTTP door in front of the engine, which speaks OpenAI's protocol; the field `model` names the adapter:
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
# for chunk in client.chat.completions.create(model="keeper", messages=[{"role": "user", "content": "Why does bread rise?"}], stream=True):
#     print(chunk.choices[0].delta.content or "", end="")
# ```
#
# ## Try
#
# 1. In experiment 1 let $M$ be a rotation: `M, _ = np.linalg.qr(rng.standard_normal((8, 8)))`, $A_2 = M^\top A$, $B_2 = BM$. How large is the error of `linear` now, and why does it not depend on the weights as long as both are alike?
# 2. From which share of code on are the two adapters together better than the base on both domains? Then find the two weights with the least sum of both losses. Do they sum to one?
# 3. At how many rows a segment does `grouped` overtake `batched` on your machine? The library's answer is `SMALL` in `lora_np/peft/mixed.py`.
# 4. "average, cat" of experiment 1 has rank 16 and the voice's ΔW. Join it with the code adapter by `linear`, then by `svd`. Why must the first refuse?
# 5. Train the adapter of experiment 5 for five steps instead of twenty. Which of the four ways suffers, and why?
