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
# An adapter is small, so one base model can have many adapters. This notebook shows how much memory and time a base with many adapters needs. The notebook also shows when you can merge an adapter into the weights or combine it with another adapter.
#
# **You will learn** to
#
# - explain how one batch can have rows with different adapters, and compute how many bytes the adapters need;
# - measure how a merge changes the outputs and the speed of a model, and how repeated merges change its weights;
# - recognise three checks of a merge that do not show whether the merged model is good.
#
# **Before you start**: the LoRA layer and its merge (notebook 02).
#
# *Reading: 55 minutes. Tasks: 30 minutes. Running: about 15 seconds.*
#
# ## The result first
#
# In the next picture, one base with up to a thousand adapters computes batches of 32 rows. The five workloads of the picture differ in how the adapter of each row is chosen. The grey marks show the alternative: one merged model per adapter.
#
# **Predict.** How many merged models need as much memory as one base with a thousand adapters?

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
from lora_np.studies.harness.table import Table, mean, show
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
# Whether merged models are faster depends on the workload. If all rows use the same adapter ("identical"), a merged model is faster than the base with adapters. If each row uses a different adapter ("distinct"), merged models are slower than the base with adapters. With merged models each row needs its own model, so a batch of 32 rows reads the weights of 32 models.
#
# An adapter of "tiny" needs a tenth of the base's memory, because the matrices of this model are narrow. In a wider model, the memory of an adapter is a smaller share of the base's memory. For a model with 7 billion parameters, an adapter with the same settings needs only a few thousandths of the base's memory. ([Sheng et al. 2023](https://arxiv.org/abs/2311.03285) describe a server that uses thousands of adapters with one base.)
#
# ## Two adapters
#
# The rest of this notebook uses two trained adapters. The first adapter, "code", learns Python code. The second adapter, "voice", learns to answer questions like an old lighthouse keeper. The base was trained on English prose.
#
# There are two domains, code and voice. For each domain, the loss is measured on 64 windows of 64 bytes of held-out text. These windows are shorter than the windows in notebooks 05 and 07, so the model has less context. Therefore the base's loss on code is higher in this notebook than in notebooks 05 and 07. Compare only losses within the same table.

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
# Each adapter lowers the loss on its own domain. But with the voice adapter, the loss on code is higher than the base's loss on code. The voice adapter makes the model forget code. This forgetting matters in experiment 2 of the lab below.
#
# ## A merged model is as fast as the base
#
# $$x W^\top + s\,(x A^\top) B^\top \;=\; x\,(W + s\,BA)^\top$$
#
# The left side of this equation is a layer before the merge. The right side is the merged layer. **Predict.** A model computes its logits in float32, once before and once after the merge. How large is the largest difference between the logits, divided by the largest logit: zero, about 1e-7, or about 1e-3?

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
# The difference is not zero, because the two sides of the equation add the same terms in a different order, and each addition rounds its result. The merged model is faster than the unmerged model, because it does not compute the bypass $s\,(x A^\top) B^\top$. The next table shows the time to compute one token before and after a merge, on one thread:

# %%
lines = [
    row | {"ms": 1000 * row["token_seconds"], "× base": row["token_ratio"]}
    for row in Table.load("../figures/data/merge_latency.json").rows
]
show(lines, {"model": "", "state": "", "ms": ".1f", "× base": ".2f"})

# %% [markdown]
# A merged model has one disadvantage. The model answers every request with the adapter that was merged.
#
# ## How many merges change the weights
#
# To merge another adapter, first remove the merged adapter from the weights: $W \leftarrow (W + s\,BA) - s\,BA$. Both the addition and the subtraction round their results, so an error in $W$ can remain.
#
# **Predict.** In the first case, one adapter is merged and removed a hundred times. In the second case, eight adapters are merged and removed one after another. In which of the two cases does the error in $W$ grow with the number of merges? By what factor is the error in float16 larger than the error in float32?

# %%
plots.merge_drift(merging.drift(cycles=(1, 2, 3, 5, 10, 20, 30, 50, 100)));

