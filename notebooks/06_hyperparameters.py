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
# # Hyperparameters
#
# LoRA has a rank $r$, a scale $\alpha$, a list of target modules and a dropout probability $p$. Training adds the learning rate $\eta$ (`lr` in the code) and the batch size. Which of them matter, and how do you choose them?
#
# **You will learn** to
#
# - explain why $\alpha$ and the learning rate are nearly one hyperparameter under Adam, and derive the exact law behind it;
# - predict how the first gradient depends on the rank under $s = \alpha/r$ and $s = \alpha/\sqrt r$;
# - compare two settings fairly: each at its own best learning rate, seed by seed.
#
# **Before you start:** [notebook 02](02_lora_from_one_equation.ipynb), the gradients $dA$ and $dB$ of [notebook 03](03_gradients_by_hand.ipynb), and [notebook 05](05_convergence.ipynb). You need to know that Adam divides each gradient by its own typical size.
#
# *Reading: 45 minutes. Running: about 15 seconds.*

# %%
import numpy as np
from IPython.display import Markdown, display

import lora_np as ln
from lora_np import plots
from lora_np.report.results import Findings
from lora_np.studies.harness.table import Table, groups, mean, show
from lora_np.studies.hyperparameters.claims import compared

findings = Findings("../figures")
names = ("learning_rates_by_rank", "alpha", "scaling", "target_modules", "equal_parameters")
names += ("dropout", "batch_size", "convergence")
tables = {name: Table.load(f"../figures/data/{name}.json") for name in names}
by_rank = tables["learning_rates_by_rank"]

# %% [markdown]
# ## A recipe to start from
#
# A common recipe is $r = 16$, $\alpha = 32$, all linear layers, no dropout. The next cell shows its result on "tiny", which was trained on English and learns Python code. The loss is held-out loss in nats per byte.
#
# **Predict.** Which share of full fine-tuning's gain does the recipe recover?

# %% jupyter={"source_hidden": true}
# prints the losses of the base, full fine-tuning and the recipe, and the recovered share
full = by_rank.where(phase="seeds", method="full")
recipe = by_rank.where(phase="seeds", r=16, rule="α/r")
lines = [{"setting": "base", "loss": by_rank.settings["base_loss"]}]
for name, rows in (("full fine-tuning", full), ("recipe", recipe)):
    lines.append({"setting": name, "loss": mean(rows), "η": rows[0]["lr"]})
    lines[-1]["trained parameters"] = rows[0]["trainable"]
show(lines, {"setting": "", "loss": ".3f", "η": "g", "trained parameters": ","})
display(Markdown(findings.say("hyperparameters.recovered.r16")))

# %% [markdown]
# The rest of this notebook changes one hyperparameter of the recipe at a time. Two rules make the comparisons fair.
#
# - *Each setting has its own best learning rate.* With one learning rate for all settings, you compare how well this rate suits each setting. Learning rates are tried in steps of a factor of two. They are chosen on other held-out text than the text that measures the loss.
# - *Settings are compared seed by seed.* A seed decides the order of the text, for both settings alike. "Lower with every seed" means that all differences are negative. With three seeds this happens by chance one time in four, so look at the size too: a difference below 0.001 nats per byte is no reason to prefer
#   a setting.
#
# ## Rank and learning rate
#
# **Predict.** LoRA trains far fewer parameters than full fine-tuning. Is its best learning rate higher or lower? And how does it move when $r$ grows from 1 to 64 and $\alpha$ stays at 32? ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/) found ten times full fine-tuning's, for every rank.)

# %%
plots.rates_by_rank(by_rank, tables["convergence"]);

# %% jupyter={"source_hidden": true}
# prints for each rank the ratio of best learning rates, the loss and the share of the gain
lines = []
for r, rows in groups(by_rank.where(phase="seeds", rule="α/r", method="lora"), "r").items():
    ratio = findings[f"hyperparameters.ratio.r{r}"].value
    lines.append({"r": r, "× full fine-tuning's η": ratio, "loss": mean(rows)})
    lines[-1]["of the gain"] = findings[f"hyperparameters.recovered.r{r}"].value
show(lines, {"r": "", "× full fine-tuning's η": "g", "loss": ".3f", "of the gain": ".0%"})

