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
# # Hyperparameters: what the knobs do
#
# LoRA has a rank $r$, a scale $\alpha$, a list of target modules and a dropout, besides the learning rate $\eta$ (`lr` in the code) and the batch size that all training
# has. A common recipe: $r = 16$, $\alpha = 32$, all linear layers, no dropout. Here is what it gives when "tiny", which has read English, turns to code:

# %%
import numpy as np

import lora_np as ln
from lora_np import plots
from lora_np.studies.capacity import claims as fits
from lora_np.studies.capacity import study as capacity
from lora_np.studies.harness.paired import paired_differences, verdict
from lora_np.studies.harness.table import Table, show
from lora_np.studies.harness.tiny_task import heldout_batches
from lora_np.studies.hyperparameters import claims as found

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
# *When is one setting better than another?* A seed draws the order of the text, the same for both, so the runs are compared seed by seed. "Lower with every seed" is said where
# all differences have one sign. With three seeds that happens by chance one time in four, so look at the size as well: a difference of less than 0.001 nats a byte is no reason for
# anything here.
#
# ## Rank and learning rate
#
# **Predict.** LoRA trains far fewer numbers than full fine-tuning. Does its best learning rate lie below or above? And when $r$ goes from 1 to 64 with $\alpha$ fixed, where
# does it go? ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/) found ten times full fine-tuning's, for every rank.)

# %%
plots.rates_by_rank(by_rank, tables["convergence"]);

# %%
fulls = found.best_rate(by_rank, None)
ratios = {r: rate / fulls for r, rate in found.best_rates(by_rank, "α/r").items()}
others = {r: f" (one seed {rate / fulls:g})" for r, rate in found.strays(by_rank, "α/r")}
for r, ratio in ratios.items():
    losses = [row["final"] for row in found.seeds(by_rank, r=r, rule="α/r")]
    print(f"r = {r:<3} best rate {f'{ratio:g} × full{chr(39)}s{others.get(r, str())}':24} held-out {np.mean(losses):.3f} "
          f"({min(losses):.3f} to {max(losses):.3f})   {found.recovered(by_rank, r):.0%} of the gain")

# %% [markdown]
# Less than ten. But the ratio is that of one $\alpha$: where $\alpha$ changes, it changes too (below).
#
# Why should the rank not matter? Take the first step of Adam. $B = 0$, so only $B$ moves, each of its numbers by the learning rate $\eta$ against the sign of its gradient.
# To first order the loss falls by
#
# $$\eta \sum_{ij} |dB_{ij}|, \qquad dB = s\,dW A^\top \quad (\text{out} \times r)$$
#
# The sum has one term for each of the $r$ rows of $A$, all of the same size on average: it grows as $s\,r$. With $s = \alpha/r$ that is $\alpha$: no rank in it. The *norm* of $dB$
# is another matter. Its squares add up, so it grows as $s\sqrt r$. **Predict** what each becomes under $\alpha/r$, under rsLoRA's $\alpha/\sqrt r$
# ([Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)) and under $\alpha = 2r$.

# %%
probe = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4)[0]  # tokens and targets, (4, 128) each


def first_gradient(r, **config):
    model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=r, target_modules="all-linear", **config))
    _, cache = model.loss(*probe)
    model.backward(cache)
    dB = np.concatenate([p.grad.ravel() for name, p in model.named_parameters() if "lora_B" in name])
    return np.linalg.norm(dB), abs(dB).sum()


