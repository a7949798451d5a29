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
# # The fine-tuning problem
#
# A GPU with 24 GB of memory can run a language model with seven billion parameters. The same GPU cannot fine-tune this model. Even a GPU with 80 GB has too little memory to fine-tune this model. Why does fine-tuning need so much memory, and which part of this memory do LoRA and QLoRA save?
#
# **You will learn** to
#
# - list the six parts of the memory that a training step needs, and compute the size of each part from the shapes of a model;
# - explain which parts become smaller with LoRA, with gradient checkpointing and with QLoRA, and which parts do not;
# - decide which method fits into the memory of a given GPU.
#
# **Before you start:** you know the matrix product and the idea of a gradient. A picture in this notebook shows the parts of a language model. Notebooks 03 and 03b explain how each part computes its gradients. If you have not seen LoRA, you may read
# [notebook 02](02_lora_from_one_equation.ipynb) first. For this notebook you only need to know that LoRA freezes each weight matrix $W$ and trains two small matrices $A$ and $B$ beside $W$.
#
# *Reading: 60 minutes. Tasks: 30 minutes. Running: about 20 seconds.*

# %%
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from IPython.display import Markdown, display
from ml_dtypes import bfloat16, finfo

import lora_np as ln
from lora_np import plots
from lora_np.report.results import Findings
from lora_np.studies.counting import memory
from lora_np.studies.harness.table import show
from lora_np.studies.timing.step_cost import training_peak

GB, MB = 1e9, 1e6
findings = Findings("../figures/")
seven = ln.costs.MODELS["llama-2-7b"]
print(f"{seven.name} has {seven.parameters:,} parameters.")
print(f"With 16 bits (2 bytes) each, they take {2 * seven.parameters / GB:.1f} GB.")

# %% [markdown]
# ## The result: six parts of memory
#
# The weights of the 7B model take 13.5 GB. A GPU that can hold the weights can *use* the model. **Predict.** How much memory is needed to *train* all parameters of the model: two, four or eight times the memory of the weights?

# %%
bill = memory.memory_bill()
plots.memory_bill(bill);

# %%
NAMES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
lines = []
for method, name in NAMES.items():
    row = bill.where(method=method, model=seven.name, checkpointing=True)[0]
    times = row["total"] / (2 * seven.parameters)
    lines.append({seven.name: name, "GB": row["total"] / GB, "times the weights": times})
show(lines, {seven.name: "", "GB": ".1f", "times the weights": ".2f"})

# %% [markdown]
# Full fine-tuning takes eight times the memory of the weights: sixteen bytes per parameter. The coral bars show the memory of full fine-tuning for each model. LoRA needs as much memory for the weights (grey) as full fine-tuning, and saves almost all other memory. QLoRA stores
# each frozen weight in about four bits, so the weights take less memory than with LoRA. The green parts of the bars stand for activations and temporary arrays (parts 5 and 6). *Activations* are arrays that the forward pass keeps for the backward pass. The white parts with a green edge show how much larger the activations are without gradient checkpointing. In this picture LoRA and QLoRA have adapters on all linear layers. With these adapters, the activations have almost the same size as the activations of full fine-tuning.
#
# The vertical lines stand for graphics cards (GPUs) with a memory of 24 GB, 48 GB or 80 GB. The upper panel shows only the line for 80 GB. If a bar ends to the left of a line, the training step fits into the memory of the GPU that the line stands for.
#
# The rest of this notebook explains each part of the memory. From the shapes of the arrays, the notebook computes the size of each part for the model tiny, which has a million parameters. Then the notebook *measures* the memory and compares the measured sizes with the computed sizes. The formulas also give the sizes of the parts for models
# that are too large to train on an ordinary computer.
#
# ## What fine-tuning does
#
# A training step computes the loss $L$ on a batch and the gradient $\partial L / \partial \theta$ for each parameter $\theta$ of the model. Then the step changes each parameter a little, in the direction opposite to the gradient.
#
# **Predict.** How many parameters of the model tiny does one training step change?

# %%
model = ln.load_model("tiny", device="numpy")
rows, length = 4, 128  # b and t: rows of the batch, and tokens per row
corpus = ln.data.corpus("code", "train")
batch = ln.data.Batches(corpus, batch_size=rows, seq_len=length)[0]  # (tokens, targets)