# %% [markdown]
# With $\alpha$ fixed, the best learning rate does not depend on the rank. It is less than ten times full fine-tuning's. With $\alpha = 2r$ it falls as the rank grows.
#
# ## Why does the rank not matter? The first step
#
# Look at the first step of Adam. $B = 0$, so $dA = 0$ and only $B$ moves. Adam moves each number of $B$ by the learning rate $\eta$, against the sign of its gradient. To first order the loss falls by
#
# $$\eta \sum_{ij} |dB_{ij}|, \qquad dB = s\,dW A^\top \quad (\text{out}, r)$$
#
# - The *sum* has one column for each of the $r$ rows of $A$, all of about the same size. So it grows as $s\,r$. With $s = \alpha/r$ this is $\alpha$, and the rank cancels.
# - The *norm* $\lVert dB \rVert$ adds squares. So it grows as $s\sqrt r$.
#
# **Predict** how the norm and the sum depend on $r$ under three rules: $s = \alpha/r$ with a fixed $\alpha$, $s = \alpha/\sqrt r$ (rsLoRA, [Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)), and $\alpha = 2r$, which keeps $s = 2$.

# %%
tokens, targets = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4)[0]  # (4, 128)


def first_gradient(r, **config):
    """The norm of dB and the sum of |dB|, over all layers."""
    config = ln.LoraConfig(r=r, target_modules="all-linear", **config)
    model = ln.get_peft_model(ln.load_model("tiny"), config)
    _, cache = model.loss(tokens, targets)
    model.backward(cache)
    of_B = [p.grad.ravel() for name, p in model.named_parameters() if "lora_B" in name]
    dB = np.concatenate(of_B)
    return {"norm of dB": np.linalg.norm(dB), "sum of |dB|": abs(dB).sum()}


rules = {
    "α/r": lambda r: {"lora_alpha": 32},
    "α/√r": lambda r: {"lora_alpha": 8, "use_rslora": True},
    "α = 2r": lambda r: {"lora_alpha": 2 * r},
}
ranks = (1, 4, 16, 64)
measured = {
    rule: {r: first_gradient(r, **config(r)) for r in ranks} for rule, config in rules.items()
}
for what in ("norm of dB", "sum of |dB|"):
    lines = []
    for rule, of_rank in measured.items():
        lines.append({what: rule} | {f"r = {r}": of_rank[r][what] for r in ranks})
    show(lines, {what: ""} | {f"r = {r}": ".3g" for r in ranks})

# %% [markdown]
# $\alpha/r$ keeps the sum constant, $\alpha/\sqrt r$ keeps the norm constant, and $\alpha = 2r$ keeps neither. Adam divides each gradient by its own size, so a small norm alone does not slow the training. But this is only the *first* step. Later $A$ moves too.
#
# ## The scaling, when the rank grows
#
# So train all of them. The learning rate is tuned once, at $r = 16$, where the three rules are equal. Then only the rank changes.
#
# **Predict.** Which rule has the lowest losses, for larger and for smaller ranks?

# %%
plots.rank_scaling_chart(tables["scaling"]);

# %%
scaling = tables["scaling"]
lines = []
for rule in rules:
    by_r = groups(scaling.where(rule=rule), "r")
    lines.append({"loss": rule} | {f"r = {r}": mean(rows) for r, rows in by_r.items()})
show(lines, {"loss": ""} | {name: ".3f" for name in list(lines[0])[1:]})
names = ("gradient_norm.plain", "gradient_norm.rslora", "rslora", "two_r.fixed")
display(Markdown(findings.say(*(f"hyperparameters.{name}" for name in names))))

# %% [markdown]
# The argument from the first step predicts more than happens. Under $\alpha/\sqrt r$ the sum grows eightfold from $r = 1$ to $r = 64$, so the first step should be much too small at one end or much too large at the other. But its losses equal those of $\alpha/r$ within a few thousandths.
# Only $\alpha = 2r$ is clearly different: its first step is a sixteenth as large at $r = 1$ and four times as large at $r = 64$. So the first step alone does not explain why the best learning rate is independent of the rank.
#
# ## α
#
# Now $r = 16$ stays and $\alpha$ alone changes. **Predict** two curves: the loss if all values of $\alpha$ use the learning rate that suits $\alpha = 32$, and the loss if each $\alpha$ has its own best learning rate.

