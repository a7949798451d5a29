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
# LoRA has a rank $r$, a scale $\alpha$, a list of target modules and a dropout probability $p$. Training adds the learning rate $\eta$ (`lr` in the code) and the batch size. Which of these hyperparameters change the loss, and how do you choose their values?
#
# **You will learn** to
#
# - explain why, under Adam, a change of $\alpha$ has nearly the same effect as a change of the learning rate, and derive the exact law;
# - predict how the gradient of $B$ in the first step depends on the rank, for $s = \alpha/r$ and for $s = \alpha/\sqrt r$;
# - compare two settings fairly, each at its own best learning rate and both with the same seeds.
#
# **Before you start:** [notebook 02](02_lora_from_one_equation.ipynb), the gradients $dA$ and $dB$ of [notebook 03](03_gradients_by_hand.ipynb), and [notebook 05](05_convergence.ipynb). You need to know that Adam divides each gradient by the typical size of this gradient.
#
# *Reading: 65 minutes. Tasks: 30 minutes. Running: about 15 seconds.*

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
# A common recipe is $r = 16$, $\alpha = 32$, adapters in all linear layers, and no dropout. The next cell shows the result of this recipe on the model "tiny". This model was trained on English and now learns Python code. All losses are measured on held-out text, in nats per byte.
#
# **Predict.** The *gain* of a method is the loss of the base minus the loss after training. Which share of the gain of full fine-tuning does LoRA reach with this recipe?

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
# - *Each setting has its own best learning rate.* If all settings had the same learning rate, the comparison would only show which settings this learning rate suits. The study tries several learning rates, and each of them is twice the next lower learning rate. The best learning rate is chosen on one held-out text, and the loss is then measured on another held-out text.
# - *Settings are compared seed by seed.* The seed decides the order of the text, so two runs with the same seed read the text in the same order. "Lower with every seed" means that the difference of the two losses is negative for every seed. Suppose that two settings are equally good and are compared with three seeds. In one of four such comparisons, all three differences have the same sign by chance. So look at the size of the differences too. A difference of less than 0.001 nats per byte is no reason to prefer a setting.
#
# ## Rank and learning rate
#
# **Predict.** LoRA trains far fewer parameters than full fine-tuning. Is the best learning rate of LoRA higher or lower than the best learning rate of full fine-tuning? How does LoRA's best learning rate change when $r$ grows from 1 to 64 and $\alpha$ stays at 32? ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/) found that LoRA's best learning rate is ten times as high as full fine-tuning's best learning rate, for every rank.)

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
# If $\alpha$ is fixed, LoRA's best learning rate does not depend on the rank. In these runs, LoRA's best learning rate is less than ten times the best learning rate of full fine-tuning. If $\alpha = 2r$, LoRA's best learning rate falls as the rank grows.
#
# ## Why does the best learning rate not depend on the rank? The first step
#
# Look at the first step of Adam. Before this step $B = 0$, so $dA = 0$ and only $B$ changes. Adam changes each number of $B$ by the learning rate $\eta$. This change has the opposite sign of the gradient. To first order, the first step lowers the loss by
#
# $$\eta \sum_{ij} |dB_{ij}|, \qquad dB = s\,dW A^\top \quad (\text{out}, r)$$
#
# - The *sum* of $|dB_{ij}|$ adds the $r$ columns of $dB$, which all have about the same size. So the sum grows as $s\,r$. With $s = \alpha/r$ the product $s\,r$ equals $\alpha$, so the sum does not depend on the rank.
# - The *norm* $\lVert dB \rVert$ is the square root of the sum of the squares $dB_{ij}^2$. So the norm grows as $s\sqrt r$.
#
# **Predict.** How do the norm of $dB$ and the sum of $|dB_{ij}|$ depend on $r$ under these three rules?
#
# - $s = \alpha/r$ with a fixed $\alpha$;
# - $s = \alpha/\sqrt r$ with a fixed $\alpha$ (rsLoRA, [Kalajdzievski 2023](https://arxiv.org/abs/2312.03732));
# - $s = \alpha/r$ with $\alpha = 2r$, so that $s = 2$ at every rank.

# %%
tokens, targets = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4)[0]  # (4, 128)