before = {name: p.value.copy() for name, p in model.named_parameters()}
ln.train(model, [batch], ln.AdamW(lr=1e-3, weight_decay=0.0), steps=1, progress=False)
changed = sum(int((p.value != before[name]).sum()) for name, p in model.named_parameters())
size = sum(p.value.size for _, p in model.named_parameters())
print(f"{changed:,} of {size:,} parameters changed: {changed / size:.2%}")

# %% [markdown]
# One training step changes all parameters of the model tiny. Each changed parameter needs a gradient, and AdamW, the usual optimizer, stores two more numbers per parameter. The gradients and AdamW's numbers take memory too.
#
# ## Part 1: the weights
#
# The model tiny and the Llama models have the same structure. Tokens become vectors of $d$ features (the *embedding*). The vectors pass through a sequence of *blocks*, which all have the same structure. At the end, the *output head* computes one number, the *logit*, for each token of
# the vocabulary. The next picture shows one block:

# %%
plots.block_diagram();

# %% [markdown]
# A block has two parts, attention and MLP. Each part normalises its input (RMSNorm), computes a result from the normalised input, and adds this result to the input. All large parameters are the matrices of *linear layers*, $y = xW^\top$ with $W$ of shape (out, in):
#
# | linear layer | shape of $W$ |
# |---|---|
# | `q_proj` | $(d_q, d)$ with $d_q = n\,d_h$: $n$ heads of size $d_h$ |
# | `k_proj`, `v_proj` | $(d_{kv}, d)$ with $d_{kv} = n_{kv}\,d_h$: $n_{kv}$ heads of keys and values |
# | `o_proj` | $(d, d_q)$ |
# | `gate_proj`, `up_proj` | $(f, d)$ |
# | `down_proj` | $(d, f)$ |
# | embedding and output head | (vocabulary, $d$) each, or one matrix for both ("tied") |
#
# Each norm has $d$ parameters. There are two norms per block and one norm after the last block. The number of all parameters is
#
# $$\text{parameters} = \text{layers} \cdot \underbrace{(2\,d\,d_q + 2\,d\,d_{kv} + 3\,d f + 2d)}_{\text{one block}} \;+\; d \;+\; \text{vocabulary} \cdot d \cdot (1 \text{ or } 2).$$

# %%
def parameters(d, d_q, d_kv, f, layers, vocabulary, tied):
    block = 2 * d * d_q + 2 * d * d_kv + 3 * d * f + 2 * d
    return layers * block + d + vocabulary * d * (1 if tied else 2)


tiny = parameters(128, 128, 64, 384, layers=5, vocabulary=256, tied=True)
llama = parameters(4096, 4096, 4096, 11008, layers=32, vocabulary=32000, tied=False)
lines = [
    {"model": "tiny", "by the formula": tiny, "in the model": size},
    {"model": seven.name, "by the formula": llama, "in the model": seven.parameters},
]
show(lines, {"model": "", "by the formula": ",", "in the model": ","})

# %% [markdown]
# ## Parts 2 and 3: gradients and optimizer state
#
# The backward pass stores a gradient $g = \partial L / \partial\theta$ for each parameter $\theta$. AdamW stores two more numbers for each parameter: $m$, the running mean of the gradient, and $v$, the running mean of the squared gradient. (In this section, $v$ does not mean the values of attention.)
# AdamW's update without weight decay, with the learning rate $\eta$, is
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \qquad \theta \leftarrow \theta - \eta\,\hat m/(\sqrt{\hat v} + \varepsilon)$$
#
# The symbols $\hat m$ and $\hat v$ stand for $m$ and $v$ with a correction, because $m$ and $v$ start at zero. The next training step needs $m$ and $v$ again, so both stay in memory. **Predict.** The weights of the model tiny are float32 numbers of 4 bytes. How many bytes per parameter do the weights, the gradients, $m$ and $v$ take together?

# %%
optimizer = ln.AdamW(lr=1e-3)
loss, cache = model.loss(*batch)
model.zero_grad()
model.backward(cache)
optimizer.step(model.named_parameters())

