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
# Full fine-tuning changes every number of a model. LoRA insists that each change, $\Delta W = BA$, has a low rank. Why does that cost so little?
# One answer is that fine-tuning never needed all those numbers. So take most of them away, at random, and see what is lost.

# %%
import numpy as np

from lora_np import load_model, plots
from lora_np.reproduce import photograph
from lora_np.studies import intrinsic_toy, rank_reduction, spectra, subspaces
from lora_np.studies.convergence import Run
from lora_np.studies.table import Table
from lora_np.subspace import DenseProjection, SparseProjection

dimension = Table.load("../figures/data/intrinsic_dimension.json")
plots.intrinsic_dimension(dimension, Table.load("../figures/data/convergence.json"));

# %% [markdown]
# Of "tiny"'s million numbers only $d$ train, in directions that were drawn before training and know nothing of the task (coral: from English to
# Python; green: Python from random weights). A small part of the numbers does most of the work. This notebook shows where the picture comes
# from, and then asks the same of *rank*: how many directions of each matrix a change needs, whether two runs find the same ones, and
# what the frozen weight already had in them.
#
# ## Training in a random subspace
#
# Li et al. (2018) freeze the weights $\theta_0$ and train $z$ alone, through a fixed random matrix $P$ with orthonormal columns:
#
# $$\theta = \theta_0 + P z, \qquad \frac{\partial L}{\partial z} = P^\top \frac{\partial L}{\partial \theta},
# \qquad \theta \in \mathbb{R}^D,\; z \in \mathbb{R}^d$$
#
# The smallest $d$ that still learns the task is its *intrinsic dimension*. For a task whose answer is known, take $D = 1000$ weights and ask that
# each of ten blocks of a hundred has a given sum:
#
# $$L(\theta) = \sum_{b=1}^{10} \Big(\sum_{i \in b} \theta_i - t_b\Big)^2$$
#
# **Predict.** What is the smallest $d$ with which a random subspace of $\mathbb{R}^{1000}$ holds a point of loss 0?

# %%
D, d, seed = 1000, 10, 0
C, t = intrinsic_toy.constraints(D)  # (10, D): 1 where a weight is in the block; (10,)
P = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, d)))[0]  # (D, d), orthonormal columns
M = C @ P  # (10, d): the sums as functions of z
z = np.linalg.lstsq(M, t, rcond=None)[0]  # (d,): the best z there is, no learning rate needed
print(f"d = {d}: loss {((M @ z - t) ** 2).sum():.1e}")
for kind in (DenseProjection, SparseProjection):
    table = intrinsic_toy.toy(kind, seed)
    print(f"\n{kind.__name__}: the intrinsic dimension is {table.settings['intrinsic_dimension']}")
    print("  loss by d: " + ", ".join(f"{row['d']}: {row['loss']:.0e}" for row in table.rows[7:12]))

# %% [markdown]
# Exactly as many as there are sums, whatever $D$ is. With one dimension less a little loss remains, and often very little: that is why "90 % of
# the performance" is a softer question than "all of it".
#
# A dense $P$ for "tiny" and $d = 50{,}000$ would hold fifty billion numbers. The second kind of $P$ has one entry in each row: the weights are dealt
# into $d$ groups, and each $z_j$ moves one group, each weight with a random sign. Its columns are orthonormal too, exactly, and a product costs one
# read of each weight.

# %%
D, d = 1000, 37
sparse = SparseProjection(D, d)
rng = np.random.default_rng(1)
z, theta = rng.standard_normal(d), rng.standard_normal(D)
Pz = z[sparse.group] * sparse.entry  # (D,): forward
PTtheta = np.bincount(sparse.group, sparse.entry * theta, d)  # (d,): its transpose, the backward
print("⟨Pz, θ⟩ − ⟨z, Pᵀθ⟩ =", Pz @ theta - z @ PTtheta, "   ‖Pz‖/‖z‖ =", np.linalg.norm(Pz) / np.linalg.norm(z))

# %% [markdown]
# ## d90 of a language model
#
# For a loss that never reaches 0 the usual question is $d_{90}$: the smallest $d$ that gains 90 % of what full training gains in as many steps. The
# search doubles (here: quadruples) $d$ until it reaches the line, and then bisects; each $d$ has its own best learning rate.

# %%
s = dimension.settings
print(f"{'start':14}{'d':>10}{'of D':>9}{'rate of z':>11}{'share of the gain':>19}   seeds")
for base in s["d90"]:
    name = {"tiny": "fine-tuning", "random": "from scratch"}[base]
    for d in sorted({row["d"] for row in dimension.where(phase="seeds", base=base, projection="sparse")}):
        rows = dimension.where(phase="seeds", base=base, projection="sparse", d=d)
        share = np.mean([row["share"] for row in rows])
        mark = "   ← d90" if d == s["d90"][base] else ""
        print(f"{name:14}{d:10,}{d / s['D']:9.2%}{rows[0]['lr']:11.3g}{share:19.1%}   {len(rows)}{mark}")
    full = dimension.where(phase="seeds", base=base, d=s["D"])
    start, end = (np.mean([row[key] for row in full]) for key in ("start", "final"))
    print(f"{name:14}with all: {start:.3f} → {end:.3f} nats a byte\n")