def first_gradient(r, **config):
    """Return the norm of dB and the sum of |dB|, both over all layers."""
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
# Under the rule $\alpha/r$ the sum of $|dB_{ij}|$ is the same at every rank. Under the rule $\alpha/\sqrt r$ the norm of $dB$ is the same at every rank. Under the rule $\alpha = 2r$ both the sum and the norm grow with the rank. Adam divides each gradient by the typical size of this gradient, so a small norm alone does not slow the training. But the norm and the sum in the tables describe the *first* step only. In later steps $A$ changes too.
#
# ## The scale s at other ranks
#
# The next figure compares complete training runs under the three rules for $s$. The learning rate is tuned once, at $r = 16$, where the three rules give the same $s$. The runs at other ranks use the same learning rate.
#
# **Predict.** Which rule gives the lowest losses at ranks above 16? Which rule gives the lowest losses at ranks below 16?

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
# The argument about the first step predicts larger differences between the rules than the runs show. With the rule $\alpha/\sqrt r$, the sum of $|dB_{ij}|$ at $r = 64$ is eight times the sum at $r = 1$. According to the argument, the first step would be much too small at $r = 1$ or much too large at $r = 64$. But the losses under $\alpha/\sqrt r$ and the losses under $\alpha/r$ differ by only a few thousandths of a nat per byte.
# Only the losses under $\alpha = 2r$ clearly differ from the losses under the two other rules. Under $\alpha = 2r$, the first step is proportional to $r$. Compared with the first step at $r = 16$, it is 1/16 as large at $r = 1$ and four times as large at $r = 64$. So the first step alone does not explain why LoRA's best learning rate under $\alpha/r$ does not depend on the rank.
#
# ## α
#
# In the next figure $r$ is always 16, and only $\alpha$ changes. **Predict** how the loss depends on $\alpha$ in two cases. In the first case, all values of $\alpha$ use the best learning rate of $\alpha = 32$. In the second case, each $\alpha$ has its own best learning rate.

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
# The left panel shows that nearly all values of $\alpha$ reach the same loss if each $\alpha$ has its own best learning rate. So a change of $\alpha$ has nearly the same effect as a change of the learning rate. The table shows that the ratio of LoRA's best learning rate to full fine-tuning's best learning rate depends on $\alpha$. If you report this ratio, report $\alpha$ too.
#
# The right panel shows how the best learning rate depends on $\alpha$. If only $B$ changed in training, $\Delta W = sBA$ would be proportional to $\alpha\,\eta$. If both $A$ and $B$ change much, $\Delta W$ is proportional to $\alpha\,\eta^2$. Along one dashed line $\alpha\,\eta$ is constant, and along the other dashed line $\alpha\,\eta^2$ is constant. The measured best learning rates lie between the two dashed lines.
#
# ## The exact law
#
# If all gradients of a matrix are multiplied by the same positive number, Adam's step of this matrix stays the same. Therefore the two settings
#
# $$(\alpha,\; A,\; \eta_A,\; \eta_B) \quad\text{and}\quad \left(\tfrac{\alpha}{ab},\; a A,\; a\,\eta_A,\; b\,\eta_B\right)$$
#
# train the same model, for any two positive numbers $a$ and $b$. (In this section, $b$ is not the batch size.)
# At every step, the matrix $A$ of the second setting is $a$ times the matrix $A$ of the first setting. The matrix $B$ of the second setting is $b$ times the matrix $B$ of the first setting. The value $\alpha/(ab)$ cancels the factors $a$ and $b$, so both settings have the same $\Delta W$. The law has two conditions: Adam's $\varepsilon$ must be negligible, and the gradients must not be clipped.
#
# **Predict.** The next cell trains a model with each of the two settings. How closely do the logits of the two models agree if $a$ and $b$ are powers of two?

# %%
ten_batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)


def trained(alpha, a=1.0, b=1.0, start=None):
    """Return the logits after ten steps: rates a·η and b·η, initial A times `start` (or a)."""
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
# The table compares the logits of each variant with the logits of the plain run, which has $\alpha = 32$ and $a = b = 1$. In the first two lines the initial matrix $A$ is multiplied by $a$ too, as in the law. The logits of these two variants equal the logits of the plain run bit for bit. In practice the initial matrix $A$ is not multiplied by $a$, and $A$ and $B$ have the same learning rate. Then the law does not hold exactly. The last line of the table shows the difference between the base and the plain run, which is the effect of ten training steps. The differences in the third and the fourth line are not small compared with this effect. The variant with a constant $\eta^2\alpha$ is closer to the plain run than the variant with a constant $\eta\,\alpha$.
#
# *In practice:* tune either $\alpha$ or the learning rate, and keep the other fixed.
#
# With the rule $\alpha = 2r$, the scale $s$ is 2 at every rank, as in the recipe. The next cell compares the rule $\alpha = 2r$ with a fixed $\alpha = 32$. Each of the two rules has its own best learning rate:

# %%
display(Markdown(findings.say("hyperparameters.two_r.r1", "hyperparameters.two_r.r64")))

# %% [markdown]
# ## Target modules
#
# **Predict.** In each run only one kind of matrix gets an adapter, with the same rank in all five blocks of the model. Which of the seven kinds of matrix gives the lowest loss, and which gives the highest loss? (The matrices have different sizes. The matrices k and v have half as many outputs as the matrix q. Each MLP matrix has three times as many numbers as the matrix q.)

# %%
plots.target_modules_chart(tables["target_modules"]);

# %% [markdown]
# A larger matrix has a larger adapter, and this partly explains the order. In the next figure the adapters in the attention and the adapters in the MLP have *the same number of parameters*, because the adapters in the attention have a higher rank. **Predict.** Which adapters give the lower loss now: the adapters in the attention or the adapters in the MLP?

# %%
plots.equal_parameters_chart(tables["equal_parameters"]);

# %%
names = ("modules.r7", "modules.r28", "modules.all.r28")
display(Markdown(findings.say(*(f"hyperparameters.{name}" for name in names))))

# %% [markdown]
# ## Dropout
#
# Dropout makes it harder for the adapter to memorise the training text. **Predict.** One training text has a few kilobytes and is read again and again. Another training text is long and is never read twice. On which of the two texts does dropout lower the held-out loss?

# %%
plots.dropout_chart(tables["dropout"]);

# %%
names = ("dropout.fixed", "dropout.own", "dropout.all")
display(Markdown(findings.say(*(f"hyperparameters.{name}" for name in names))))

# %% [markdown]
# Look at the grey line of the left panel. At the recipe's learning rate, every run on the small text ends with a held-out loss *above the loss of the frozen base*. So the training made the model worse than the base, and dropout only made this harm smaller. At a much smaller learning rate, all runs end with a loss below the loss of the frozen base, and dropout does not lower the loss further. If a run overfits, first try a smaller
# learning rate or fewer steps.
#
# ## Batch size
#
# A model can read the same text in a few large batches or in many small batches. Schulman et al. found that large batches raise the loss of LoRA more than the loss of full fine-tuning. **Predict.** In the runs of the model "tiny", do large batches also raise the loss of LoRA more than the loss of full fine-tuning?

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
# In the runs of "tiny", the batches have up to 32 sequences of 128 bytes. In these runs, large batches do not raise the loss of LoRA more than the loss of full fine-tuning. (Schulman et al. used larger batches.) But LoRA's best learning rate grows with the batch size, and full fine-tuning's best learning rate does not. If you change the batch size and keep LoRA's learning rate, LoRA's loss rises, because the old learning rate does not suit the new batch size.
#
# ## Choose a setting
#
# The next cell computes advice for the model "tiny" and the task of learning Python code, from the tables of this notebook. A setting is preferred to a simpler setting only under two conditions. The loss must be lower than the simpler setting's loss with every seed, and the mean over the seeds must be lower by at least 0.001 nats per byte. In each comparison only one hyperparameter was changed. No run used all the recommended settings together.

# %% jupyter={"source_hidden": true}
# computes the advice from the tables, and shows it with its reasons
def better(difference):
    """Return whether the loss is lower with every seed, and by at least 0.001 on average."""
    return difference.spread[1] < 0 and difference.value <= -0.001


all_ranks = by_rank.settings["ranks"]
shares = {r: findings[f"hyperparameters.recovered.r{r}"].value for r in all_ranks}
r = min(r for r, share in shares.items() if share >= 0.95 * max(shares.values()))
alphas = [a for a in (4, 16, 64, 256) if better(findings[f"hyperparameters.alpha{a}"])]
everywhere = findings["hyperparameters.modules.all.r28"]
dropout = findings["hyperparameters.dropout.all"]
lora, usual = of_batch["lora"], "a batch of 8"
against = {b: compared("", f"a batch of {b}", lora[b], usual, lora[8]) for b in (2, 32)}
batch = min((b for b in against if better(against[b])), key=lambda b: mean(lora[b]), default=8)
times = lora[batch][0]["lr"] / of_batch["full"][batch][0]["lr"]
place = "all linear layers" if better(everywhere) else "the MLP"
advice = {
    f"Rank: r = {r}.": "It is the lowest rank with 95 % of the best rank's gain.",
    f"α: {alphas or 32}.": (
        "The losses with each other α were compared with the losses with α = 32. "
        "Each α had its own best learning rate."
    ),
    f"Targets: {place}.": everywhere.sentence,
    f"Dropout: {'yes' if better(dropout) else 'none'}.": dropout.sentence,
    f"Batch: {batch}.": against[batch if batch in against else 2].sentence,
    f"Learning rate: {times:g} × full fine-tuning's.": "Then try half and twice this.",
}
display(Markdown("\n".join(f"- **{what}** {why}" for what, why in advice.items())))