held = {
    "weights": sum(p.value.nbytes for _, p in model.named_parameters()),
    "gradients": sum(p.grad.nbytes for _, p in model.named_parameters()),
    "m and v": sum(x.nbytes for arrays in optimizer.state.values() for x in arrays.values()),
}
held["sum"] = sum(held.values())
lines = [
    {"part": part, "MB": n / MB, "bytes per parameter": n / size} for part, n in held.items()
]
show(lines, {"part": "", "MB": ".2f", "bytes per parameter": ".0f"})

# %% [markdown]
# In the model tiny, the weights, the gradients, $m$ and $v$ together take sixteen bytes per parameter. Large models are trained with numbers of 16 bits instead of 32 bits. Does training in 16 bits halve the memory?
#
# ## Part 4: the master copy
#
# Training in 16 bits does not halve the memory. An update is much smaller than the weight that it changes, and a 16-bit number has too few digits to store the sum of the weight and the update. **Predict.** A program adds the number 0.0001 to a weight of 1, and repeats this addition a thousand times. What is the final weight in float32, and what is the final weight in a 16-bit format?

# %%
lines = []  # most models are published in bfloat16, which ml_dtypes adds to NumPy
for format in (np.float32, np.float16, bfloat16):
    weight, update = format(1), format(1e-4)
    for _ in range(1000):
        weight = format(weight + update)
    gap = float(finfo(format).eps)
    lines.append({"format": format.__name__, "result": float(weight), "gap above 1": gap})
show(lines, {"format": "", "result": ".4f", "gap above 1": ".1e"})

# %% [markdown]
# In 16 bits the weight does not change, because each sum of the weight and 0.0001 is rounded to 1. The last column shows the gap between 1 and the next larger number of the format. In the 16-bit formats this gap is much larger than 0.0001.
#
# The solution is *mixed precision* ([Micikevicius et al. 2018](https://arxiv.org/abs/1710.03740)). The model computes with weights in 16 bits. The optimizer adds the updates to a copy of the weights in 32 bits, the *master copy*. With the master copy, a parameter again takes as many bytes as a parameter in float32 training:
#
# $$\underbrace{2}_{\text{weight}} + \underbrace{2}_{\text{gradient}} + \underbrace{4 + 4}_{m,\;v} + \underbrace{4}_{\text{master copy}} \;=\; 16 \text{ bytes per parameter}$$
#
# ([Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054), section 3.1). Some programs have no master copy and accept the rounding errors. The next table shows the memory of parts 1 to 4 for three recipes. A recipe says which arrays are stored in which format:
#
# - *float32:* all numbers are float32. The model tiny is trained with this recipe.
# - *mixed:* mixed precision with a master copy, 16 bytes per parameter as in the sum above.
# - *16-bit:* mixed precision without the master copy. Weights and gradients have 16 bits. In this recipe, too, AdamW's $m$ and $v$ are float32 numbers, so a parameter takes $2 + 2 + 4 + 4 = 12$ bytes.
#
# The table does not include the activations (part 5):

# %%
names = ("llama-2-7b", "llama-2-13b", "llama-65b", "llama-2-70b")
lines = []
for name, recipe in ln.costs.PRECISIONS.items():
    each = recipe.bytes_per_trained()
    sizes = {f"{m}, GB": each * ln.costs.MODELS[m].parameters / GB for m in names}
    lines.append({"recipe": name, "bytes": each} | sizes)
show(lines, {"recipe": "", "bytes": ""} | {f"{m}, GB": ",.0f" for m in names})

