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
# A graphics card of 24 GB holds a language model of seven billion numbers and answers questions with it. It cannot *fine-tune* that model; nor can a card of 80 GB. This
# notebook adds up why, and what LoRA and QLoRA change in the sum.

# %%
import numpy as np

import lora_np as ln
from lora_np import plots
from lora_np.studies.counting import memory
from lora_np.studies.harness.table import Table, show

GB, MB = 1e9, 1e6
seven = ln.costs.MODELS["llama-2-7b"]
print(f"{seven.name}: {seven.parameters:,} numbers, in 16 bits {2 * seven.parameters / GB:.1f} GB")

# %% [markdown]
# **Predict before you go on.** That is what it takes to *use* the model. How many times as much does it take to train all of it: twice, four times, eight times?

# %%
bill = memory.memory_bill()
plots.memory_bill(bill);

# %%
for method in ("full", "lora", "qlora"):
    row = bill.where(method=method, model=seven.name, checkpointing=True)[0]
    print(f"{method:6}{row['total'] / GB:6.1f} GB, {row['total'] / (2 * seven.parameters):.2f} times the weights in 16 bits")

# %% [markdown]
# Eight times. The coral bar is that long for every model, sixteen bytes for each number it has. LoRA keeps the weights, in grey, and does away with nearly all the rest; QLoRA then shrinks
# the grey. One thing neither of them shrinks: the activations, green and hollow.
#
# Now where each part comes from. The plan: derive it from shapes, *measure* it on "tiny", a model of a million numbers that trains in this notebook, and only then
# believe the same formula for a model that no ordinary computer can train.
#
# ## What fine-tuning is
#
# A training step computes the loss $\mathcal{L}$ on a batch, its gradient with respect to every number $\theta$ of the model, and moves each a little against it. **Predict.** What share of tiny's
# numbers does one step change?

# %%
model = ln.load_model("tiny", device="numpy")
rows, length = 4, 128  # a batch: sequences, and tokens in each
batch = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=rows, seq_len=length)[0]  # tokens, targets

before = {name: p.value.copy() for name, p in model.named_parameters()}
ln.train(model, [batch], ln.AdamW(lr=1e-3, weight_decay=0.0), steps=1, progress=False)
changed = sum(int((p.value != before[name]).sum()) for name, p in model.named_parameters())
P = sum(p.value.size for _, p in model.named_parameters())
print(f"{changed:,} of {P:,} numbers changed: {changed / P:.2%}")

# %% [markdown]
# All of them. So each needs a gradient, and a place to remember how it moved; that is the bill.
#
# ## 1. The weights
#
# A Llama of width $d$ has $L$ equal blocks. Attention has queries and outputs of $q$ features, keys and values of $k$; the MLP has width $f$; $V$ is the vocabulary.
#
# | in each block | shape | | outside | shape |
# |---|---|---|---|---|
# | $W_q$, $W_o$ | (q, d), (d, q) | | embedding | (V, d) |
# | $W_k$, $W_v$ | (k, d) each | | output head | (V, d), or the embedding again |
# | gate, up, down | (f, d), (f, d), (d, f) | | last norm | (d,) |
# | two norms | (d,) each | | | |
#
# $$P = L\,(2dq + 2dk + 3df + 2d) + d + Vd \cdot (1 \text{ or } 2)$$

# %%
def parameters(a):
    """P of a model on paper."""
    d, L, V = a.hidden, a.layers, a.vocabulary
    shapes = {linear.name.rpartition(".")[2]: (linear.out, linear.in_) for linear in a.linears}
    q, k, f = shapes["q_proj"][0], shapes["k_proj"][0], shapes["up_proj"][0]
    return L * (2 * d * q + 2 * d * k + 3 * d * f + 2 * d) + d + V * d * (1 if a.tied else 2)


c = model.config
tiny = ln.costs.llama("tiny", c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.intermediate_size, c.vocab_size, c.tie_word_embeddings)
print(f"tiny        {parameters(tiny):>13,} by the formula   {P:>13,} in its arrays")
print(f"{seven.name}  {parameters(seven):>13,} by the formula   {seven.parameters:>13,} by the library's costs")