rules = {
    "α/r, α = 32": lambda r: {"lora_alpha": 32},
    "α/√r, α = 8": lambda r: {"lora_alpha": 8, "use_rslora": True},
    "α/r, α = 2r": lambda r: {"lora_alpha": 2 * r},
}
ranks = (1, 4, 16, 64)
of_dB = {rule: {r: first_gradient(r, **config(r)) for r in ranks} for rule, config in rules.items()}
for i, what in enumerate(("norm of dB", "sum of |dB|")):
    lines = [{what: rule} | {f"r = {r}": by_r[r][i] for r in ranks} for rule, by_r in of_dB.items()]
    show(lines, {what: ""} | {f"r = {r}": ".3g" for r in ranks})

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
rules = ("α/r", "α/√r", "α = 2r")
lines = [{"rule": rule} | {f"r = {r}": found.mean(scaling.where(rule=rule, r=r)) for r in grown} for rule in rules]
print("held-out loss, mean over seeds")
show(lines, {"rule": ""} | {f"r = {r}": ".3f" for r in grown})
print("\nagainst α/r at the same rank and rate:")
for rule, by_r in of_dB.items():
    short = next(name for name in ("α/√r", "α = 2r", "α/r") if name in rule or rule.endswith(name))
    for r in (1, 64) if short != "α/r" else ():
        first = by_r[r][1] / of_dB["α/r, α = 32"][r][1]
        print(f"  {short:7} r = {r:<3} Σ|dB| {first:4.2f} ×   loss {verdict(scaling.where(rule=short, r=r), scaling.where(rule='α/r', r=r))}")

# %% [markdown]
# The argument from the first step predicts more than happens. Under $\alpha/\sqrt r$ the sum $\sum |dB|$ grows eightfold from $r = 1$ to 64, so the first step should be far too small at one end
# or far too large at the other; the losses are those of $\alpha/r$ within a few thousandths. Only where the first step is four times as large or a sixteenth ($\alpha = 2r$) does it show. A best
# rate that does not move with the rank needs more of an explanation than the first step.
#
# ## α
#
# Now $r$ = 16 stays and $\alpha$ alone changes, by large factors. **Predict** two lines: the loss if all run at the rate that suits $\alpha$ = 32, and the loss if each has a rate of its own.

# %%
plots.alpha_chart(tables["alpha"]);

# %%
print(found.alpha_and_rate(tables["alpha"])[2])
for a, runs in found.groups(found.seeds(tables["alpha"]), "lora_alpha").items():
    print(f"α = {a:<4g} best rate {runs[0]['lr']:g}, {runs[0]['lr'] / fulls:g} × full fine-tuning's")

# %% [markdown]
# So "how many times full fine-tuning's" is a property of $\alpha$, and without the $\alpha$ the question has no answer.
#
# The left panel says whether $\alpha$ is more than another learning rate. The right one says which: if only $B$ moved, $\Delta W = s\,B A$ would go as $\alpha \cdot \eta$; if both factors
# move far from where they began, as $\alpha \cdot \eta^2$. (Dashed: the best rate if one of the two products stayed the same. The power between them rests on rates a factor of
# two apart, chosen with one seed.)
#
# There is an exact law behind it. Adam's step does not depend on the gradient's scale. So
#
# $$(\alpha,\; A,\; \eta_A,\; \eta_B) \quad\text{and}\quad \left(\tfrac{\alpha}{pq},\; pA,\; p\,\eta_A,\; q\,\eta_B\right)$$
#
# train the same model. **Predict** how exactly, if $p$ and $q$ are powers of two:

# %%
ten_batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)


def trained(alpha, p=1.0, q=1.0, start=None):
    model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=8, lora_alpha=alpha, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.value *= start or p
    adam = ln.AdamW(lr=4e-3, weight_decay=0.0, eps=1e-30, lr_ratio={"lora_A": p, "lora_B": q})
    ln.train(model, ten_batches, adam, steps=10, progress=False)
    return model.forward(probe[0])[0]


plain = trained(alpha=32)
variants = {
    "the law: α/8, A and its rate × 4, B's rate × 2": trained(32 / 8, p=4.0, q=2.0),
    "the law: α/16, A and both rates × 4": trained(32 / 16, p=4.0, q=4.0),
    "η²·α kept, A's start not: α/16, both rates × 4": trained(32 / 16, p=4.0, q=4.0, start=1.0),
    "η·α kept, A's start not: α/4, both rates × 4": trained(32 / 4, p=4.0, q=4.0, start=1.0),
    "for scale: the untrained base": ln.load_model("tiny").forward(probe[0])[0],
}
for name, logits in variants.items():
    difference = np.linalg.norm(logits - plain) / np.linalg.norm(plain)
    print(f"{name:50} {'the same bits' if np.array_equal(logits, plain) else f'logits differ by {difference:.1%}'}")

