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
# "tiny" has read English; it is now specialised in Python code. Full fine-tuning trains every number. LoRA trains fewer, at ranks from 1 to
# 64, in the attention layers only or in all linear layers. Every method runs at its own best learning rate, found by a sweep, and is judged
# on code that nobody trained on. (The rate is chosen with the first seed, on other held-out code than the comparison reads.)

# %%
import statistics

import lora_np as ln
from lora_np import plots
from lora_np.studies.convergence import TARGETS, Run, measure
from lora_np.studies.step_cost import timed_alike
from lora_np.studies.table import Table

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
# numbers that full fine-tuning trains, and saves nothing any more (the last table but one has the counts).
#
# ## How they get there
#
# **Predict.** Will LoRA be slower at the start, where $B = 0$ and only half of its factors have a gradient?

# %%
plots.loss_curves(table);

# %% [markdown]
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
# $\alpha = 8r$, the same $s$ at every rank, and more directions add up in $BA$ as $r$ grows:

# %%
best = {}
for row in table.where(phase="seeds", seed=0):
    best[row["method"], row["target_modules"], row["r"]] = row["lr"]
full_lr = best["full", None, None]
for (method, target, r), lr in best.items():
    print(f"{method:5} {target or '':11} r = {r!s:5} best lr {lr:<7g} {lr / full_lr:g}× full's")

# %% [markdown]
# ## Do it yourself
#
# A short run of each, the settings as in the study but sixty steps: full fine-tuning, then LoRA at r = 8.

# %%
steps, rows = 60, []
for run in (Run("full", lr=full_lr), Run("lora", lr=best["lora", "all-linear", 8], r=8, target_modules="all-linear")):
    short = Run(**vars(run) | {"max_steps": steps, "eval_every": steps // 4})
    rows.append(measure(short))
    trainable = ln.ledger.count(short.model()).trainable
    losses = " → ".join(f"{loss:.3f}" for loss in rows[-1]["heldout"])
    print(f"{short.method:5} {trainable:9,} trained   {losses}   {rows[-1]['seconds'][-1] / steps:.3f} s a step")

# %%
mine = Table("mine", "A short run of each", "this notebook", {"base_loss": rows[0]["heldout"][0]}, rows)
plots.loss_curves(mine);

# %% [markdown]
# ## What keeps LoRA back?
#
# Two suspects: the rank, and what LoRA leaves frozen (the embedding, which is the head too, and the norms). Full fine-tuning of the linear
# layers alone has no low rank; LoRA with the rest trained beside it has nothing frozen. **Predict** which of the two comes closer.

# %%
shortfall = Table.load("../figures/data/shortfall.json")
names = {
    "full": "full fine-tuning",
    "linear": "full fine-tuning, linear layers only",
    "lora+rest": "LoRA, embedding and norms trained too",
    "lora": "LoRA",
}
for row in shortfall.rows:
    rank = f", r = {row['r']}" if row["r"] else ""
    print(f"{names[row['method']] + rank:46} held-out {row['final']:.4f}   {100 * row['recovered']:5.1f} % of the gain")

# %% [markdown]
# ## What a step costs
#
# `python -m lora_np bench` times a step of each side by side and measures the peak of its memory. LoRA computes no $dW$ and keeps no
# optimizer state for the frozen weights; in exchange it multiplies by $A$ and $B$. On a model this small the activations are most of the memory,
# and $r$ is not small beside $d$ = 128.

# %%
for row in cost.rows:
    name = f"LoRA r = {row['r']}, {row['target_modules']}" if row["r"] else "full fine-tuning"
    print(f"{name:24} {row['trainable']:9,} trained   {row['seconds']:.3f} s a step   peak {row['peak_bytes'] / 1e6:.0f} MB")

# %% [markdown]
# ## The numbers

# %%
shares = table.where(phase="seeds", method="lora")
print(f"{'':14}" + "".join(f"r = {r:<7}" for r in table.settings["ranks"]))
for target in TARGETS:
    cells = []
    for r in table.settings["ranks"]:
        values = [100 * row["recovered"] for row in shares if row["r"] == r and row["target_modules"] == target]
        spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    print(f"{target:14}" + "".join(f"{cell:<11}" for cell in cells))
n = len(table.settings["seeds"])
print("share of full fine-tuning's gain in %," + (f" {n} seeds, ± half their range" if n > 1 else " one seed"))

# %% [markdown]
# ## Try
#
# 1. Attention-only at r = 64 has about as many parameters as all-linear at which rank? Which does better, and what does that say about where to
#    put them?
# 2. Set `steps` to 20 or 400 in your own run. Does the order of the methods change?
# 3. Train on the *prose* again and watch the code: which method forgets faster?