# %% [markdown]
# ## 2. The gradients, and 3. the optimizer's state
#
# The backward pass makes a $g = \partial\mathcal{L}/\partial\theta$ for each $\theta$, in an array of the same shape. AdamW remembers two more numbers for each: the running mean of the gradient
# and of its square (weight decay left out here),
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \qquad \theta \leftarrow \theta - \eta\,\hat m/(\sqrt{\hat v} + \varepsilon)$$
#
# They are needed again in the next step, so they stay. **Predict.** How many bytes does tiny, in float32, hold for each of its numbers?

# %%
optimizer = ln.AdamW(lr=1e-3)
loss, cache = model.loss(*batch)
model.zero_grad()
model.backward(cache)
optimizer.step(model.named_parameters())

held = {
    "weights": sum(p.value.nbytes for _, p in model.named_parameters()),
    "gradients": sum(p.grad.nbytes for _, p in model.named_parameters()),
    "m and v": sum(x.nbytes for slots in optimizer.state.values() for x in slots.values()),
}
for item, size in held.items():
    print(f"{item:12}{size / MB:6.2f} MB, {size / P:.0f} bytes a number")
print(f"{'sum':12}{sum(held.values()) / MB:6.2f} MB, {sum(held.values()) / P:.0f} bytes a number")

# %% [markdown]
# Sixteen. A large model is trained in 16 bits; does that halve it?
#
# ## 4. The master copy
#
# No, because an update is much smaller than its weight, and 16 bits have no room for both. **Predict.** A weight of 1 is moved by 0.0001, a thousand times. Where does it end?

# %%
from ml_dtypes import bfloat16, finfo  # NumPy has no bfloat16, the format that most models are published in

for format in (np.float32, np.float16, bfloat16):
    weight, update = format(1), format(1e-4)
    for _ in range(1000):
        weight = format(weight + update)
    print(f"{format.__name__:9}{float(weight):.4f}   the next number after 1 is 1 + {float(finfo(format).eps):.1e}")

# %% [markdown]
# In 16 bits it never moves: each sum is rounded back to 1. The cure is *mixed precision*
# ([Micikevicius et al. 2018](https://arxiv.org/abs/1710.03740)): multiply with weights in 16 bits, but add the updates to a copy of them in 32, the master copy. So
#
# $$\text{bytes a number} \;=\; \underbrace{2}_{\text{weight}} + \underbrace{2}_{\text{gradient}} + \underbrace{4 + 4}_{m,\;v} + \underbrace{4}_{\text{master}} \;=\; 16$$
#
# again. This is where the "16 bytes a parameter" that one reads comes from ([Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054), section 3.1). Some leave the master copy out, and take the
# rounding. Each recipe, and what it makes of published models before a single token is read:

# %%
names = ("llama-2-7b", "llama-2-13b", "llama-65b", "llama-2-70b")
lines = []
for name, recipe in ln.costs.PRECISIONS.items():
    per_number = recipe.bytes_per_trained()
    sizes = {f"{m}, GB": per_number * ln.costs.MODELS[m].parameters / GB for m in names}
    lines.append({"recipe": name, "bytes a number": per_number} | sizes)
show(lines, {"recipe": "", "bytes a number": ""} | {f"{m}, GB": ",.0f" for m in names})

# %% [markdown]
# [Dettmers et al. (2023)](https://arxiv.org/abs/2305.14314), the QLoRA paper, write that fine-tuning 65B in 16 bits takes "more than 780 GB": the last row.
#
# ## 5. The activations
#
# The first four items depend on the model alone. The fifth depends on what it reads. The gradient of a layer $y = xW^\top$ is
#
# $$dW = dy^\top x$$
#
# so its input $x$, made on the way up, must still be there on the way down. In the same way every operation keeps what its derivative needs. For $N$ tokens in sequences of $t$, in
# each block (a norm keeps its $x$ and one number; $x$ of several layers that read the same is kept once):
#
# | | attention half | MLP half |
# |---|---|---|
# | norm | $N(d + 1)$ | $N(d + 1)$ |
# | $x$ of the layers that read the norm | $Nd$ | $Nd$ |
# | what they make | $N(q + 2k)$ | $2Nf$ |
# | scores, their sums and the output | about $\tfrac12 N t \cdot \text{heads}$, $N \cdot \text{heads}$, $Nq$ | |
# | $x$ of the layer that writes | $Nq$ | $Nf$ |
#
# On top of the blocks come the last norm, the head's $x$, the logits ($NV$), two numbers a token of the loss, and a small table of rotary angles.