# %% [markdown]
# ($\varepsilon$ has a scale, so it is made tiny here; so has gradient clipping, which is left out.) In practice nobody rescales the start of $A$, and there is one rate for both factors. Then the law
# does not hold: the last line is all that ten steps changed, and the two variants above it differ by a good part of that. Keeping $\eta^2\alpha$ comes nearer than keeping $\eta\,\alpha$, and the best rates lie
# between the two dashed lines. In short: tune one of $\alpha$ and the rate, and leave the other.
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
# Compare the two lines on the left with the grey one. At the recipe's rate every run on the little text ends *worse than the frozen base*: training did harm, and dropout only lessens it.
# At a much smaller rate all end below the base, and there dropout gains nothing. Whoever overfits has another knob than dropout: a smaller learning rate, or fewer steps.
#
# ## Batch size
#
# The same text in few large steps or in many small ones. Schulman et al. found that large batches cost LoRA more than full fine-tuning. **Predict** whether that shows here.

# %%
plots.batch_size_chart(tables["batch_size"]);

# %%
print(found.large_batches(tables["batch_size"])[2])

# %% [markdown]
# **Predict** from the rates at the points: whose best rate moves with the batch, and whose stays?

# %%
by_batch = {m: found.groups(found.seeds(tables["batch_size"], method=m), "batch_size") for m in ("full", "lora")}
for b, of_lora in by_batch["lora"].items():
    lora_rate, full_rate = of_lora[0]["lr"], by_batch["full"][b][0]["lr"]
    print(f"batches of {b:<3} LoRA {lora_rate:g}, full fine-tuning {full_rate:g}: {lora_rate / full_rate:g} ×")

# %% [markdown]
# LoRA's best rate grows with the batch, full fine-tuning's stays. So the ratio belongs to the batch as well as to $\alpha$. Whoever keeps LoRA's rate while the batch changes loses something
# that is no fault of LoRA's. (Batches here have up to 32 sequences of 128 bytes; those of the source are larger.)

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
strings = capacity.strings(8, length=16, seed=0)  # (8, 18): places in the alphabet
strings = np.frombuffer(capacity.ALPHABET.encode(), np.uint8)[strings].astype(np.int64)  # (8, 18): bytes, which is what tiny reads
all_eight = capacity.batch(strings)  # tokens and targets, (8, 17) each; the name's second symbol does not count
names, rest = strings[:, : capacity.KEY], strings[:, capacity.KEY :]  # (8, 2), (8, 16)

# %%
def weigh(loss, symbols=rest.size):
    """Bits of so many symbols: 6 each for one that is certain, 0 for a model that guesses among 64."""
    return max(0.0, symbols * (6 - loss / np.log(2)))


steps = 120
lines = []
for targets_of in ("all-linear", ["q_proj", "v_proj"], ["v_proj"]):
    learner = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=1, lora_alpha=8, target_modules=targets_of), seed=0)
    schedule = ln.WarmupCosine(steps, warmup=6)
    ln.train(learner, [all_eight], ln.AdamW(lr=1e-2, weight_decay=0), steps, schedule=schedule, max_grad_norm=1.0)
    bits = weigh(ln.evaluate(learner, [all_eight]))
    said = ln.generate(learner, names.tolist(), max_new_tokens=16)  # greedily, from the names alone
    whole = sum(answer == string for answer, string in zip(said, rest.tolist(), strict=True))
    size = sum(p.value.size for _, p in learner.named_parameters() if p.trainable)
    label = targets_of if isinstance(targets_of, str) else ", ".join(name[0] for name in targets_of)
    held_bits = {"bits held": bits, "of": 6 * rest.size, "a number": bits / size}
    lines.append({"adapter in": label, "numbers": size} | held_bits | {"recited": f"{whole} of {len(strings)}"})
show(lines, {"adapter in": "", "numbers": ",", "bits held": ".0f", "of": "", "a number": ".2f", "recited": ""})

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
# **Predict.** What happens to a learner that is offered more than it holds: does it learn some of the strings, or some of each? The adapter in $v$
# alone, above, is such a one:

# %%
of_each = [weigh(ln.evaluate(learner, [capacity.batch(string[None])]), rest.shape[1]) / (6 * rest.shape[1]) for string in strings]
print("share of each string's bits that it holds: " + ", ".join(f"{part:.0%}" for part in sorted(of_each)))

# %% [markdown]
# Some of each. **Predict.** A LoRA of rank 4 is offered more and more. Will it hold more bits, as many, or fewer, once it does not recite all?

# %%
held = Table.load("../figures/data/capacity.json")
plots.memory_knee(held);

# %% [markdown]
# At first the line of what was offered and the line of what was learned are one. Then they part, bit by bit: there is no sharp bend, and the last point is still
# higher than the one before. So this is no capacity that was found, but the most that was seen.
#
# **Predict.** Twice the rank trains twice the numbers. Does it hold twice the bits?

# %%
plots.capacity_chart(held);

# %%
lines = []
for method, r in [*(("lora", r) for r in fits.share_by_rank(held)), ("full", None)]:
    per_number = fits.share(held, method, r)
    free = fits.free_share(held, r) if r else per_number
    lines.append({
        "bits": f"LoRA r = {r}" if r else "full fine-tuning",
        "a trained number": per_number,
        "a free number": free,
        "of the offer": fits.of_offered(held, method, r),
        "each seen, ×": fits.times_seen(held, method, r),
        "half the steps": -fits.less(held, method, r),
    })
formats = ("", ".2f", ".2f", ".0%", ",", "+.0%")
show(lines, dict(zip(lines[0], formats, strict=True)))
low, middle, top = fits.lowest_middle_highest(held)
print(f"\nthe most that LoRA held, whatever was offered: {fits.highest(held):.2f} bits a trained number")
print(f"bits grow as r to the power of {fits.exponent(held, low, middle):.2f} from r = {low} to {middle}, and of {fits.exponent(held, middle, top):.2f} from {middle} to {top}")
print(f"r = {top}: {fits.against_full(held, top):.0%} of full fine-tuning's bits, with {fits.numbers(held, top):.0%} of its numbers")

# %% [markdown]
# A free number? $BA$ is the same as $(BR)(R^{-1}A)$ for every invertible $R$ of $r \times r$, so of the $r(d_{in} + d_{out})$ numbers in $A$ and
# $B$ only $r(d_{in} + d_{out} - r)$ are free; at $r = \min(d_{in}, d_{out})$ that is the whole matrix.
#
# Every number here is a lower bound, and some are looser than others, so that they must not be compared with one another. All runs have as many steps, and the higher ranks and full fine-tuning
# were offered more strings: each was seen less often, and from rank 2 on half the steps cost them more and more. Their training was further from its end. Full fine-tuning held most of what it was offered, so that
# its number is capped by the offer. The shares form an arch over the ranks; whether the right side of it is the rank's or the training's, these runs do not say. The literature has 2 bits of
# knowledge a parameter for whole models ([Allen-Zhu and Li, 2024](https://arxiv.org/abs/2404.05405)) and about 3.6 bits for random strings
# ([Morris et al., 2025](https://arxiv.org/abs/2505.24832)), after far longer training.
#
# **Can one choose $r$ by it?** [Schulman et al. (2025)](https://thinkingmachines.ai/blog/lora/) report that LoRA falls behind full fine-tuning where the data hold more than the adapter can take in, and
# keeps up where they hold less. What data hold that the base does not know is at most its loss on them, times their tokens, over $\ln 2$. That rule is not tested here; what can be seen is how far the
# bound goes in our case:

# %%
unknown = ln.evaluate(ln.load_model("tiny"), heldout_batches()) / np.log(2)  # bits a byte of code that tiny cannot foresee
one = sum(p.value.size for n, p in ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=1, lora_alpha=1, target_modules="all-linear")).named_parameters() if "lora_" in n)
seen = 200 * 8 * 128  # bytes that a run of notebook 05 reads
print(f"code that tiny has not read: {unknown:.1f} bits a byte, {unknown * seen:,.0f} in the {seen:,} bytes that a run of notebook 05 reads")
print(f"LoRA of rank 1 in all of tiny's linear layers: {one:,} numbers, at {fits.share(held, 'lora', 1):.1f} bits each {one * fits.share(held, 'lora', 1):,.0f}")
gains = [run["recovered"] for run in Table.load("../figures/data/convergence.json").where(phase="seeds", r=1, target_modules="all-linear")]
print(f"and yet rank 1 recovers {np.mean(gains):.0%} of full fine-tuning's gain on code that neither has read")

