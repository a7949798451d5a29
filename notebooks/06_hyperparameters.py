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
# # Hyperparameters: what the knobs do
#
# LoRA has a rank $r$, a scale $\alpha$, a list of target modules and a dropout, besides the learning rate and the batch size that all training has. Most people take the
# same recipe: $r = 16$, $\alpha = 32$, all linear layers, no dropout. Here is what it gives when "tiny", which has read English, turns to code:

# %%
import numpy as np

import lora_np as ln
from lora_np import plots
from lora_np.studies import claims_on_hyperparameters as found
from lora_np.studies.table import Table

tables = {name: Table.load(f"../figures/data/{name}.json") for name in found.NEEDED}
by_rank = tables["learning_rates_by_rank"]
settings = by_rank.settings
full, recipe = found.seeds(by_rank, method="full"), found.seeds(by_rank, r=settings["r"], rule="α/r")
print(f"base                    {settings['base_loss']:.3f} nats a byte, held out")
print(f"full fine-tuning        {found.mean(full):.3f}   lr {full[0]['lr']:g}   {full[0]['trainable']:>9,} numbers trained")
print(f"the recipe              {found.mean(recipe):.3f}   lr {recipe[0]['lr']:g}   {recipe[0]['trainable']:>9,}")
print(f"It recovers {found.recovered(by_rank, settings['r']):.0%} of full fine-tuning's gain in {settings['steps']} steps.")

# %% [markdown]
# The notebook turns one knob at a time and leaves the others. *Where a question is about a setting, the setting runs at its own best learning rate*: a comparison at one rate
# for all compares how well the rate happens to suit each. Rates are a factor of two apart; they are chosen on other held-out text than the losses are measured on.
#
# ## Rank and learning rate
#
# **Predict.** LoRA trains far fewer numbers than full fine-tuning. Does its best learning rate lie below or above? And when $r$ goes from 1 to 64 with $\alpha$ fixed, where
# does it go? ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/) found ten times full fine-tuning's, for every rank.)

# %%
plots.rates_by_rank(by_rank, tables["convergence"]);

# %%
ratios = {r: rate / found.best_rate(by_rank, None) for r, rate in found.best_rates(by_rank, "α/r").items()}
for r, ratio in ratios.items():
    losses = [row["final"] for row in found.seeds(by_rank, r=r, rule="α/r")]
    print(f"r = {r:<3} best rate {ratio:4.1f} × full's   held-out {np.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})   "
          f"{found.recovered(by_rank, r):.0%} of the gain")

# %% [markdown]
# Why should the rank not matter? Take the first step of Adam. $B = 0$, so only $B$ moves, each of its numbers by the learning rate $\eta$ against the sign of its gradient.
# To first order the loss falls by
#
# $$\eta \sum_{ij} |dB_{ij}|, \qquad dB = s\,dW A^\top \quad (\text{out} \times r)$$
#
# The sum has one term for each of the $r$ rows of $A$, all of the same size on average: it grows as $s\,r$. With $s = \alpha/r$ that is $\alpha$: no rank in it. The *norm* of $dB$
# is another matter. Its squares add up, so it grows as $s\sqrt r$. **Predict** what each becomes under $\alpha/r$, under rsLoRA's $\alpha/\sqrt r$
# ([Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)) and under $\alpha = 2r$.

# %%
tokens, targets = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4)[0]


def first_gradient(r, **config):
    model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=r, target_modules="all-linear", **config))
    _, cache = model.loss(tokens, targets)
    model.backward(cache)
    dB = np.concatenate([p.grad.ravel() for name, p in model.named_parameters() if "lora_B" in name])
    return np.linalg.norm(dB), abs(dB).sum()