# %%
from lora_np.costs.flops import causal_scores
from lora_np.ops.attention import BLOCK  # queries go through attention in blocks, each with the keys it can see


def activations(a, rows, t):
    """Numbers that the forward pass keeps, everything trained."""
    N, d, heads = rows * t, a.hidden, a.heads
    shapes = {linear.name.rpartition(".")[2]: (linear.out, linear.in_) for linear in a.linears}
    q, k, f = shapes["q_proj"][0], shapes["k_proj"][0], shapes["up_proj"][0]
    attention = N * (d + 1) + N * d + N * (q + 2 * k) + rows * heads * causal_scores(t, BLOCK) + N * heads + N * q + N * q
    mlp = N * (d + 1) + N * d + 2 * N * f + N * f
    top = N * (d + 1) + N * d + N * a.vocabulary + 2 * N
    return a.layers * (attention + mlp) + top + 2 * t * a.head_dim


# %% [markdown]
# **Predict.** tiny holds 16 bytes for each of its million numbers. Beside that, is what it keeps of 4 × 128 tokens little, about the same, or more? `tracemalloc`, from Python's own library, sees every
# array that NumPy makes.

# %%
import tracemalloc


def kept(model, tokens, targets):
    """Bytes that are there after a forward pass and were not before."""
    tracemalloc.start()
    cache = model.loss(tokens, targets)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del cache  # it has to live until here
    return size


print(f"16 bytes a number: {16 * P / MB:.1f} MB")
for n in (1, 2, 4):
    by_formula = 4 * activations(tiny, n, length) + 8 * n * length  # and the targets, as 64-bit integers
    print(f"{n} × {length} tokens: {by_formula / MB:5.1f} MB from shapes, {kept(model, batch[0][:n], batch[1][:n]) / MB:5.1f} MB measured")
print("the last by the library's costs, the same to the byte:", by_formula == ln.costs.memory(model, batch=n, seq=length).activations)

# %% [markdown]
# More, and twice the batch keeps twice as much. A small model is mostly activations; a large one on few tokens is mostly its sixteen bytes, because $P$ grows with $d^2$ and activations with $d$.
#
# ## 6. The temporaries, and the peak
#
# What remains is working memory: gradients on their way down, products before they are added. It is reused all the time, and what counts is the worst moment of the step. Which moment that is
# takes some bookkeeping, and `lora_np/costs/temporaries.py` does it. The whole bill, for tiny as it stands, against the largest sum that `tracemalloc` saw in two real steps of training:

# %%
from lora_np.studies.timing.step_cost import training_peak

full = ln.costs.memory(model, batch=rows, seq=length)
full_peak = training_peak(model, [batch]) + full.weights  # the weights were there before it looked
for item, size in vars(full).items():
    if size:
        print(f"{item:12}{size / MB:7.2f} MB")
print(f"{'sum':12}{full.total / MB:7.2f} MB from shapes\n{'':12}{full_peak / MB:7.2f} MB measured: {full_peak / full.total - 1:+.1%}")

# %% [markdown]
# Shapes alone foretell a real training step to within a per cent. Now we may use them where we cannot measure.
#
# ## What LoRA changes
#
# LoRA freezes $W$ and trains $A$ and $B$ beside it (notebook 02). **Predict**, item by item, with adapters on all linear layers of tiny: which become much smaller, which stay, and does one grow?

# %%
def adapted(target_modules):
    return ln.get_peft_model(ln.load_model("tiny", device="numpy"), ln.LoraConfig(r=8, lora_alpha=16, target_modules=target_modules))


models = {"full": model, "LoRA, all linear": adapted("all-linear"), "LoRA, q and v": adapted(["q_proj", "v_proj"])}
bills = {name: ln.costs.memory(m, batch=rows, seq=length) for name, m in models.items()}
print(f"{'MB':16}" + "".join(f"{name:>18}" for name in bills))
for item in vars(full):
    if item != "master":
        print(f"{item:16}" + "".join(f"{getattr(b, item) / MB:18.2f}" for b in bills.values()))