# %% [markdown]
# The data of notebook 05 exceed rank 1 many times over in raw bits, and rank 1 does most of the job. Most of a text's bits carry over to no other text. So the bound is too generous to choose
# $r$ by here.

# %% [markdown]
# ## What I would set, and why
#
# From these tables alone, for this model and this task. One rule for all knobs: a setting is preferred to the simpler one where it ends lower with every seed and by 0.001 nats a byte or more in the
# mean. Each knob was turned alone, in batches of eight; the combination was not run.

# %%
def better(rows, simpler):
    """Lower with every seed, and by enough to be a reason."""
    differences = paired_differences(rows, simpler)
    return max(differences) < 0 and np.mean(differences) <= -0.001


recovered = {r: found.recovered(by_rank, r) for r in settings["ranks"]}
enough = min(r for r in recovered if recovered[r] >= 0.95 * max(recovered.values()))
equal = tables["equal_parameters"]
places = found.groups(equal.where(phase="seeds", matched_r=max(row["matched_r"] for row in equal.rows)), "target_modules")
place = min(places, key=lambda name: found.mean(places[name]))
second = min(places.keys() - {place}, key=lambda name: found.mean(places[name]))
by_p = found.groups([row for row in tables["dropout"].rows if row["train_bytes"] is None], "lora_dropout")
p = min(by_p, key=lambda q: found.mean(by_p[q]))
lora_sizes, usual = by_batch["lora"], settings["batch_size"]
size = min(lora_sizes, key=lambda b: found.mean(lora_sizes[b]) if b == usual or better(lora_sizes[b], lora_sizes[usual]) else np.inf)
rate_of = {b: rows[0]["lr"] / by_batch["full"][b][0]["lr"] for b, rows in lora_sizes.items()}
own = found.groups(found.seeds(tables["alpha"]), "lora_alpha")
kept = settings["lora_alpha"]
advice = [
    ("rank", f"r = {enough}", f"the lowest with 95 % of the most that any rank recovers ({max(recovered.values()):.0%}); a higher one still ends lower"),
    ("α", f"{kept:g}, kept", "at their own rates " + ", ".join(f"α = {a:g} ends {verdict(own[a], own[kept])}" for a in own if a != kept)),
    ("targets", place, f"{places[place][0]['trainable']:,} numbers against {places[second][0]['trainable']:,} in {second}: "
     f"{verdict(places[place], places[second])}"),
    ("dropout", f"{p if better(by_p[p], by_p[0.0]) else 0:g}", f"on text that is not read twice p = {p:g} ends {verdict(by_p[p], by_p[0.0])}"
     + ("" if better(by_p[p], by_p[0.0]) else ": too little for a knob")),
    ("batch", f"{size}", f"against {usual}, for the same tokens: {verdict(lora_sizes[size], lora_sizes[usual])}; where time is no matter"),
    ("learning rate", f"{rate_of[size]:g} × full's", "at that batch; " + ", ".join(f"{x:g} × in batches of {b}" for b, x in rate_of.items()) + "; then try half and twice"),
]
for knob, value, why in advice:
    print(f"{knob:14} {value:14} {why}")

# %% [markdown]
# ## Try
#
# 1. Turn `lr_ratio={"lora_B": 16}` on in an `AdamW` (LoRA+) and sweep the rate again. Which of the two dashed lines of α's picture would you expect it to follow?
# 2. Repeat the table of first gradients after 50 steps of training. Does the sum still go as $s\,r$, now that $A$ has a gradient too?
# 3. `alpha_pattern={"down_proj": 64}` gives one kind of matrix another $\alpha$. Is that a knob of its own, or a learning rate for one layer?
# 4. Full fine-tuning's best rate moved with nothing here. What ratio of LoRA's to it do you expect at $\alpha$ = 8 and batches of 2, and which runs would decide it?