# %% [markdown]
# [Dettmers et al. (2023)](https://arxiv.org/abs/2305.14314), the QLoRA paper, write that fine-tuning a 65B model in 16 bits takes "more than 780 GB". The last row of the table shows the recipe "16-bit", without a master copy. In this row, the memory of the 65B model agrees with the 780 GB of the paper.
#
# ## Part 5: the activations
#
# The sizes of parts 1 to 4 depend only on the model and the recipe. The size of part 5, the activations, also depends on the batch. The gradient of a linear layer $y = xW^\top$ is
#
# $$\underset{\text{(out, in)}}{dW} = \underset{\text{(out, N)}}{dy^\top}\;\underset{\text{(N, in)}}{x}$$
#
# so the backward pass needs the layer's input $x$, which the forward pass computed. The other operations of the forward pass also keep arrays, because the backward pass needs these arrays to compute derivatives. All arrays kept for the backward pass are called *activations*. Nearly all activations have one row per token, so
# the memory of the activations grows with the number of tokens $N$.
#
# <details><summary>All activations of a block</summary>
#
# The batch has $N = b \cdot t$ tokens. If several layers read the same input $x$, this $x$ is stored once.
#
# | kept array | attention | MLP |
# |---|---|---|
# | input of the norm, and one factor per token | $N(d + 1)$ | $N(d + 1)$ |
# | $x$ of the layers after the norm | $N d$ | $N d$ |
# | outputs of these layers | $N(d_q + 2 d_{kv})$ | $2 N f$ |
# | attention weights, sums of the softmax, output of attention | about $\tfrac12 N t\,n$, $N n$ and $N d_q$ | – |
# | $x$ of the last layer | $N d_q$ | $N f$ |
#
# Outside the blocks, the model keeps arrays for the last norm, the input $x$ of the output head, and the logits ($N \cdot$ vocabulary). The model also keeps two numbers per token for the loss, and a small table of rotary angles. `lora_np/costs/activations.py` computes all these sizes.
#
# </details>
#
# **Predict.** In training, the weights, gradients and optimizer state of the model tiny take 16 bytes for each of the million parameters. Do the activations of 4 × 128 tokens take less memory than these 16 bytes per parameter, about as much, or more?
#
# The function `ln.costs.memory` computes the size of the activations from the shapes of the arrays. `tracemalloc`, a module of Python's standard library, measures the memory of all arrays that NumPy creates.

# %%
def kept(model, tokens, targets):
    """Measure the bytes that exist after a forward pass and did not exist before."""
    tracemalloc.start()
    cache = model.loss(tokens, targets)
    kept_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del cache  # the arrays must exist until here
    return kept_bytes


lines = []
for b in (1, 2, 4):
    from_shapes = ln.costs.memory(model, batch=b, seq=length).activations
    measured = kept(model, batch[0][:b], batch[1][:b])
    line = {"tokens": f"{b} × {length}", "from shapes": from_shapes / MB}
    lines.append(line | {"measured": measured / MB})
show(lines, {"tokens": "", "from shapes": ".1f", "measured": ".1f"})
print(f"parts 1 to 3 together: {16 * size / MB:.1f}; all sizes are in MB")

# %% [markdown]
# The activations of 4 × 128 tokens take more memory than parts 1 to 3 together. If the number of tokens doubles, the memory of the activations doubles too. In a small model the activations take most of the memory. In a large model with few tokens, parts 1 to 4 (sixteen bytes per parameter) take most of the memory. The reason is that the number of parameters grows with $d^2$, but the number of activations grows with $d$.
#
# ## Part 6: temporary arrays, and the peak
#
# Temporary arrays exist only for a part of the training step. Examples are the gradients that the backward pass hands from layer to layer, and products that are soon added to another array. The memory of an array that is no longer needed is used for later arrays. So the memory that a training step needs is the *peak*: the largest total size of the arrays that exist at the same time.
# The file `lora_np/costs/temporaries.py` computes the sizes of the temporary arrays.
#
# From the shapes of the arrays, the next cell computes the sizes of all parts for the model tiny. Then the cell compares the sum of the parts with the peak that `tracemalloc` measures in two real training steps.

# %%
full = ln.costs.memory(model, batch=rows, seq=length)
peak = training_peak(model, [batch]) + full.weights  # training_peak leaves out the weights
lines = [{"part": part, "MB": n / MB} for part, n in vars(full).items() if n]
lines += [{"part": "sum from shapes", "MB": full.total / MB}]
lines += [{"part": "measured", "MB": peak / MB}]
show(lines, {"part": "", "MB": ".2f"})
print(f"\nmeasured / computed - 1 = {peak / full.total - 1:+.1%}")

# %% [markdown]
# The sum computed from shapes differs from the measured peak by at most about one percent. So we can now use the formulas for models that are too large to train in this notebook.
#
# ## What LoRA changes
#
# LoRA freezes $W$ and trains $A$ and $B$. **Predict.** Compare LoRA with full fine-tuning. Which parts of the memory become much smaller, which parts keep their size, and which parts grow? The next cell compares an adapter on all linear layers of the model tiny with an adapter only on the layers for queries and values.