print(f"{'sum':16}" + "".join(f"{b.total / MB:18.2f}" for b in bills.values()))
print(f"{'measured':16}" + "".join(f"{(training_peak(models[name], [batch]) + b.weights) / MB:18.2f}" for name, b in bills.items()))
print(f"{'of full':16}" + "".join(f"{b.total / full.total:18.0%}" for b in bills.values()))

# %% [markdown]
# - **Weights** stay: the frozen model is still multiplied with. The adapter is added.
# - **Gradients** and **optimizer state** shrink to those of the adapter, and a master copy would too. A frozen number needs none.
# - **Activations** do not shrink. $dW = dy^\top x$ is gone, but $dA = dh^\top x$ needs the same $x$, and $dB = dy^\top h$ needs $h = xA^\top$ besides: with adapters everywhere LoRA keeps *more*. Only a layer
#   without an adapter has no need of its $x$, as the third column shows.
#
# So on tiny, which is mostly activations, LoRA saves little. The same on paper for 7B, in mixed precision:

# %%
on_paper = {"full": None, "lora": ln.LoraConfig(r=16, target_modules="all-linear")}
lines = []
for n in (1, 4, 16, 64):
    f, l = (ln.costs.memory(seven, config, batch=n, seq=512, precision="mixed") for config in on_paper.values())
    sizes = {"full": f.total / GB, "LoRA": l.total / GB, "of full": l.total / f.total, "activations of LoRA": l.activations / GB}
    lines.append({"GB": f"{n} × 512 tokens"} | sizes)
print(seven.name)
show(lines, {"GB": "", "full": ".0f", "LoRA": ".0f", "of full": ".0%", "activations of LoRA": ".1f"})

# %% [markdown]
# On few tokens LoRA takes about a seventh; on many, activations are nearly all there is, with LoRA as without. The remedy is not LoRA's.
#
# ## Gradient checkpointing
#
# Keep of each block its input alone, $Nd$ numbers, and run the block forward again when the backward pass comes to it ([Chen et al. 2016](https://arxiv.org/abs/1604.06174)). The price is a second forward
# pass. **Predict.** For full fine-tuning, which multiplies three times a layer ($xW^\top$, $dy\,W$, $dy^\top x$), that is about a third more work. What is it for LoRA?

# %%
for method, config in on_paper.items():
    without, saved = (ln.costs.memory(seven, config, batch=16, seq=512, precision="mixed", checkpointing=on) for on in (False, True))
    work = ln.costs.flops(seven, config, batch=16, seq=512)
    again = (work.products.forward - work.head.forward) / work.total  # the head is not in a block
    print(f"{method:6}activations {without.activations / GB:5.1f} → {saved.activations / GB:4.1f} GB,  temporaries {without.temporaries / GB:4.2f} → {saved.temporaries / GB:4.2f} GB,  {again:.0%} more operations")

# %% [markdown]
# Nearly half: LoRA has no $dW$ to multiply, so a forward pass is a larger share of its step. The picture above is drawn with checkpointing; the hollow bars are what it saves.
#
# ## QLoRA's last step
#
# With LoRA and checkpointing only the frozen weights are large. They are never updated, so they need not be precise to the last bit: QLoRA stores them in NF4, sixteen values to choose from, with a scale for every
# 64 numbers (notebook 07 takes it apart).

# %%
matrix = 4096 * 4096
print(f"NF4: {8 * ln.costs.nf4_bytes(matrix) / matrix:.3f} bits a number, scales included\n")
lora = on_paper["lora"]
lines = []
for method, (config, quantize) in {"full": (None, None), "lora": (lora, None), "qlora": (lora, "nf4")}.items():
    for name in ("mixed", "16-bit"):
        b = ln.costs.memory("llama-65b", config, batch=1, seq=512, quantize=quantize, precision=name, checkpointing=True)
        frozen = 0 if method == "full" else b.weights
        sizes = {"frozen weights": frozen / GB, "all the rest": (b.total - frozen) / GB, "sum": b.total / GB}
        lines.append({"llama-65b, GB": f"{method}, {name}"} | sizes | {"on a card of 48 GB": "fits" if b.fits(48) else "does not fit"})
