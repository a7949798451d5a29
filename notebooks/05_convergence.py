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
# # Convergence: LoRA against full fine-tuning
#
# "tiny" has read English; it is now specialised in Python code. Full fine-tuning trains every number. LoRA trains fewer, at ranks from 1 to
# 64, in the attention layers only or in all linear layers. Every method runs at its own best learning rate, found by a sweep, and is judged
# on code that nobody trained on. (The rate is chosen with the first seed, on other held-out code than the comparison reads.) All else is the same for all: 200 steps of 8 × 128 bytes,
# AdamW, a rate that warms up over ten steps and then falls to zero along a cosine, and $\alpha = 8r$.

# %%
import statistics

import lora_np as ln
from lora_np import plots
from lora_np.studies.harness.paired import verdict
from lora_np.studies.harness.table import Table, show
from lora_np.studies.harness.tiny_task import TARGETS, Run, measure
from lora_np.studies.timing.step_cost import timed_alike

table = Table.load("../figures/data/convergence.json")
sweep, seeds = (len(table.where(phase=phase)) for phase in ("sweep", "seeds"))
print(f"{sweep} runs of the sweep, {seeds} that are compared, over {len(table.settings['seeds'])} seed(s); `{table.command}`")
short = Table.load("../figures/data/convergence_short.json")
plots.recovered_gain(table, short);

# %% [markdown]
# The *gain* is how far the held-out loss falls below the base's. A method recovers
#
# $$\frac{L_\text{base} - L_\text{method}}{L_\text{base} - L_\text{full}}$$
#
# of it: 0 % has learned nothing, 100 % is as good as full fine-tuning. Mind the highest rank: on a model only 128 wide, r = 64 trains most of the
# numbers that full fine-tuning trains, and saves nothing any more (the counts stand under "What a step costs").
#
# The dotted line is the whole study once more with a quarter of the steps, at ranks 1, 8 and 16 only, each share taken of what full fine-tuning gains in as few. It says whether the answer
# depends on how long one trains: it hardly does here.
#
# ## How they get there
#
# **Predict.** Will LoRA be slower at the start, where $B = 0$ and only half of its factors have a gradient?

# %%
plots.loss_curves(table);

# %% [markdown]
# Lower ranks are slower from the start and stay so; r = 64 in all linear layers keeps up with full fine-tuning. So it is not the zero $B$: that costs $A$ its gradient for one step (notebook 03), and all
# ranks the same. It is how much the rank can follow. And do not read the flat ends as "nothing more to learn": the curves flatten because the rate goes to zero.
#
# The same over seconds of training, because a step does not cost the same for all. The seconds are steps times each method's cost of a step,
# all timed in turns in one run, so that a busy machine disturbs all about equally (a higher rank cannot really be cheaper than a lower one, so
# their disorder shows the noise):

# %%
cost = Table.load("../figures/data/step_cost.json")
plots.loss_curves(timed_alike(table, cost), x="seconds");

# %% [markdown]
# ## Why each method needs its own learning rate
#
# **Predict.** By what factor does LoRA's best learning rate differ from full fine-tuning's? And does it depend on the rank?

# %%
plots.learning_rates(table);

# %% [markdown]
# A comparison at one learning rate for all would have been decided by the choice of that rate. How far apart the best rates are depends on the
# scaling $s = \alpha / r$: the bypass moves by $s$ times what $B$ moves, so a larger $s$ needs a smaller rate. [Schulman et al.
# (2025)](https://thinkingmachines.ai/blog/lora/) fix $\alpha$ and find LoRA's best rate about ten times full fine-tuning's at every rank. Here
# $\alpha = 8r$, the same $s$ at every rank, and one step changes an entry of $s\,BA$ by a sum of $r$ terms. The more terms, the smaller the rate:

# %%
best = {}
for row in table.where(phase="seeds", seed=0):
    best[row["method"], row["target_modules"], row["r"]] = row["lr"]
full_lr = best["full", None, None]
for (method, target, r), lr in best.items():
    print(f"{method:5} {target or '':11} r = {r!s:5} best lr {lr:<7g} {lr / full_lr:g}× full's")

# %% [markdown]
# Read these as octaves and not as numbers: the rates tried are a factor of two apart, with one seed, and some valleys are flat (attention at r = 2 in the picture: its three best rates end within 0.003
# of each other). Such a choice can also look odd elsewhere: chosen by its end alone, the highest of the three makes the slow start of that rank's curve above.
#
# ## Do it yourself
#
# A short run of each, the settings as in the study but sixty steps: full fine-tuning, then LoRA at r = 8. **Predict.** Where will the sixty steps end: where the 200 above are at step 60, above, or below?