print(f"byte frequencies alone reach {s['unigram']:.3f}; d90 is known within a factor of {s['resolution']:.2g}")

# %% [markdown]
# Three things to read here.
#
# - Aghajanyan et al. (2020) found some 200 dimensions enough for RoBERTa to learn a classification. Here the task is another *language*, the
#   model is small, and $d_{90}$ is far larger. A small intrinsic dimension is no law; it belongs to a model and a task.
# - The shares of the two starts are not to be compared without a look at the losses. From random weights most of the gain is cheap (the last line
#   above), so that 90 % of it says little about how good the model is.
# - LoRA's diamonds lie near the coral line. At an equal count of trained numbers, directions that are merely random do about as well here
#   as directions with the structure of $BA$. What LoRA's structure buys is something else: it can be computed without ever touching $D$
#   numbers, and merged.
#
# ## What a rank is
#
# A product $BA$, with $B$ (d, r) and $A$ (r, k), is a sum of $r$ columns times rows: whatever the numbers, its rank is at most $r$. The *best*
# such product for a given matrix is known (Eckart and Young 1936): take $\Delta W = U \Sigma V^\top$ and keep the $r$ largest singular values,
#
# $$B = U_r \sqrt{\Sigma_r}, \qquad A = \sqrt{\Sigma_r}\, V_r^\top, \qquad
# \lVert \Delta W - BA \rVert_F = \sqrt{\sigma_{r+1}^2 + \sigma_{r+2}^2 + \dots}$$
#
# The error is exactly the tail of the singular values. Nothing about the matrix matters but how fast they fall.

# %%
matrix = rng.standard_normal((8, 6))
U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
r = 2
B = U[:, :r] * np.sqrt(sigma[:r])  # (8, r)
A = np.sqrt(sigma[:r])[:, None] * Vt[:r]  # (r, 6)
print("error", np.linalg.norm(matrix - B @ A), " tail", np.sqrt((sigma[r:] ** 2).sum()))

# %% [markdown]
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
# Fine-tune all of "tiny" on Python code for a short while (the committed tables used the full setting), and subtract. Beside one of the
# $\Delta W$ stands the best product of rank 4.

# %%
run = Run("full", lr=2e-3, max_steps=60, eval_every=60)
deltas = rank_reduction.learned_deltas(run)  # name → ΔW
plots.decomposition_2d(rank_reduction.decomposition(deltas, run));

# %% [markdown]
# As a scene: on the left everything that full fine-tuning moved, on the right how few numbers a product of rank 4 has (the factors of the
# cut, not a LoRA run, and the heights of the two sides are not to be compared). (With `%matplotlib widget`, from the package
# ipympl, it turns under the mouse.)

# %%
plots.scene_3d(rank_reduction.decomposition(deltas, run));

# %% [markdown]
# ## How many directions a learned change has
#
# Two counts of one list of singular values: the directions that hold 90 % of the energy, and the *effective rank* $e^{H(p)}$, with
# $p_i = \sigma_i / \sum_j \sigma_j$ and $H = -\sum_i p_i \ln p_i$ (Roy and Vetterli 2007), which is $n$ for $n$ equal singular values.
#
# **Predict.** A random matrix needs most of its directions for 90 %. How many of as many does the learned $\Delta W$ above need?

# %%
sigma = np.linalg.svd(deltas[rank_reduction.SHOWN], compute_uv=False)
p = sigma / sigma.sum()
energy = np.cumsum(sigma**2) / (sigma**2).sum()
chance = spectra.random_spectrum(deltas[rank_reduction.SHOWN].shape)
print(f"{len(sigma)} directions; 90 % of the energy: {np.searchsorted(energy, 0.9) + 1}, random {spectra.rank_for_energy(chance)}")
print(f"effective rank: {np.exp(-(p * np.log(p)).sum()):.1f}, random {spectra.effective_rank(chance):.1f}")
plots.singular_values(rank_reduction.singular_values(deltas, run));

# %% [markdown]
# After the full setting, layer by layer, and on a real language model (committed table):

# %%
ranks = Table.load("../figures/data/spectra.json")
plots.rank_by_layer(ranks);

# %%
print(f"{'median over matrices':22}{'90 % of the energy':>20}{'effective rank':>16}{'of a random matrix':>20}")
for model in ("tiny", "smollm2-135m"):
    for method in ("full", "lora"):
        rows = ranks.where(model=model, method=method)
        keys = ("rank90", "effective_rank", "random_rank90")
        ninety, effective, chance = (np.median([row[key] for row in rows]) for key in keys)
        print(f"{model:14}{method:8}{ninety:20g}{effective:16.1f}{chance:20g}")

