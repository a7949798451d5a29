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
# # Why low rank works
#
# Full fine-tuning changes every number of a weight matrix. LoRA insists that the change, $\Delta W = BA$, has a low rank. Is that a
# loss? Here is a model that was fine-tuned *fully*, with no low rank imposed on it, and then cut: of every $\Delta W$ it learned only the
# top $r$ singular directions were kept.

# %%
import numpy as np

from lora_np import plots
from lora_np.reproduce import photograph
from lora_np.studies import rank_reduction
from lora_np.studies.convergence import Run
from lora_np.studies.table import Table

cut = Table.load("../figures/data/truncated_loss.json")
base, full = cut.settings["base_loss"], cut.settings["full_loss"]
print("share of the gain:", ", ".join(f"r = {row['r']} {(base - row['heldout_loss']) / (base - full):.0%}" for row in cut.rows))
plots.truncated_loss(cut);

# %% [markdown]
# Read off where you would stop. A quarter of the directions keep most of what was learned, and one or two keep little: the change that
# fine-tuning makes is of lower rank than it could be, but how low depends on how far the task lies from the base, and from English to Python is
# far. This notebook shows where that picture comes from, on matrices that you train yourself in a moment.
#
# ## What a rank is
#
# $BA$, with $B$ (d, r) and $A$ (r, k), is a sum of $r$ columns times rows: whatever the numbers, its rank is at most $r$. The *best*
# such product for a given matrix is known (Eckart and Young 1936): take the singular value decomposition $\Delta W = U \Sigma V^\top$ and keep the
# $r$ largest singular values,
#
# $$B = U_r \sqrt{\Sigma_r}, \qquad A = \sqrt{\Sigma_r}\, V_r^\top, \qquad
# \lVert \Delta W - BA \rVert_F = \sqrt{\sigma_{r+1}^2 + \sigma_{r+2}^2 + \dots}$$
#
# The error is exactly the tail of the singular values. Nothing about the matrix matters but how fast they fall.

# %%
rng = np.random.default_rng(0)
matrix = rng.standard_normal((8, 6))
U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
r = 2
B = U[:, :r] * np.sqrt(sigma[:r])  # (8, r)
A = np.sqrt(sigma[:r])[:, None] * Vt[:r]  # (r, 6)
print("error", np.linalg.norm(matrix - B @ A), " tail", np.sqrt((sigma[r:] ** 2).sum()))

# %% [markdown]
# ## On something the eye can judge
#
# **Predict.** A photograph is a matrix too. Kept to rank 8 of 256, about what share of its numbers is left, and would you recognise the
# person?

# %%
plots.photograph(photograph());

# %% [markdown]
# Rear Admiral Grace Hopper, from matplotlib's sample data. A relative error $e$ means that $1 - e^2$ of the energy (the sum of $\sigma^2$) is kept:
# few directions hold most of a photograph, and still the eye misses much. **Predict.** Is a *learned change* simpler than that, or less simple?
#
# ## A change that was really learned
#
# Fine-tune all of "tiny" on Python code for a short while (the committed tables used the full setting), and subtract.

# %%
run = Run("full", lr=2e-3, max_steps=60, eval_every=60)
deltas = rank_reduction.learned_deltas(run)  # name → ΔW
name = rank_reduction.SHOWN
print(name, deltas[name].shape, "changed numbers:", np.count_nonzero(deltas[name]), "of", deltas[name].size)

# %% [markdown]
# Beside it, the best product of rank 4. It misses most of the matrix, as the error in the subtitle says; whether the *loss* minds is another
# question, for the end.

# %%
plots.decomposition_2d(rank_reduction.decomposition(deltas, run));

# %% [markdown]
# As a scene: on the left everything that full fine-tuning moved, on the right how few numbers a product of rank 4 has (the factors of the
# cut, not a LoRA run, and the heights of the two sides are not to be compared). (With `%matplotlib widget`, from the package
# ipympl, it turns under the mouse.)

# %%
plots.scene_3d(rank_reduction.decomposition(deltas, run));

# %% [markdown]
# ## Its singular values
#
# The dotted line in the next picture is a random matrix of the same shape and size. **Predict.** How much of its energy (the sum of
# $\sigma^2$) does it keep in its top 8 directions, and how much does a learned $\Delta W$?

# %%
plots.singular_values(rank_reduction.singular_values(deltas, run));

# %% [markdown]
# And after the full setting of the committed table, longer training at the best learning rate:

# %%
plots.singular_values(Table.load("../figures/data/singular_values.json"));

# %% [markdown]
# ## From energy to loss
#
# Energy is not what we train for. So cut every $\Delta W$ of the model you just trained, and test it on code it has not seen.

# %%
mine = rank_reduction.truncated_loss(deltas, run, ranks=(1, 4, 16, 64))
plots.truncated_loss(mine);

# %% [markdown]
# Compare this with the first picture of the notebook. After so short a training a lower rank carries the gain: the change that fine-tuning makes
# starts out simple, and the more it learns, the more directions it needs. And compare the energy with the gain: do the directions that hold
# most of the one hold most of the other?
#
# LoRA differs from all this in one respect: it does not cut a finished change but trains within the rank from the start. What that reaches
# is measured in notebook 05.
#
# ## Try
#
# 1. Compute $\Delta W$ for 10, 60 and 200 steps. Does its effective rank grow or shrink with training?
# 2. Which module's $\Delta W$ has the flattest spectrum? Would you give it a higher rank? (`rank_pattern` in PEFT does this.)
# 3. Train with a learning rate ten times smaller. Is the rank of $\Delta W$ a property of the task, or of how one trains?