rules = {
    "α/r, α = 32": lambda r: {"lora_alpha": 32},
    "α/√r, α = 8": lambda r: {"lora_alpha": 8, "use_rslora": True},
    "α/r, α = 2r": lambda r: {"lora_alpha": 2 * r},
}
ranks = (1, 4, 16, 64)
for what, i in (("norm of dB", 0), ("sum of |dB|", 1)):
    print(f"{what:14}" + "".join(f"r = {r:<8}" for r in ranks))
    for rule, config in rules.items():
        print(f"  {rule:12}" + "".join(f"{first_gradient(r, **config(r))[i]:<12.3g}" for r in ranks))

# %% [markdown]
# Each rule keeps one thing, or nothing: $\alpha/r$ the first step, $\alpha/\sqrt r$ the norm. Adam divides a gradient by its own size, so a small norm by itself slows nothing. But
# this is the *first* step. Later $A$ moves as well, and then $B$'s steps and $A$'s multiply.
#
# ## The scaling, when the rank grows
#
# So let it run. The rate is tuned once, at $r$ = 16, where the three rules are the same. Then only the rank changes. **Predict** which rule bears it best, upwards and downwards.

# %%
plots.rank_scaling_chart(tables["scaling"]);

# %%
scaling = tables["scaling"]
grown = sorted({row["r"] for row in scaling.rows})
print(f"{'':8}" + "".join(f"r = {r:<8}" for r in grown) + "held-out loss, mean over seeds")
for rule in ("α/r", "α/√r", "α = 2r"):
    print(f"{rule:8}" + "".join(f"{found.mean(scaling.where(rule=rule, r=r)):<12.3f}" for r in grown))

# %% [markdown]
# ## α
#
# Now $r$ = 16 stays and $\alpha$ alone changes, by large factors. **Predict** two lines: the loss if all run at the rate that suits $\alpha$ = 32, and the loss if each has a rate of its own.

# %%
plots.alpha_chart(tables["alpha"]);

# %%
print(found.alpha_and_rate(tables["alpha"])[2])

# %% [markdown]
# The left panel says whether $\alpha$ is more than another learning rate. The right one says which: if only $B$ moved, $\Delta W = s\,B A$ would go as $\alpha \cdot \eta$; if both factors
# move far from where they began, as $\alpha \cdot \eta^2$. (Dashed: the best rate if one of the two products stayed the same.)
#
# There is an exact law behind it. Adam's step does not depend on the gradient's scale. So
#
# $$(\alpha,\; A,\; \eta_A,\; \eta_B) \quad\text{and}\quad \left(\tfrac{\alpha}{pq},\; pA,\; p\,\eta_A,\; q\,\eta_B\right)$$
#
# train the same model. **Predict** how exactly, if $p$ and $q$ are powers of two:

# %%
code = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)


def trained(alpha, p=1.0, q=1.0, start=None):
    model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=8, lora_alpha=alpha, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.value *= start or p
    adam = ln.AdamW(lr=4e-3, weight_decay=0.0, eps=1e-30, lr_ratio={"lora_A": p, "lora_B": q})
    ln.train(model, code, adam, steps=10, progress=False)
    return model.forward(tokens)[0]


plain = trained(alpha=32)
runs = {
    "α/8, A and its rate × 4, B's rate × 2": trained(32 / 8, p=4.0, q=2.0),
    "α/16, A and both rates × 4": trained(32 / 16, p=4.0, q=4.0),
    "α/16, both rates × 4, A as it was": trained(32 / 16, p=4.0, q=4.0, start=1.0),
    "α/4, both rates × 4, A as it was": trained(32 / 4, p=4.0, q=4.0, start=1.0),
}
for name, logits in runs.items():
    difference = np.linalg.norm(logits - plain) / np.linalg.norm(plain)
    print(f"{name:40} {'the same bits' if np.array_equal(logits, plain) else f'logits differ by {difference:.1%}'}")