# %% [markdown]
# If the same adapter is merged and removed many times, $W$ has an error after the first removal. After every later removal, $W$ has the same numbers as after the first removal, so the error does not grow. This fact follows from a theorem about rounding to even (Knuth, *The Art of Computer Programming*, 4.2.2). If several adapters are merged and removed one after another, each adapter causes different rounding errors. These errors add up like steps in random directions. The format float32 has 13 more bits of precision than float16, so the error in float16 is about $2^{13}$ times the error in float32. In float32 the error stays harmless even after many merges. If the weights are stored in 16 bits, keep a copy of the base's weights, and do not merge and remove adapters repeatedly.
#
# ## Many adapters on one base
#
# If the adapters are not merged, you can switch from one adapter to another without computing anything. All adapters share the base's weights, and each call of the model uses the adapter that is active. The next cell measures the time to switch and, for comparison, the time to merge and unmerge an adapter.

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
# In a mixed batch, each row $i$ has its own adapter with the number $\mathrm{idx}[i]$. If $\mathrm{idx}[i] = -1$, the row has no adapter. The next cell loops over the rows. For a row with an adapter, it computes
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
# The loop reads $W$ from memory again for each row, although one row needs only little arithmetic with $W$. But $W$ is the same for all rows, so one matrix product $x W^\top$ can compute all rows of the batch. The rows that use the same adapter are called a *segment*. One product with $A$ and one product with $B$ can compute all rows of a segment:

# %%
def grouped(x, W, A, B, s, idx):
    y = x @ W.T  # (b, in) (in, out) → (b, out), once for all rows
    for k in np.unique(idx[idx >= 0]):
        rows = np.flatnonzero(idx == k)  # the segment of adapter k, n rows
        y[rows] += s * (x[rows] @ A[k].T) @ B[k].T  # (n, in) (in, r) (r, out) → (n, out)
    return y


# %% [markdown]
# If each row has a different adapter, every segment has only one row. Then the function calls in Python take more time than the arithmetic. To avoid many calls, stack the matrices $A$ of all adapters in one array and the matrices $B$ in another array. One batched product with each array then computes all rows. ([Chen et al. 2023](https://arxiv.org/abs/2310.18547) call the batched product SGMV and wrote it as one GPU kernel.)

# %%
def batched(x, W, A, B, s, idx):
    y = x @ W.T
    rows = np.flatnonzero(idx >= 0)
    h = s * x[rows, None] @ A[idx[rows]].swapaxes(1, 2)  # (n, 1, in) (n, in, r) → (n, 1, r)
    y[rows] += (h @ B[idx[rows]].swapaxes(1, 2))[:, 0]  # (n, 1, r) (n, r, out) → (n, 1, out)
    return y


# %% [markdown]
# **Predict.** The layer in the next cell is as wide as a layer of SmolLM2, and each of the 32 rows of the batch has a different adapter. Which of the three functions `loop`, `grouped` and `batched` is the fastest?

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
# The column `error` shows the relative difference between the result of a function and the result of the library. The function `grouped` is fast if a batch has a few adapters with many rows each. The function `batched` is fast if a batch has many adapters with one row each. The library contains both methods. The number of rows per segment decides which method the library uses (`lora_np/peft/mixed.py`). The library also keeps the stacked $A$ and $B$ in memory for the next step.
#
# In a call of a whole model, the argument `adapter_names` has one adapter name for each row:

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
# Each row continues in the style of its adapter. Up to rounding, the logits of a row in the mixed batch equal the logits that the model computes for this row alone. The generated text makes no sense. The reason is that "tiny" has only one million parameters and generates single bytes, and each adapter was trained for only 60 steps. The model imitates the form of Python code and of answers, but not their content. To see what each adapter learned, look at the held-out losses in the first table instead of this text. Notebook 10 trains a real language model.
#
# **Predict.** A decode step of a whole model computes the next token of each of 32 rows. In one decode step each row uses a different adapter, and in another decode step all rows use the same adapter. By what factor is the first of these steps slower?

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
# The products with the base's weights take most of the time of a decode step. With one adapter and with 32 adapters, each of these products is computed only once per step. The library PEFT computes the adapters of a mixed batch one after another in every layer. PEFT's result is correct, but with 32 adapters PEFT is slow.
#
# ## Lab: three misleading checks of a merge
#
# Each of the three experiments combines two adapters. In each experiment, a check makes the combination look better or worse than it is. The held-out loss shows how good the combination really is. Write down your prediction before each experiment.
#
# ### 1. The average of an adapter and itself
#
# Suppose that two adapters compute the same logits. You average the factors of the two adapters: $\tfrac12 (A_1 + A_2)$ and $\tfrac12(B_1 + B_2)$. Then you check that each averaged number is the mean of the two original numbers. **Predict** the loss of the averaged adapter on the domain voice.

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
A1, A2, A3 = (layer.adapters[n].lora_A.value for n in ("voice", "twin", "average, linear"))
print("each number of A is the mean of the two:", np.allclose(A3, (A1 + A2) / 2), "\n")
show_losses(None, "voice", "twin", "average, linear", "average, cat")