# %%
def adapted(target_modules):
    config = ln.LoraConfig(r=8, lora_alpha=16, target_modules=target_modules)
    return ln.get_peft_model(ln.load_model("tiny", device="numpy"), config)


all_linear, q_and_v = adapted("all-linear"), adapted(["q_proj", "v_proj"])
models = {"full": model, "LoRA, all linear": all_linear, "LoRA, q and v": q_and_v}
costs = {name: ln.costs.memory(m, batch=rows, seq=length) for name, m in models.items()}
lines = [
    {"MB": part} | {name: getattr(cost, part) / MB for name, cost in costs.items()}
    for part in vars(full)
    if part != "master"
]
lines.append({"MB": "sum"} | {name: cost.total / MB for name, cost in costs.items()})
peaks = {name: training_peak(m, [batch]) + costs[name].weights for name, m in models.items()}
lines.append({"MB": "measured"} | {name: n / MB for name, n in peaks.items()})
show(lines, {"MB": ""} | dict.fromkeys(models, ".2f"))

# %% [markdown]
# - The **weights** take as much memory as in full fine-tuning, because the forward pass still uses the frozen weights. The matrices of the adapter take a little memory in addition.
# - **Gradients**, **optimizer state** and a master copy exist only for the adapter. A frozen parameter needs no gradient, no optimizer state and no master copy.
# - The size of the **activations** depends on which layers have an adapter. A layer with an adapter keeps its input $x$. LoRA does not compute $dW = dy^\top x$. But LoRA computes $dA = dh^\top x$, which needs the same $x$. In this equation, $dh$ is the gradient with respect to $h = xA^\top$, the output of $A$. To compute $dB$, LoRA also keeps $h$. A frozen linear layer without an adapter does not keep its input $x$.
#   - *Adapters on all linear layers:* only the frozen output head does not keep its input $x$. In the model tiny, the $x$ of the head takes less memory than the $h$ of all layers together. So the activations are slightly *larger* than in full fine-tuning.
#   - *Adapters on queries and values only:* most layers have no adapter and do not keep their $x$. So the activations become smaller, as the last column of the table shows.
# - The **temporary arrays** take slightly more memory than in full fine-tuning. The reason is that LoRA computes two gradients $dx$ and then adds them: one for the path through $W$ and one for the path through $A$ and $B$.
#
# In the model tiny the activations take most of the memory, so LoRA on all linear layers saves only a small share of the memory. On a 7B model in mixed precision, the saved share is much larger:

# %%
methods = {"full": None, "lora": ln.LoraConfig(r=16, target_modules="all-linear")}
lines = []
for b in (1, 4, 16, 64):
    step = {"batch": b, "seq": 512, "precision": "mixed"}
    whole, lora = (ln.costs.memory(seven, config, **step) for config in methods.values())
    line = {"tokens": f"{b} × 512", "full": whole.total / GB, "LoRA": lora.total / GB}
    line["LoRA / full"] = lora.total / whole.total
    line["LoRA's activations"] = lora.activations / GB
    lines.append(line)
print(f"{seven.name}, GB")
columns = {"tokens": "", "full": ".0f", "LoRA": ".0f", "LoRA / full": ".0%"}
show(lines, columns | {"LoRA's activations": ".1f"})

# %% [markdown]
# With few tokens in the batch, LoRA needs only a small share of the memory of full fine-tuning. With many tokens, the activations take most of LoRA's memory, and LoRA on all linear layers hardly changes the activations. Gradient checkpointing, the method of the next section, makes the activations smaller.
#
# ## Gradient checkpointing
#
# Gradient checkpointing keeps only the *input* of each block, which has $N d$ numbers. When the backward pass reaches a block, the block's forward pass runs again ([Chen et al. 2016](https://arxiv.org/abs/1604.06174)). So gradient checkpointing costs a second forward pass. The arrays that this second forward pass creates count as temporary arrays, not as activations.
#
# **Predict.** In full fine-tuning each linear layer has three products: $xW^\top$, $dy\,W$ and $dy^\top x$. A second forward pass computes $xW^\top$ again. This product adds about one third to the operations of a step. With LoRA, does the second forward pass add less or more than one third to the operations of a step?