# %% [markdown]
# Biderman et al. (2024) measured so on Llama-2-7B and found ranks 10 to 100 times LoRA's usual one. Divide by $r = 8$: is it so here? A matrix
# of width $d$ has no more than $d$ directions, so a small model cannot show a factor of 100 however it learns. Full fine-tuning's change is
# not of low rank at all, then; it is of *lower* rank than chance, and lowest in the keys and values and in the first layers. And LoRA, which
# learned the voice about as well (notebook 10), did not even use the eight directions it had. A low rank suffices, but not because full
# fine-tuning would have found one.
#
# ## From energy to loss
#
# Energy is not what we train for. So cut every $\Delta W$ of the fully fine-tuned model to its top $r$ directions, and test it on code it has not
# seen. **Predict** from the last picture: at which rank is 95 % of the gain kept?

# %%
plots.truncated_loss(Table.load("../figures/data/truncated_loss.json"));

# %% [markdown]
# And the model that you just trained, for a shorter while:

# %%
plots.truncated_loss(rank_reduction.truncated_loss(deltas, run, ranks=(1, 4, 16, 64)));

# %% [markdown]
# After so short a training a lower rank carries the gain: the change that fine-tuning makes starts out simple, and the more it learns, the more
# directions it needs.
#
# ## Do two runs find the same directions?
#
# If a task has its few directions, LoRA runs of another rank or seed should find them too. Hu et al. (2021, §7.2) compare the span of the top $i$ right
# singular vectors of $A$ in one run with that of the top $j$ in another. (Of $B$ the left ones: $A$ says what is read from the
# input, $B$ what is written to the output.)
#
# $$\varphi(i, j) = \frac{\lVert U_i^\top V_j \rVert_F^2}{\min(i, j)}, \qquad 0 \le \varphi \le 1, \qquad
# \text{for random spans of } \mathbb{R}^d: \; \mathbb{E}\,\varphi = \frac{\max(i, j)}{d}$$

# %%
d, i, j = 128, 8, 64
drawn = []
for _ in range(200):
    U, V = (np.linalg.qr(rng.standard_normal((d, n)))[0] for n in (i, j))  # (d, i), (d, j)
    drawn.append(np.linalg.norm(U.T @ V) ** 2 / min(i, j))
print(f"φ of random spans: {np.mean(drawn):.4f} ± {np.std(drawn) / np.sqrt(len(drawn)):.4f}, max(i, j)/d = {max(i, j) / d:.4f}")

# %% [markdown]
# Mind the baseline: on "tiny" 64 directions are half of all there are, and by chance alone $\varphi$ is a half there. (In the paper $d$ is 12,288.)
# **Predict.** Which corner of the map can tell anything, then?

# %%
compared = Table.load("../figures/data/subspaces.json")
plots.similarity_maps(compared);

# %% [markdown]
# The left column is chance, and the middle one looks the same: $A$ starts at random and the directions it *reads* stay about as random as they
# began. What a run *writes* is another matter: the columns of $B$ start at nothing, training alone has put them there, and two runs agree on them
# several times as much as chance would. The paper found a top direction of $A$ shared by more than a half in GPT-3; here none is. So the
# picture of a task with its one small subspace, which every run must find, is too simple for this model: what it reads with can be
# random, as long as what it writes is learned. (LoRA-FA freezes $A$ for that reason.)
#
# All pairs have two different seeds: with one seed the first layer's $A$ of $r = 8$ would be born with the first rows of that of
# $r = 64$, and $\varphi$ would find them again.
#
# ## What the frozen weight had there
#
# Does $\Delta W$ repeat what $W$ is strong in already? Project $W$ on the directions $U, V$ of $\Delta W$, and compare with its own top directions and
# with random ones (Hu et al. 2021, §7.3, table 7):
#
# $$\text{amplification} = \frac{\lVert \Delta W \rVert_F}{\lVert U^\top W V \rVert_F}$$

# %%
W = load_model("tiny").state_dict()[rank_reduction.SHOWN]
print({key: round(value, 3) for key, value in subspaces.amplification(W, deltas[rank_reduction.SHOWN], r=4).items()})
plots.amplification_chart(compared);

# %% [markdown]
# What $W$ has in the directions of $\Delta W$ lies near what it has in random ones, and far from what it has in its own top ones: LoRA does not
# repeat the weight, it brings forward what was hardly there, as in the paper. How *much* it amplifies is another thing. The factor falls with
# the rank, as the paper's does, because more directions of $W$ are counted in; at $r = 64$ they are half of all that this small
# $W$ has, and $\Delta W$ is smaller than what lies there.
#
# LoRA differs from all these cuts in one respect: it does not cut a finished change but trains within the rank from the start. What that reaches
# is measured in notebook 05.
#
# ## Try
#
# 1. In the toy, let two of the ten sums be the same sum with the same target. What is the intrinsic dimension now?
# 2. Compute $\Delta W$ for 10, 60 and 200 steps. Does its effective rank grow or shrink with training?
# 3. Which module's $\Delta W$ has the flattest spectrum? Would you give it a higher rank? (`rank_pattern` in PEFT does this.)
# 4. Train with a learning rate ten times smaller. Is the rank of $\Delta W$ a property of the task, or of how one trains?