# %% [markdown]
# The average of type `linear` has no effect. With this adapter, the model has the losses of the base. The second adapter has the factors $-A$ and $-B$. The second adapter computes the same outputs as the first adapter, because $(-B)(-A) = BA$. But the mean of $A$ and $-A$ is zero. Only the product $BA$ has a meaning. $A$ alone and $B$ alone have no meaning, because $(BM)(M^{-1}A) = BA$ for every invertible $M$, and each training run ends with a different $M$. The result of the type `linear` depends on $M$. The result of the type `cat` is $\sum w_i \Delta W_i$ and does not depend on $M$. The type `linear` multiplies both factors of adapter $i$ by $\sqrt{w_i}$. The next equation shows that the result of `linear` has two terms more than the result of `cat`:
#
# $$(\sqrt{w_1} B_1 + \sqrt{w_2} B_2)(\sqrt{w_1} A_1 + \sqrt{w_2} A_2) = w_1 B_1 A_1 + w_2 B_2 A_2 + \sqrt{w_1 w_2}\,(B_1 A_2 + B_2 A_1)$$
#
# Therefore this library reports the error of $\Delta W$ for every combination. The error compares the $\Delta W$ of the combination with the requested sum $\sum w_i \Delta W_i$.
#
# ### 2. A sum without error that is worse than the base
#
# The type `cat` gives exactly the requested sum of the two $\Delta W$. **Predict.** You combine the code adapter and the voice adapter, each with the weight 0.5. Is the combination's loss on code below the base's loss on code, equal to it, or above it?

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
# With the weights 0.5 and 0.5, the combination's loss on code is above the base's loss on code. The voice adapter with the weight 0.5 raises the loss on code more than the code adapter with the weight 0.5 lowers it. The printed error is zero. This is correct, because the error measures the distance between the combination and the *requested* sum. Only the loss on held-out text of each domain shows whether the requested sum is useful. Even if the weights of the two adapters add up to 1, the loss can be higher than the base's loss.
#
# ### 3. A large error that raises the loss only a little
#
# The sum of two adapters of rank 8 has rank 16. The type `svd` keeps only the 8 largest of the 16 singular directions of the sum, so the reported error is large. The *gain* of a combination is the base's loss minus the loss of the combination. **Predict.** By which share is the gain of `svd` smaller than the gain of `cat`? The next picture shows all combination types, each with the scale that gives its lowest loss. Each seed of the picture trains two adapters, for more steps than the adapters of this notebook. (The losses in the picture were measured on longer windows than the losses in the tables above, so the losses in the picture are lower.)

# %%
joined = Table.load("../figures/data/combinations.json")
plots.combinations_chart(joined);

# %%
both = {}  # the sum of the losses on code and voice, in the mean over the seeds
for kind in ("base", "cat", "svd", "linear"):
    runs = joined.where(kind=kind)
    both[kind] = mean(runs, "code") + mean(runs, "voice")
lines = [
    {
        "type": kind,
        "error of ΔW": mean(joined.where(kind=kind), "error"),
        "gain, both domains": both["base"] - both[kind],
        "of cat's gain": (both["base"] - both[kind]) / (both["base"] - both["cat"]),
    }
    for kind in ("cat", "svd", "linear")
]
show(lines, dict(zip(lines[0], ("", ".2f", ".2f", ".0%"), strict=True)))

