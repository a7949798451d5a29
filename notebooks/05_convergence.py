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
# # Convergence: LoRA against full fine-tuning
#
# "tiny" has read English; it is now specialised in Python code. Full fine-tuning trains every number. LoRA trains a few, at ranks from 1 to
# 64, in the attention layers only or in all linear layers. Every method runs at its own best learning rate, found by a sweep, with three
# seeds, and is judged on code that nobody trained on.

# %%
import statistics

import lora_np as ln
from lora_np import plots
from lora_np.studies.convergence import TARGETS, Run, measure
from lora_np.studies.table import Table

table = Table.load("../figures/data/convergence.json")
print(f"{len(table.rows)} runs, {table.seconds / 60:.0f} minutes, made by `{table.command}`")
plots.recovered_gain(table);

# %% [markdown]
# The *gain* is how far the held-out loss falls below the base's. A method recovers
#
# $$\frac{L_\text{base} - L_\text{method}}{L_\text{base} - L_\text{full}}$$
#
# of it: 0 % has learned nothing, 100 % is as good as full fine-tuning.
#
# ## How they get there
#
# **Predict.** Will LoRA be slower at the start, where $B = 0$ and only half of its factors have a gradient?

# %%
plots.loss_curves(table);

# %% [markdown]
# The same over seconds of training, because a step does not cost the same for all:

# %%
plots.loss_curves(table, x="seconds");

# %% [markdown]
# ## Why each method needs its own learning rate
#
# **Predict.** By what factor does LoRA's best learning rate differ from full fine-tuning's? And does it depend on the rank?

# %%
plots.learning_rates(table);

# %% [markdown]
# A comparison at one learning rate for all would have been decided by the choice of that rate. [Schulman et al.
# (2025)](https://thinkingmachines.ai/blog/lora/) found LoRA's best rate about ten times full fine-tuning's, and nearly independent of the rank under the
# scaling $\alpha / r$. Here:

# %%
best = {}
for row in table.where(phase="seeds", seed=0):
    best[row["method"], row["target_modules"], row["r"]] = row["lr"]
full_lr = best["full", None, None]
for (method, target, r), lr in best.items():
    print(f"{method:5} {target or '':11} r = {r!s:5} best lr {lr:<7g} {lr / full_lr:.0f}× full's")

# %% [markdown]
# ## Do it yourself
#
# A short run of each, the settings as in the study but sixty steps: full fine-tuning, then LoRA at r = 8.

# %%
rows = []
for run in (Run("full", lr=full_lr), Run("lora", lr=best["lora", "all-linear", 8], r=8, target_modules="all-linear")):
    short = Run(**vars(run) | {"max_steps": 60, "eval_every": 15})
    rows.append(measure(short))
    trainable = ln.ledger.count(short.model()).trainable
    losses = " → ".join(f"{loss:.3f}" for loss in rows[-1]["heldout"])
    print(f"{short.method:5} {trainable:9,} trained   {losses}   {rows[-1]['seconds'][-1] / 60:.3f} s a step")

# %%
mine = Table("mine", "A short run of each", "this notebook", {"base_loss": rows[0]["heldout"][0]}, rows)
plots.loss_curves(mine);

# %% [markdown]
# ## What a step costs
#
# `python -m lora_np bench` times a step of each side by side and measures the peak of its memory. LoRA computes no $dW$ and keeps no
# optimizer state for the frozen weights; in exchange it multiplies by $A$ and $B$. On a model this small, where the activations are most of the
# memory and $r$ is not small beside $d$ = 128, the saving is modest; it grows with the width.
#
# ## The numbers

# %%
shares = table.where(phase="seeds", method="lora")
print(f"{'':14}" + "".join(f"r = {r:<7}" for r in table.settings["ranks"]))
for target in TARGETS:
    cells = []
    for r in table.settings["ranks"]:
        values = [100 * row["recovered"] for row in shares if row["r"] == r and row["target_modules"] == target]
        cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
    print(f"{target:14}" + "".join(f"{cell:<11}" for cell in cells))
print("share of full fine-tuning's gain in %, mean ± standard deviation over seeds")

# %% [markdown]
# ## Try
#
# 1. Attention-only at r = 64 has about as many parameters as all-linear at which rank? Which does better, and what does that say about where to
#    put them?
# 2. Set `steps` to 30 in your own run. Does the order of the methods change?
# 3. Train on the *prose* again and watch the code: which method forgets faster?