# %% [markdown]
# ($\varepsilon$ has a scale, so it is made tiny here; so has gradient clipping, which is left out.) In practice nobody rescales the start of $A$, and there is one rate for both factors. Then the law
# holds roughly, somewhere between the two dashed lines. In short: tune one of $\alpha$ and the rate, and leave the other.
#
# And $\alpha = 2r$? It is the recipe's $s = 2$ carried to other ranks. The first picture's right panel shows what it does to the best rate. What it does to the loss, each at its best rate:

# %%
print(found.two_r(by_rank, scaling)[2])

# %% [markdown]
# ## Target modules
#
# **Predict.** One kind of matrix in each of the five blocks gets an adapter of the same rank, all others stay frozen. Which of the seven does most? Which least? (Their sizes differ: $k$ and $v$ are
# half as tall as $q$, the MLP's matrices three times as long.)

# %%
plots.target_modules_chart(tables["target_modules"]);

# %% [markdown]
# The order is partly one of size. So give attention and the MLP *as many parameters each*, by giving attention a higher rank. **Predict** again.

# %%
plots.equal_parameters_chart(tables["equal_parameters"]);

# %%
print(found.where(tables["equal_parameters"], tables["target_modules"])[2])

# %% [markdown]
# ## Dropout
#
# Dropout hinders memorising. **Predict** where it helps: on a few kilobytes read again and again, or on text that is never read twice?

# %%
plots.dropout_chart(tables["dropout"]);

# %%
for line in found.dropping(tables["dropout"])[2].split("; "):
    print(line)

# %% [markdown]
# Compare the two lines on the left. Whoever overfits has another knob than dropout: a smaller learning rate, or fewer steps.
#
# ## Batch size
#
# The same text in few large steps or in many small ones. Schulman et al. found that large batches cost LoRA more than full fine-tuning. **Predict** whether that shows here.

# %%
plots.batch_size_chart(tables["batch_size"]);

# %%
print(found.large_batches(tables["batch_size"])[2])

# %% [markdown]
# Look at the rates at the points as well. Whose moves with the batch, and whose stays?
#
# ## What I would set, and why
#
# From these tables alone, for this model and this task. A line that says "the seeds overlap" is no reason for anything.

# %%
shares = {r: found.recovered(by_rank, r) for r in settings["ranks"]}
enough = min(r for r in shares if shares[r] >= 0.95 * max(shares.values()))
ratio = np.exp(np.mean(np.log(list(ratios.values()))))
equal = tables["equal_parameters"]
largest = found.groups(equal.where(phase="seeds", matched_r=max(row["matched_r"] for row in equal.rows)), "target_modules")
place = min(largest, key=lambda name: found.mean(largest[name]))
much = found.groups([row for row in tables["dropout"].rows if row["train_bytes"] is None], "lora_dropout")
rate = min(much, key=lambda p: found.mean(much[p]) if not p or found.verdict(much[p], much[0.0]) == "lower" else np.inf)
sizes = found.groups(found.seeds(tables["batch_size"], method="lora"), "batch_size")
size = min(sizes, key=lambda b: found.mean(sizes[b]))
advice = [
    ("rank", f"r = {enough}", f"the lowest with 95 % of the most that any rank recovers ({max(shares.values()):.0%})"),
    ("learning rate", f"{ratio:.2g} × full's", f"{min(ratios.values()):.2g} to {max(ratios.values()):.2g} over the ranks, α = {settings['lora_alpha']:g}; then try half and twice"),
    ("α", f"{settings['lora_alpha']:g}, kept", "another α wants another rate, and ends where this one does if it gets it"),
    ("targets", place, "lowest at equal parameters, the larger size"),
    ("dropout", f"{rate:g}", "on text that is not read twice"),
    ("batch", f"{size}", "the lowest loss for the same tokens, where time is no matter"),
]
for knob, value, why in advice:
    print(f"{knob:14} {value:14} {why}")