# %%
lines = []
for method, config in methods.items():
    without, saved = (
        ln.costs.memory(seven, config, batch=16, seq=512, precision="mixed", checkpointing=on)
        for on in (False, True)
    )
    work = ln.costs.flops(seven, config, batch=16, seq=512)
    in_blocks = work.products.forward - work.head.forward  # the head is not in a block
    line = {"method": NAMES[method], "activations, GB": without.activations / GB}
    line |= {"checkpointed, GB": saved.activations / GB}
    lines.append(line | {"added operations": in_blocks / work.total})
columns = {"method": "", "activations, GB": ".1f", "checkpointed, GB": ".1f"}
show(lines, columns | {"added operations": ".0%"})

# %% [markdown]
# With LoRA the second forward pass adds more than one third to the operations of a step: nearly one half. LoRA does not compute $dW$, so a frozen layer has only two large products, $xW^\top$ and $dy\,W$. The second forward pass repeats one of these two products. In full fine-tuning, the second forward pass repeats one of three products.
#
# Without checkpointing, the activations of LoRA and of full fine-tuning have almost the same size in this table. Only LoRA keeps $h$, and only full fine-tuning keeps the input $x$ of the output head. In this model, the arrays $h$ of all layers together have about the same size as the $x$ of the output head. With checkpointing, LoRA keeps neither $h$ nor the $x$ of the output head. So with checkpointing the activations of LoRA are a little smaller than the activations of full fine-tuning.
#
# The first picture of this notebook shows the memory with checkpointing. In this picture, the hollow parts of the bars show how much memory checkpointing saves.
#
# In `lora_np`, one call switches gradient checkpointing on. The method has the same name as in the library `transformers`. The next cell runs a LoRA step of the model tiny without and with checkpointing, and measures the peak of the memory and the processor time. The second forward pass draws the same dropout masks as the first forward pass, so checkpointing does not change a single bit of the gradients.

# %%
config = ln.LoraConfig(r=8, target_modules="all-linear")
lora = ln.get_peft_model(ln.load_model("tiny"), config)
switch = {"off": lora.gradient_checkpointing_disable, "on": lora.gradient_checkpointing_enable}


def step_seconds():
    """Measure the processor time of a forward pass and a backward pass."""
    began = time.process_time()
    cache = lora.loss(*batch)[1]
    lora.backward(cache)
    return time.process_time() - began


seconds = {name: [] for name in switch}
for _ in range(10):  # in turns
    for name, call in switch.items():
        call()
        seconds[name].append(step_seconds())
lines = []
for name, call in switch.items():
    call()
    computed = ln.costs.memory(lora, batch=rows, seq=length, checkpointing=name == "on")
    line = {"checkpointing": name, "measured, MB": training_peak(lora, [batch]) / MB}
    line |= {"computed, MB": (computed.total - computed.weights) / MB}
    ratio = np.median(seconds[name]) / np.median(seconds["off"])
    lines.append(line | {"time of a step": ratio})
columns = {"checkpointing": "", "measured, MB": ".1f", "computed, MB": ".1f"}
show(lines, columns | {"time of a step": ".2f"})

# %% [markdown]
# The last column shows the time of a step, divided by the time of a step without checkpointing.
#
# ## What QLoRA changes
#
# With LoRA and checkpointing, only the frozen weights take much memory. Frozen weights are never updated, so they do not need high precision. QLoRA stores the frozen weights in *NF4*. In NF4, four bits per weight select one of sixteen values. Each block of 64 weights
# has a scale, a float32 number. *Double quantisation* replaces each scale by a number of 8 bits. Notebook 07 explains NF4 and double quantisation.

# %%
display(Markdown(findings.say("memory.nf4.bits")))

# %%
lora = methods["lora"]
cases = {"full": (None, None), "lora": (lora, None), "qlora": (lora, "nf4")}
lines = []
for method, (config, quantize) in cases.items():
    step = {"batch": 1, "seq": 512, "precision": "mixed", "checkpointing": True}
    cost = ln.costs.memory("llama-65b", config, quantize=quantize, **step)
    frozen = 0 if method == "full" else cost.weights
    line = {"llama-65b, GB": NAMES[method], "frozen weights": frozen / GB}
    line |= {"other": (cost.total - frozen) / GB, "sum": cost.total / GB}
    lines.append(line | {"GPU with 48 GB": "enough" if cost.fits(48) else "too small"})