# %%
plots.alpha_chart(tables["alpha"]);

# %%
names = [f"alpha.{name}" for name in ("spread.fixed", "spread.own", "power")] + ["alpha256"]
display(Markdown(findings.say(*(f"hyperparameters.{name}" for name in names))))
lines = []
for a, rows in groups(tables["alpha"].where(phase="seeds"), "lora_alpha").items():
    ratio = findings[f"hyperparameters.ratio.alpha{a}"].value
    lines.append({"α": a, "best η": rows[0]["lr"], "× full fine-tuning's η": ratio})
show(lines, {"α": "", "best η": "g", "× full fine-tuning's η": "g"})

# %% [markdown]
# The left panel answers whether $\alpha$ is more than another learning rate: with its own best rate, nearly every $\alpha$ ends alike. So the ratio of LoRA's best learning rate to full fine-tuning's depends on $\alpha$. If you report this ratio, report $\alpha$ too.
#
# The right panel shows how the best rate depends on $\alpha$. If only $B$ moved, $\Delta W = sBA$ would be proportional to $\alpha\,\eta$. If both factors move far from their start, it is proportional to $\alpha\,\eta^2$. The dashed lines keep one of these two products constant, and the measured rates lie between them.
#
# ## The exact law
#
# Adam's step does not depend on the scale of the gradient. Therefore the settings
#
# $$(\alpha,\; A,\; \eta_A,\; \eta_B) \quad\text{and}\quad \left(\tfrac{\alpha}{ab},\; a A,\; a\,\eta_A,\; b\,\eta_B\right)$$
#
# train the same model, for any two positive numbers $a$ and $b$ (only in this section $b$ is not the batch): $A$ is $a$ times and $B$ is $b$ times as large at every step, and $\alpha/(ab)$ cancels both. Two conditions: $\varepsilon$ of Adam must be negligible, and gradients must not be clipped.
#
# **Predict.** How exactly do the two models agree if $a$ and $b$ are powers of two?

# %%
ten_batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)


def trained(alpha, a=1.0, b=1.0, start=None):
    """Logits after ten steps: η_A times a, η_B times b, the first A times `start` (or a)."""
    config = ln.LoraConfig(r=8, lora_alpha=alpha, target_modules="all-linear")
    model = ln.get_peft_model(ln.load_model("tiny"), config)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.value *= start or a
    ratio = {"lora_A": a, "lora_B": b}
    adam = ln.AdamW(lr=4e-3, weight_decay=0.0, eps=1e-30, lr_ratio=ratio)
    ln.train(model, ten_batches, adam, steps=10, progress=False)
    return model.forward(tokens)[0]


plain = trained(alpha=32)
variants = {
    "law: α/8, A and η_A × 4, η_B × 2": trained(32 / 8, a=4.0, b=2.0),
    "law: α/16, A and both rates × 4": trained(32 / 16, a=4.0, b=4.0),
    "η²·α constant: α/16, both rates × 4": trained(32 / 16, a=4.0, b=4.0, start=1.0),
    "η·α constant: α/4, both rates × 4": trained(32 / 4, a=4.0, b=4.0, start=1.0),
    "the base, not trained": ln.load_model("tiny").forward(tokens)[0],
}
lines = []
for name, logits in variants.items():
    change = np.linalg.norm(logits - plain) / np.linalg.norm(plain)
    equal = np.array_equal(logits, plain)
    lines.append({"variant": name, "change of the logits": change, "equal bits": equal})
show(lines, {"variant": "", "change of the logits": ".1%", "equal bits": ""})

# %% [markdown]
# If $A$ is rescaled too, the models are equal bit for bit. In practice the start of $A$ is not rescaled and both factors have one learning rate. Then the law does not hold: the last line is the effect of all ten steps, and the two variants above it differ from the plain run by a good part of it. Keeping $\eta^2\alpha$ comes nearer than
# keeping $\eta\,\alpha$.
#
# *In practice:* tune one of $\alpha$ and the learning rate, and leave the other.
#
# And the rule $\alpha = 2r$? It carries the recipe's $s = 2$ to other ranks. Each at its own best learning rate:

# %%
display(Markdown(findings.say("hyperparameters.two_r.r1", "hyperparameters.two_r.r64")))

# %% [markdown]
# ## Target modules
#
# **Predict.** Only one kind of matrix gets an adapter, with the same rank in all five blocks. Which of the seven kinds helps most, and which least? (The matrices have different sizes: k and v have half as many outputs as q, the MLP's matrices have one side that is three times as long.)

# %%
plots.target_modules_chart(tables["target_modules"]);

# %% [markdown]
# The order is partly an order of sizes. So give attention and the MLP *equally many parameters*, with a higher rank for attention. **Predict** again.

# %%
plots.equal_parameters_chart(tables["equal_parameters"]);

# %%
names = ("modules.r7", "modules.r28", "modules.all.r28")
display(Markdown(findings.say(*(f"hyperparameters.{name}" for name in names))))

# %% [markdown]
# ## Dropout
#
# Dropout makes it harder to memorise the training text. **Predict.** Where does it help: on a few kilobytes that are read again and again, or on text that is never read twice?

# %%
plots.dropout_chart(tables["dropout"]);

# %%
names = ("dropout.fixed", "dropout.own", "dropout.all")
display(Markdown(findings.say(*(f"hyperparameters.{name}" for name in names))))

# %% [markdown]
# Look at the grey line of the left panel. At the recipe's learning rate, every run on the little text ends *above the frozen base*: the training did harm, and dropout only made the harm smaller. At a much smaller learning rate all runs end below the base, and dropout gains nothing. If a run overfits, first try a smaller
# learning rate or fewer steps.
#
# ## Batch size
#
# The same text can be read in a few large batches or in many small ones. Schulman et al. found that large batches cost LoRA more than full fine-tuning. **Predict.** Does it show here?

# %%
plots.batch_size_chart(tables["batch_size"]);

# %% jupyter={"source_hidden": true}
# prints the findings, and the best learning rates by batch size
display(Markdown(findings.say(*(f"hyperparameters.batch.{b}" for b in (2, 8, 32)))))
batches = tables["batch_size"]
seeds = {method: batches.where(phase="seeds", method=method) for method in ("full", "lora")}
of_batch = {method: groups(rows, "batch_size") for method, rows in seeds.items()}
lines = []
for b, rows in of_batch["lora"].items():
    rates = {"LoRA's η": rows[0]["lr"], "full's η": of_batch["full"][b][0]["lr"]}
    lines.append({"batch": b} | rates | {"ratio": rates["LoRA's η"] / rates["full's η"]})
show(lines, {"batch": "", "LoRA's η": "g", "full's η": "g", "ratio": "g"})

# %% [markdown]
# It does not show here, in batches of up to 32 sequences of 128 bytes (the batches of the source are larger). But LoRA's best learning rate grows with the batch, and full fine-tuning's does not. If you keep LoRA's rate while the batch changes, the loss rises, and the batch is not to blame.
#
# ## Choose a setting
#
# The next cell turns these tables into advice for this model and this task. A setting is preferred to the simpler setting only if its loss is lower with every seed and by at least 0.001 nats per byte in the mean. Each hyperparameter was changed alone; the combination was not run.

# %% jupyter={"source_hidden": true}
# computes the advice from the tables, and shows it with its reasons
def better(difference):
    """Lower with every seed, and by at least 0.001 nats per byte in the mean."""
    return difference.spread[1] < 0 and difference.value <= -0.001


all_ranks = by_rank.settings["ranks"]
shares = {r: findings[f"hyperparameters.recovered.r{r}"].value for r in all_ranks}
r = min(r for r, share in shares.items() if share >= 0.95 * max(shares.values()))
alphas = [a for a in (4, 16, 64, 256) if better(findings[f"hyperparameters.alpha{a}"])]
everywhere = findings["hyperparameters.modules.all.r28"]
dropout = findings["hyperparameters.dropout.all"]
lora, usual = of_batch["lora"], "a batch of 8"
against = {b: compared("", f"A batch of {b}", lora[b], usual, lora[8]) for b in (2, 32)}
batch = min((b for b in against if better(against[b])), key=lambda b: mean(lora[b]), default=8)
times = lora[batch][0]["lr"] / of_batch["full"][batch][0]["lr"]
place = "all linear layers" if better(everywhere) else "the MLP"
advice = {
    f"Rank: r = {r}.": "It is the lowest rank with 95 % of the best rank's gain.",
    f"α: {alphas or 32}.": "Each other α was compared with 32, at its own best learning rate.",
    f"Targets: {place}.": everywhere.sentence,
    f"Dropout: {'yes' if better(dropout) else 'none'}.": dropout.sentence,
    f"Batch: {batch}.": against[batch if batch in against else 2].sentence,
    f"Learning rate: {times:g} × full fine-tuning's.": "Then try half and twice this.",
}
display(Markdown("\n".join(f"- **{what}** {why}" for what, why in advice.items())))