# %% [markdown]
# ## How much fits into a rank?
#
# A random string has nothing to understand. Who continues it has memorised it, and what was memorised can be weighed. Here a string is a
# name of two symbols, which is given, and 16 symbols drawn from 64, so $\log_2 64 = 6$ bits each. After training on exactly these strings,
# with a loss of $L$ nats a symbol,
#
# $$\text{memorised} = \sum_{\text{symbols}} \left(6 - \frac{L}{\ln 2}\right)\ \text{bits}.$$
#
# A model that knows nothing but the alphabet has $L = \ln 64$ and 0 bits; one that recites every string has them all.
#
# **Predict.** "tiny" is offered eight strings, 768 bits, and the same number of steps each time. Which of these adapters of rank 1 can still
# recite: the one in all linear layers, in $q$ and $v$, in $v$ alone?

# %%
import numpy as np

import lora_np as ln
from lora_np.studies import capacity

rows = capacity.strings(8, length=16, seed=0)  # (8, 18): places in the alphabet
rows = np.frombuffer(capacity.ALPHABET.encode(), np.uint8)[rows].astype(np.int64)  # (8, 18): bytes, which is what tiny reads
batch = tokens, targets = capacity.batch(rows)  # (8, 17) each; the name's second symbol does not count
names, rest = rows[:, : capacity.KEY], rows[:, capacity.KEY :]  # (8, 2), (8, 16)

# %%
def weigh(loss):
    """Bits of all symbols: 6 each for one that is certain, 0 for a model that guesses among 64."""
    return max(0.0, rest.size * (6 - loss / np.log(2)))


steps = 120
print(f"{'adapter in':14}{'numbers':>9}{'bits held':>11}{'of':>6}{'a number':>10}   recited")
for targets_of in ("all-linear", ["q_proj", "v_proj"], ["v_proj"]):
    learner = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(1, 8, targets_of), seed=0)
    schedule = ln.WarmupCosine(steps, warmup=6)
    ln.train(learner, [batch], ln.AdamW(lr=1e-2, weight_decay=0), steps, schedule=schedule, max_grad_norm=1.0)
    held = weigh(ln.evaluate(learner, [batch]))
    said = ln.generate(learner, names.tolist(), max_new_tokens=16)  # greedily, from the names alone
    whole = sum(answer == string for answer, string in zip(said, rest.tolist(), strict=True))
    size = sum(p.value.size for _, p in learner.named_parameters() if p.trainable)
    label = targets_of if isinstance(targets_of, str) else ", ".join(name[0] for name in targets_of)
    print(f"{label:14}{size:9,}{held:11.0f}{6 * rest.size:6}{held / size:10.2f}   {whole} of {len(rows)}")

print("\nThe last one, a string and what it says:")
for string, answer in zip(rest[:4], said[:4], strict=True):
    print(f"  {ln.data.decode(string)}   {ln.data.decode(np.array(answer))}")

# %% [markdown]
# The frozen model knows none of these strings. Every bit that is recited lies in the numbers of $A$ and $B$. (After so few steps the table says
# who learns faster. Who could hold more shows only at the end of the learning.)
#
# Now the measurement. So that capacity and not patience is what ends the learning, the study takes a model small enough to be trained for
# thousands of steps, two layers of width 32, which has only learned to say a random string again: it knows the alphabet, and it can be
# certain. Then one rank is offered more and more strings.
#
# **Predict.** What happens when a LoRA of rank 4 is offered twice what it can hold: does it learn half of the strings, or half of each?
# And will it hold more bits, as many, or fewer than before?

# %%
from lora_np import plots
from lora_np.studies.claims_on_capacity import against_full, exponent, free_share, gain, numbers, share, share_by_rank
from lora_np.studies.table import Table

held = Table.load("../figures/data/capacity.json")
plots.memory_knee(held);

# %% [markdown]
# Up to the knee the line of what was offered and the line of what was learned are one. Beyond it they part.
#
# **Predict.** Twice the rank trains twice the numbers. Does it hold twice the bits?