# %% [markdown]
# The directions that `svd` removes contain a large part of the norm of $\Delta W$, but these directions hardly change the loss. With its best scale, even `linear` reaches most of the gain of `cat`. A large error of $\Delta W$ is still a useful warning. The types with the largest errors have the highest losses, and `cat`, which has no error, has the lowest loss. But the error of $\Delta W$ does not tell you how high the loss is, so measure the loss too.
#
# **Conclusions of the lab.** To judge a combination of adapters, compare the $\Delta W$ and never $A$ and $B$ separately. Then evaluate the merged model on held-out text of every domain for which you will use the model. Evaluate the model with the *stored* weights, because notebook 07 shows that rounding to 16, 8 or 4 bits can remove a small $\Delta W$. Keep the file of each adapter too, because only this file contains the adapter exactly as it was trained.
#
# ## A server
#
# Users do not send batches. They send single requests at different times. The class `AdapterServer` forms batches while requests arrive (*continuous batching*, [Yu et al. 2022](https://www.usenix.org/conference/osdi22/presentation/yu)). Between two steps, new requests join the batch and finished requests leave it. Each request is one row of the batch and names its adapter. **Predict.** The server in the next cell computes at most two rows at a time. In which order do the four requests of the next cell finish?

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
# The short requests finish while the long first request is still running. If you install the optional dependencies `serve`, you can start the server with an HTTP interface that uses OpenAI's protocol. The field `model` of an HTTP request names the adapter:
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
# Many adapters can share the weights of one base. In the study with "tiny", the base with a thousand adapters needs a tenth of the memory of a thousand merged models. In a mixed batch the product with $W$ is computed once for all rows, and only the small products with $A$ and $B$
# differ between the rows. A merged model gives the same outputs as the base with the adapter, up to rounding, and is as fast as the base alone. But a merged model can answer requests for one adapter only. The factors $A$ and $B$ have no meaning separately, so combine adapters by adding their $\Delta W$. Then evaluate the combination on held-out
# text of each domain.
#
# ## Three questions
#
# 1. Every row of a batch has a different adapter. Why is one product with $W$ still enough for the whole batch?
#
# <details><summary>Answer</summary>
#
# $W$ is the same for all rows. Only the bypass $s\,(x A^\top) B^\top$ depends on the adapter of the row, and the bypass is added after the product with $W$.
#
# </details>
#
# 2. In which case is a merged model better than a mixed batch?
#
# <details><summary>Answer</summary>
#
# A merged model is better if all requests use the same adapter. In this case a mixed batch has no advantage, and its bypass takes time in every layer.
#
# </details>
#
# 3. Two adapters have the same $\Delta W$. You average the matrices $A$ of the two adapters, and you average their matrices $B$. Why can the averaged adapter have a different $\Delta W$?
#
# <details><summary>Answer</summary>
#
# $(BM)(M^{-1}A) = BA$ for every invertible $M$. So the two adapters can have different factors $A$ and $B$ although their products $BA$ are equal. The product of the mean $B$ and the mean $A$ is usually not the mean of the two products $BA$.
#
# </details>
#
# ## Try
#
# 1. In experiment 1 let $M$ be a rotation: `M, _ = np.linalg.qr(rng.standard_normal((8, 8)))`, $A_2 = M^\top A$, $B_2 = BM$. How large is the error of $\Delta W$ with the type `linear` now? Suppose that both adapters have the same weight $w$. Does the error depend on $w$?
#
# <details><summary>Hint</summary>
#
# Use the same `M` in every layer. Combine the two adapters with the weights `[0.5, 0.5]`, and then with the weights `[0.2, 0.2]`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With both pairs of weights, the error is about 0.64 times the norm of the requested sum. If both weights are $w$, every term of the product has the factor $\sqrt{w}\sqrt{w} = w$, so the *relative* error does not depend on $w$.
#
# </details>
#
# 2. Combine the two adapters by `cat`, with the weight $c$ for the code adapter and the weight $1 - c$ for the voice adapter. What is the smallest $c$ for which the combination has a lower loss than the base on both domains?
#
# <details><summary>Hint</summary>
#
# Run the cell of experiment 2 with values of $c$ from 0.5 to 0.9.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The smallest $c$ is about 0.55. At $c = 0.55$ the combination's loss on code is 1.638 nats per byte, and the base's loss on code is 1.647. On the second domain, the keeper's voice, the combination has a far lower loss than the base for every $c$ in the table.
#
# </details>
#
# 3. From how many rows per segment on is the function `grouped` faster than the function `batched` on your machine?
#
# <details><summary>Hint</summary>
#
# With `idx = np.arange(32) // n`, every segment has $n$ rows. Measure the times of both functions for $n$ = 1, 2, 4, 8 and 16.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The number of rows depends on the machine, but a few rows per segment are enough. With more rows per segment there are fewer segments, so `grouped` needs fewer function calls. The function `batched` does not become faster if several rows share an adapter. The library uses the batched product for segments of at most `SMALL_SEGMENT` rows (`lora_np/peft/mixed.py`).
#
# </details>
#
# 4. The adapter "average, cat" of experiment 1 has rank 16 and the same $\Delta W$ as the voice adapter. Combine "average, cat" with the code adapter, first by the type `linear` and then by the type `svd`. Why does `linear` raise an error, although `svd` does not?
#
# <details><summary>Hint</summary>
#
# Read the error message, and write down the shapes of $A_1$ and $A_2$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The type `linear` adds the matrices $A$ of the two adapters. The shape of $A_1$ is (16, in) and the shape of $A_2$ is (8, in), so $A_1$ and $A_2$ cannot be added. The type `svd` adds the $\Delta W$ of the two adapters, and the shape of $\Delta W$ does not depend on the rank.
#
# </details>