# %%
steps, rows = 60, []
for run in (Run("full", lr=full_lr), Run("lora", lr=best["lora", "all-linear", 8], r=8, target_modules="all-linear")):
    short = Run(**vars(run) | {"max_steps": steps, "eval_every": steps // 4})
    rows.append(measure(short))
    trainable = ln.costs.count(short.model()).trainable
    losses = " → ".join(f"{loss:.3f}" for loss in rows[-1]["heldout"])
    (longer,) = table.where(phase="seeds", method=run.method, seed=0, r=run.r, target_modules=run.target_modules)
    at_60 = longer["heldout"][longer["steps"].index(60)]
    print(f"{short.method:5} {trainable:9,} trained   {losses}   (of the 200 steps, after 60: {at_60:.3f}, at the end {longer['final']:.3f})")

# %%
mine = Table("mine", "A short run of each", "this notebook", {"base_loss": rows[0]["heldout"][0]}, rows)
plots.loss_curves(mine);

# %% [markdown]
# Sixty steps end about where the 200 are at step 60 (LoRA's a little lower, since their rate has fallen by then), and far above where those end. A curve that has gone flat says that its schedule is over,
# not that the model has converged.
#
# ## What keeps LoRA back?
#
# Two suspects: the rank, and what LoRA leaves frozen (the embedding, which is the head too, and the norms). Full fine-tuning of the linear
# layers alone has no low rank. LoRA with the rest trained beside it leaves nothing without training: $W$ moves by $BA$, all else directly. **Predict** which of the two comes closer. Each has its own best rate
# and three seeds again, and is compared with the run above it seed by seed.

# %%
shortfall = Table.load("../figures/data/shortfall.json")
names = {
    "full": "full fine-tuning",
    "linear": "full fine-tuning, linear layers only",
    "lora+rest": "LoRA, embedding and norms trained too",
    "lora": "LoRA",
}
print(f"{shortfall.settings['runs']} runs, `{shortfall.command}`")
for above, method in zip([None, *list(names)[:-1]], names, strict=True):
    rows = shortfall.where(method=method)
    rank, shares = f", r = {rows[0]['r']}" if rows[0]["r"] else "", [100 * row["recovered"] for row in rows]
    found = f"{statistics.mean(shares):5.1f} % of the gain ({min(shares):.1f} to {max(shares):.1f})"
    print(f"{names[method] + rank:46} best lr {rows[0]['lr']:<7g}{found}" + (f"   its loss, to the line above: {verdict(rows, shortfall.where(method=above))}" if above else ""))

# %% [markdown]
# Both are guilty. What stays frozen costs two points without a low rank (the second line) and three with one (the fourth to the third), the low rank three to five. Which costs more, two seeds of three decide.
#
# ## What a step costs
#
# `python -m lora_np bench` times a step of each side by side and measures the peak of its memory. LoRA computes no $dW$ and keeps no
# optimizer state for the frozen weights; in exchange it multiplies by $A$ and $B$. On a model this small the activations are most of the memory,
# and $r$ is not small beside $d$ = 128.
#
# **Predict.** Notebook 03 counted: at r = 8 LoRA's products in the linear layers are three quarters of full fine-tuning's. Is its step three quarters as long?

# %%
for row in cost.rows:
    name = f"LoRA r = {row['r']}, {row['target_modules']}" if row["r"] else "full fine-tuning"
    print(f"{name:24} {row['trainable']:9,} trained   {row['seconds']:.3f} s a step   peak {row['peak_bytes'] / 1e6:.0f} MB")

# %% [markdown]
# No. The products are half of a step's time or less on so narrow a model; softmax, norms and activations cost both the same, and thin products with $A$ and $B$ run at a fraction of the speed of
# wide ones. On SmolLM2 (notebook 10) the step is far shorter than full fine-tuning's. Differences of a few percent between ranks are the noise.
#
# ## The numbers

# %%
shares = table.where(phase="seeds", method="lora")
lines = []
for target in TARGETS:
    line = {"adapter in": target}
    for r in table.settings["ranks"]:
        values = [100 * row["recovered"] for row in shares if row["r"] == r and row["target_modules"] == target]
        spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
        line[f"r = {r}"] = f"{statistics.mean(values):.1f}{spread}"
    lines.append(line)
show(lines, list(lines[0]))
n = len(table.settings["seeds"])
print("share of full fine-tuning's gain in %," + (f" {n} seeds, ± half their range" if n > 1 else " one seed"))

# %% [markdown]
# ## To take with you
#
# - LoRA with all linear layers comes near full fine-tuning and, here, not all the way; the rank decides how near. The same rank in the attention layers alone stays far behind.
# - Two things hold it back, the rank and what stays frozen, and both can be measured apart.
# - Each method needs its own learning rate. A comparison at one rate compares the choice of the rate.
# - A flat end is the schedule's, not the model's.
#
# ## Try
#
# 1. Attention-only at r = 64 trains 286,720 numbers. From which rank on do *all linear layers* do as well, and with how many numbers? What does that say about where to put them?
# 2. Set `steps` to 20 or 400 in your own run. Does the order of the methods change?
# 3. What has your LoRA run forgotten? `fine_tune(short)` of `lora_np.studies.convergence.study` returns the model, and `evaluate` of `lora_np.training.loop` its loss on the prose of `lora_np.studies.methods.comparison.prose_batches()`.
#    Compare it with full fine-tuning's, and both with the base's.
#
# <details><summary>Hints</summary>
#
# 1. Read it off the last table: the first rank of the lower row that reaches 84.6 %. Its count stands under "What a step costs".
# 2. With 20 steps the rate has hardly warmed up when it must fall. Choose a rate for each length, or you compare schedules.
# 3. `model, _ = fine_tune(short)` and `evaluate(model, prose_batches())`, once for each `Run`. Notebook 09 has the answer for all methods, as paths.
#
# </details>