columns = {"llama-65b, GB": "", "frozen weights": ".1f", "other": ".1f", "sum": ".1f"}
show(lines, columns | {"GPU with 48 GB": ""})

# %% [markdown]
# The abstract of the QLoRA paper says that QLoRA can fine-tune a "65B parameter model on a single 48GB GPU". The sum for QLoRA in the table is indeed below 48 GB. (The frozen weights of QLoRA take slightly more than four bits per parameter, because the embedding, the output head and the norms stay in 16 bits.) Three methods together make the sum this small: LoRA (no gradients and no optimizer state for frozen weights), gradient checkpointing, and frozen weights in four bits.
#
# The sums in the table do not include the memory of the libraries and the unused gaps between arrays. So a real GPU needs a little more memory than the table shows.
#
# ## Two more problems of full fine-tuning
#
# **One copy per task.** Full fine-tuning gives a complete new model for each task. LoRA gives a small file, the adapter, for each task. All tasks share one base. **Predict.** A 7B model is fine-tuned for a thousand tasks. How much disk space do a thousand complete models take? How much disk space do one base and a thousand adapters take?

# %%
adapter = ln.costs.count(seven, lora).trainable
base_size, adapter_size = 2 * seven.parameters, 2 * adapter  # 16 bits
lines = []
for n in (1, 10, 100, 1000):
    shared = (base_size + n * adapter_size) / GB
    lines.append({"tasks": n, "copies, GB": n * base_size / GB, "base + adapters, GB": shared})
show(lines, {"tasks": "", "copies, GB": ",.0f", "base + adapters, GB": ",.1f"})

# %% [markdown]
# The next cell measures the size of two files: the model tiny, and its adapter on all linear layers:

# %%
lines = []
with TemporaryDirectory() as folder:
    ln.save_model(model, f"{folder}/model")
    all_linear.save_pretrained(f"{folder}/adapter")
    for name in ("model", "adapter"):
        files = Path(folder, name).rglob("*.safetensors")
        lines.append({"file": name, "MB": sum(path.stat().st_size for path in files) / MB})
show(lines, {"file": "", "MB": ".2f"})

# %% [markdown]
# The model tiny has a small hidden size, so its adapter is large compared with the model. A square matrix ($d \times d$) has $d^2$ parameters, and its adapter has $2rd$ parameters. The ratio $2rd / d^2 = 2r/d$ falls as $d$ grows. Notebook 08 uses one base for many adapters.
#
# **Forgetting.** Full fine-tuning changes all parameters, so the model may forget what it knew. Notebook 10 measures forgetting on SmolLM2-135M, a model that is trained to write like a lighthouse keeper. Each method was run three times, each time with another *seed*. The seed is a number that fixes all random choices, for example the order of the batches. *Other prose* is text that does not have the voice of the lighthouse keeper:

# %%
display(Markdown(findings.say("finetuning.prose")))