show(lines, {"llama-65b, GB": "", "frozen weights": ".1f", "all the rest": ".1f", "sum": ".1f", "on a card of 48 GB": ""})

# %% [markdown]
# "A 65B parameter model on a single 48GB GPU", the claim of the QLoRA paper's abstract, adds up. It needs all three: no gradients and state of the frozen numbers, checkpointed activations, four bits.
#
# What the sum leaves out: the libraries' own memory, and what an allocator cannot use between its pieces. Real cards are full a little earlier.
#
# ## The second problem: a copy for each task
#
# A fully fine-tuned model is a new model, all of it. An adapter is a small file beside a base that all tasks share. **Predict.** A thousand tasks on a 7B base: how many gigabytes in the one way, how many in the other?

# %%
adapter = ln.costs.count(seven, lora).trainable
base_size, adapter_size = 2 * seven.parameters, 2 * adapter  # 16 bits
print(f"one model {base_size / GB:.1f} GB, one adapter {adapter_size / MB:.0f} MB\n")
lines = [
    {"tasks": n, "models, GB": n * base_size / GB, "a base and adapters, GB": (base_size + n * adapter_size) / GB}
    for n in (1, 10, 100, 1000)
]
show(lines, {"tasks": "", "models, GB": ",.0f", "a base and adapters, GB": ",.1f"})

# %% [markdown]
# And for real, tiny and its adapter on all linear layers:

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder:
    ln.save_model(model, f"{folder}/model")
    models["LoRA, all linear"].save_pretrained(f"{folder}/adapter")
    for name in ("model", "adapter"):
        size = sum(path.stat().st_size for path in Path(folder, name).rglob("*.safetensors"))
        print(f"{name:8}{size / MB:6.2f} MB on disk")

# %% [markdown]
# tiny is narrow, so its adapter is a large part of it: of a square matrix the share is $2r/d$, which falls with the width. One base that serves many adapters at once is a matter for notebook 08.
#
# ## The third problem: forgetting
#
# Every number changed, so whatever the model knew before may have changed with them. Notebook 10 measures it on SmolLM2-135M: the loss on prose that nobody trained on, before and after learning a voice.

# %%
study = Table.load("../figures/data/finetuning.json")
prose = {row["method"]: row["prose"] for row in study.where(phase="seeds")}
print(f"loss on other prose, nats a token: {study.settings['before']['prose']:.2f} as it was, {prose['full']:.2f} after full fine-tuning, {prose['lora']:.2f} after LoRA")

# %% [markdown]
# Both forget, here LoRA no less. The difference is another: the base is still there. Take the adapter off, and the model is what it was, to the bit; after full fine-tuning the old model is a second
# copy, or gone.
#
# ## In one table
#
# | item | full fine-tuning | LoRA | QLoRA |
# |---|---|---|---|
# | weights | 16 bits each | the same, frozen | about 4 bits each |
# | gradients, m and v, master copy | of every number | of the adapter | of the adapter |
# | activations | with every token | the same | the same |
# | a task on disk | a whole model | an adapter | an adapter |
#
# How a bypass of two narrow matrices can learn enough is the question of the next notebook: [LoRA from one equation](02_lora_from_one_equation.ipynb).
#
# ## Try
#
# In a terminal, `python -m lora_np memory --help` shows the same sums as a command.
#
# 1. `python -m lora_np memory --model llama-2-7b --method full --precision mixed` is the longest bar of 7B. Does leaving out the master copy, `--precision 16-bit`, bring it into 80 GB?
#    Which one option brings it into 24?
# 2. `python -m lora_np memory --model llama-2-7b --method qlora --seq 512`: raise `--seq` until 24 GB are full. Then again with `--no-checkpointing`. Which part of the bill fills the card in each case?
# 3. Momentum SGD remembers one number for each parameter, plain SGD none (`slots=1` and `slots=0` in `ln.costs.memory`). What is full fine-tuning of 7B then, in bytes a number and in GB? Why do
#    people pay for AdamW all the same?
# 4. Above, change `rows` to 1 and to 16 and run all cells again. How does LoRA's sum, of full fine-tuning's, change on tiny, and why?
# 5. From which rank on does LoRA on all linear layers of Llama-2-7B take *more* than full fine-tuning does? Guess from the bytes first: sixteen for each number trained, two for each number frozen.