# %% [markdown]
# ## Recap
#
# - With $s = \alpha/r$ and a fixed $\alpha$, LoRA's best learning rate does not depend on the rank. Its ratio to full fine-tuning's depends on $\alpha$ and on the batch.
# - Under Adam, $\alpha$ and the learning rate are nearly one hyperparameter. The law behind it is exact if $A$ is rescaled too.
# - Adapters in all linear layers are better than adapters in the attention alone, also at equal numbers of parameters.
# - Dropout helped only where the learning rate was too high for a small text.
#
# ## Three questions
#
# 1. A colleague doubles $r$ under $s = \alpha/r$ with $\alpha$ fixed. How do the norm of the first $dB$ and the sum of its absolute values change? Should the learning rate change?
#
# <details><summary>Answer</summary>
#
# The norm is divided by $\sqrt 2$, because it grows as $s\sqrt r$ and $s$ is halved. The sum stays the same. The learning rate can stay.
#
# </details>
#
# 2. A paper reports that "LoRA's best learning rate is ten times full fine-tuning's". Which settings must you ask for?
#
# <details><summary>Answer</summary>
#
# $\alpha$ (with the rule for $s$) and the batch size, for the ratio depends on both. Also the step of the grid of learning rates.
#
# </details>
#
# 3. Two settings are compared at one learning rate, and the first has the lower loss. Why does this not show that the first setting is better?
#
# <details><summary>Answer</summary>
#
# The learning rate may suit the first setting and not the second. At one rate the values of $\alpha$ above differ much, at their own best rates hardly at all.
#
# </details>
#
# ## Try
#
# 1. Add $r = 256$ to `ranks` in the table of first gradients. Predict all six new numbers first.
#
# <details><summary>Hint</summary>
#
# The norm grows as $s\sqrt r$, the sum as $s\,r$. From $r = 64$ to $r = 256$, $r$ grows fourfold.
#
# </details>
#
# <details><summary>Answer</summary>
#
# $\alpha/r$: the norm is halved (0.20), the sum stays (about 155). $\alpha/\sqrt r$: the norm stays (about 0.8), the sum doubles (about 620). $\alpha = 2r$: the norm doubles (about 3.2), the sum grows fourfold (about 2,500). The predictions hold within a few percent.
#
# </details>
#
# 2. In `variants`, use numbers that are not powers of two: `trained(32 / 6, a=3.0, b=2.0)`. Are the bits still equal?
#
# <details><summary>Hint</summary>
#
# Multiplying a float by a power of two changes only its exponent. What does multiplying by 3 do?
#
# </details>
#
# <details><summary>Answer</summary>
#
# No. The logits differ by about $2 \cdot 10^{-7}$ of their size, which is the rounding of float32. The law holds, but multiplying by 3 rounds, and multiplying by a power of two does not.
#
# </details>
#
# 3. Repeat the table of first gradients after 50 steps of training, for $dA$ as well. Does the sum of $|dB|$ still not depend on the rank under $\alpha/r$?
#
# <details><summary>Hint</summary>
#
# Train `model` with `ln.train(model, batches, ln.AdamW(lr=4e-3, weight_decay=0.0), steps=50, progress=False)`, then call `model.zero_grad()` before `model.loss`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# It still hardly depends on the rank: 114 at $r = 1$ and 124 at $r = 64$. The sum of $|dA|$, which was 0 at the start, is now between 64 and 81 and hardly depends on it either.
#
# </details>
#
# Continue with [How much fits into a rank?](06b_capacity.ipynb).