# %%
plots.capacity_chart(held);

# %%
print(f"{'bits':18}{'a trained number':>18}{'a free number':>16}{'half the steps':>17}")
for r, bits in share_by_rank(held).items():
    print(f"{f'LoRA r = {r}':18}{bits:18.2f}{free_share(held, r):16.2f}{share(held, 'lora', r, phase='half'):17.2f}")
full = share(held, "full")
print(f"{'full fine-tuning':18}{full:18.2f}{full:16.2f}{share(held, 'full', phase='half'):17.2f}")
top = max(share_by_rank(held))
print(f"\nbits grow as r to the power of {exponent(held):.2f}; half the steps give {gain(held):.0%} less")
print(f"r = {top}: {against_full(held, top):.0%} of full fine-tuning's bits, with {numbers(held, top):.0%} of its numbers")

# %% [markdown]
# A free number? $BA$ is the same as $(BR)(R^{-1}A)$ for every invertible $R$ of $r \times r$, so of the $r(d_{in} + d_{out})$ numbers in $A$ and
# $B$ only $r(d_{in} + d_{out} - r)$ are free; at $r = \min(d_{in}, d_{out})$ that is the whole matrix.
#
# Where half the steps give clearly less, the training was not at its end, and the numbers are a lower bound. The literature has 2 bits of
# knowledge a parameter for whole models ([Allen-Zhu and Li, 2024](https://arxiv.org/abs/2404.05405)) and about 3.6 bits for random strings
# ([Morris et al., 2025](https://arxiv.org/abs/2505.24832)), after far longer training.
#
# **What it means for choosing $r$.** Ask how many bits the data hold that the base does not know: at most its loss on them, times their
# tokens, over $\ln 2$. If that is far below what the rank holds, a higher rank buys nothing; if it is above, LoRA falls behind full fine-tuning
# however long it trains, and a higher rank is the remedy ([Schulman et al., 2025](https://thinkingmachines.ai/blog/lora/)). Most of a text's
# bits are noise that nobody wants learned by heart, so the bound is generous:

# %%
from lora_np.studies.convergence import heldout_batches

code = ln.data.corpus("code", "train")
unknown = ln.evaluate(ln.load_model("tiny"), heldout_batches()) / np.log(2)  # bits a byte of code that tiny cannot foresee
one = sum(p.value.size for n, p in ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(1, 1, "all-linear")).named_parameters() if "lora_" in n)
seen = 200 * 8 * 128  # bytes that a run of notebook 05 reads
print(f"code that tiny has not read: {unknown:.1f} bits a byte, {unknown * seen:,.0f} in the {seen:,} bytes that a run of notebook 05 reads")
print(f"LoRA of rank 1 in all of tiny's linear layers: {one:,} numbers, at {share(held, 'lora', 1):.1f} bits each {one * share(held, 'lora', 1):,.0f}")
shares = [run["recovered"] for run in Table.load("../figures/data/convergence.json").where(phase="seeds", r=1, target_modules="all-linear")]
print(f"and yet rank 1 recovers {sum(shares) / len(shares):.0%} of full fine-tuning's gain on code that neither has read")

# %% [markdown]
# So the data of notebook 05 exceed rank 1 many times over in raw bits, and rank 1 does most of the job. What carries over to unread code is a
# small part of those bits, and the rest is what a low rank has no room to learn by heart.

# %% [markdown]
# ## Try
#
# 1. Turn `lr_ratio={"lora_B": 16}` on in an `AdamW` (LoRA+) and sweep the rate again. Which of the two dashed lines of α's picture would you expect it to follow?
# 2. Repeat the table of first gradients after 50 steps of training. Does the sum still go as $s\,r$, now that $A$ has a gradient too?
# 3. `alpha_pattern={"down_proj": 64}` gives one kind of matrix another $\alpha$. Is that a knob of its own, or a learning rate for one layer?