# %% [markdown]
# The model forgets with both methods, LoRA and full fine-tuning. In this study the model forgets slightly more with LoRA than with full fine-tuning. But with LoRA the base still exists. Without the adapter, the model equals the base bit for bit. After full fine-tuning, the base exists only if you have kept a copy.
#
# ## Recap
#
# | part | full fine-tuning | LoRA | QLoRA |
# |---|---|---|---|
# | weights | 16 bits each | 16 bits each, frozen | about 4 bits each, frozen |
# | gradients, $m$ and $v$, master copy | for all parameters | for the adapter | for the adapter |
# | activations | grow with the tokens | with LoRA on all linear layers, almost as large as in full fine-tuning | as in LoRA |
# | file per task | a whole model | an adapter | an adapter |
#
# Full fine-tuning takes sixteen bytes per parameter, plus the activations. LoRA removes the gradients, the optimizer state and the master copy of the frozen weights. Checkpointing makes the activations smaller and costs a second forward pass. QLoRA makes the frozen weights smaller.
#
# ## Three questions
#
# 1. Why does a frozen parameter need no $m$ and no $v$?
#
# <details><summary>Answer</summary>
#
# $m$ is the running mean of a parameter's gradient, and $v$ is the running mean of the squared gradient. AdamW needs $m$ and $v$ to update the parameter. A frozen parameter is not updated, so it needs no gradient, no $m$ and no $v$.
#
# </details>
#
# 2. If the batch has twice as many rows, which of the parts 1 to 5 takes twice as much memory?
#
# <details><summary>Answer</summary>
#
# The activations (part 5) take twice as much memory. The sizes of the weights, the gradients, the optimizer state and the master copy do not depend on the batch.
#
# </details>
#
# 3. Why does LoRA on all linear layers hardly change the size of the activations, although LoRA does not compute $dW$?
#
# <details><summary>Answer</summary>
#
# The gradient of $A$ is $dA = dh^\top x$. To compute $dA$, LoRA needs the same $x$ that full fine-tuning needs to compute $dW = dy^\top x$. Only the frozen output head does not keep its $x$. In addition, LoRA keeps $h$ in each layer with an adapter.
#
# </details>
#
# ## Try
#
# `python -m lora_np memory --help` explains the command that tasks 1 and 2 use. Run this command in a terminal.
#
# 1. `python -m lora_np memory --model llama-2-7b --method full --precision mixed` prints the parts and the sum for full fine-tuning of the 7B model. Is the sum below 80 GB with `--precision 16-bit`, which has no master copy? Which other values of `--method` bring the sum below 24 GB?
#
# <details><summary>Hint</summary>
#
# First multiply the number of parameters of the model by the bytes per parameter of the recipe "16-bit". Then run the command with other values of `--method`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No: without the master copy the sum is 81 GB, slightly more than 80 GB. `--method lora` brings the sum to 14 GB, and `--method qlora` brings the sum to less than 5 GB. With `lora` and with `qlora`, gradients, optimizer state and master copy exist only for the adapter.
#
# </details>
#
# 2. Run `python -m lora_np memory --model llama-2-7b --method qlora --seq 512`. Increase `--seq`, the number of tokens per row, until the sum reaches 24 GB. Then add `--no-checkpointing`, and find again the `--seq` at which the sum reaches 24 GB. Which part of the memory is the largest with checkpointing, and which is the largest without checkpointing?
#
# <details><summary>Hint</summary>
#
# Double `--seq` each time, and look for the part of the memory that grows most.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With checkpointing, the sum reaches 24 GB between 17,000 and 17,500 tokens. The temporary arrays of attention are then the largest part, and the activations are the second largest part. Without checkpointing, the sum reaches 24 GB between 2,000 and 4,000 tokens. The activations are then
# by far the largest part.
#
# </details>
#
# 3. The optimizer SGD with momentum stores one number per parameter (`slots=1` in `ln.costs.memory`), and plain SGD stores no number (`slots=0`). How many GB does full fine-tuning of the 7B model take with each of these two optimizers? Why is AdamW used, although AdamW stores two numbers per parameter?
#
# <details><summary>Hint</summary>
#
# `ln.costs.memory(seven, batch=1, seq=512, precision="mixed", checkpointing=True, slots=1).total / GB`
#
# </details>
#
# <details><summary>Answer</summary>
#
# Full fine-tuning takes 81 GB with momentum (12 bytes per parameter) and 54 GB with plain SGD (8 bytes per parameter). Each number that the optimizer stores takes 4 bytes, because mixed precision stores the optimizer state in float32. AdamW divides the update of each parameter by the typical size of the gradient of this parameter.
# The gradients of a Transformer's layers have very different sizes, so plain SGD needs many more steps than AdamW, or fails.
#
# </details>
#
# 4. Set `rows` to 1 and then to 16 in the cell under "What fine-tuning does". Each time, run this cell again, and then all cells of the sections "Part 6" and "What LoRA changes". For the model tiny, divide the memory of LoRA on all linear layers by the memory of full fine-tuning. How does this ratio change with `rows`, and why?
#
# <details><summary>Hint</summary>
#
# Look at the table under "What LoRA changes", and compare the activations with the other parts of the memory.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With 1 row, LoRA takes 56 % of the memory of full fine-tuning. The ratio is 79 % with 4 rows and 94 % with 16 rows. LoRA makes only the gradients and the optimizer state smaller, and the size of these two parts does not depend on the number of rows. The activations grow with the number of rows, and have about the same size for LoRA and for full fine-tuning.
#
# </details>
#
# Continue with [LoRA from one equation](02_lora_from_one_equation.ipynb).