# %% [markdown]
# ## Recap
#
# - With $s = \alpha/r$ and a fixed $\alpha$, LoRA's best learning rate does not depend on the rank. The ratio of LoRA's best learning rate to full fine-tuning's best learning rate depends on $\alpha$ and on the batch size.
# - Under Adam, a change of $\alpha$ has nearly the same effect as a change of the learning rate. The two changes have exactly the same effect if the initial matrix $A$ is multiplied by the matching factor too.
# - Adapters in all linear layers reach a lower loss than adapters in the attention alone, even if both have the same number of parameters.
# - Dropout lowered the held-out loss only if the training text was small and the learning rate was too high for this text.
#
# ## Three questions
#
# 1. A colleague doubles $r$ under $s = \alpha/r$ with $\alpha$ fixed. How does the norm of $dB$ in the first step change? How does the sum of $|dB_{ij}|$ in the first step change? Should the colleague change the learning rate?
#
# <details><summary>Answer</summary>
#
# The norm is proportional to $s\sqrt r$. Here $s$ is halved and $\sqrt r$ grows by the factor $\sqrt 2$, so the norm is divided by $\sqrt 2$. The sum of $|dB_{ij}|$ stays the same. The learning rate can stay the same too.
#
# </details>
#
# 2. A paper reports that "the best learning rate of LoRA is ten times the best learning rate of full fine-tuning". Which settings must you know to judge this ratio?
#
# <details><summary>Answer</summary>
#
# You must know $\alpha$, the rule for $s$ and the batch size, because the ratio depends on all three. You must also know which learning rates were tried, because large steps between the tried learning rates make the ratio inexact.
#
# </details>
#
# 3. Two settings are compared at the same learning rate, and the first setting has the lower loss. Why does this result not show that the first setting is better?
#
# <details><summary>Answer</summary>
#
# The learning rate may suit the first setting and not the second. In the section about $\alpha$, the losses differ much if all runs use the same learning rate. The losses hardly differ if each $\alpha$ has its own best learning rate.
#
# </details>
#
# ## Try
#
# 1. Add $r = 256$ to `ranks` in the cell that measures the first gradients. Before you run the cell, predict the six new numbers in the two tables.
#
# <details><summary>Hint</summary>
#
# The norm is proportional to $s\sqrt r$, and the sum is proportional to $s\,r$. The new rank 256 is four times the rank 64.
#
# </details>
#
# <details><summary>Answer</summary>
#
# From $r = 64$ to $r = 256$ under $\alpha/r$, the norm is halved (0.20) and the sum stays the same (about 155). Under $\alpha/\sqrt r$ the norm stays the same (about 0.8) and the sum doubles (about 620). Under $\alpha = 2r$ the norm doubles (about 3.2) and the sum grows fourfold (about 2,500). The measured numbers differ from these predictions by only a few percent.
#
# </details>
#
# 2. In `variants`, use numbers that are not powers of two: `trained(32 / 6, a=3.0, b=2.0)`. Are the two models still equal bit for bit?
#
# <details><summary>Hint</summary>
#
# Multiplying a float by a power of two changes only its exponent. What does multiplying a float by 3 change?
#
# </details>
#
# <details><summary>Answer</summary>
#
# No. The relative difference of the logits is about $2 \cdot 10^{-7}$, the size of a rounding error in float32. The law holds for exact numbers. But multiplying a float by 3 rounds the result, and multiplying a float by a power of two does not.
#
# </details>
#
# 3. Measure the norm and the sum again after 50 steps of training, for $dB$ and also for $dA$. Is the sum of $|dB|$ under $\alpha/r$ still independent of the rank?
#
# <details><summary>Hint</summary>
#
# Train `model` with `ln.train(model, batches, ln.AdamW(lr=4e-3, weight_decay=0.0), steps=50, progress=False)`, then call `model.zero_grad()` before `model.loss`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Yes, nearly. The sum of $|dB|$ is 114 at $r = 1$ and 124 at $r = 64$. The sum of $|dA|$ was 0 at the start. After 50 steps the sum of $|dA|$ is between 64 and 81, and hardly depends on the rank.
#
# </details>
#
# Continue with [How much fits into a rank?](06b_capacity.ipynb).
