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
# # Why low rank works
#
# Full fine-tuning changes every number of a model. LoRA insists that each change, $\Delta W = BA$, has a low rank. Why does that cost so little?
# One answer is that a change which is learned has fewer directions than one made of as many random numbers. Here is how many it has.

# %%
import numpy as np

from lora_np import load_model, plots
from lora_np.report.pictures import photograph
from lora_np.studies.harness.table import Table, show
from lora_np.studies.harness.tiny_task import Run
from lora_np.studies.low_rank import claims as low_rank
from lora_np.studies.low_rank import intrinsic_toy, rank_reduction, spectra, subspaces
from lora_np.training.subspace import DenseProjection, SparseProjection

ranks = Table.load("../figures/data/spectra.json")
plots.rank_by_layer(ranks);

# %% [markdown]
# For each matrix of "tiny" and of a real language model, how many directions hold 90 % of the change that it learned; in ink a random matrix of the
# same shape, and what share of its count full fine-tuning's change has. This notebook shows where the picture comes from. It begins with a blunter question (how many *numbers* does a task need, wherever they act?), and then asks of *rank*: how many
# directions of each matrix a change needs, whether two runs find the same ones, and what the frozen weight already had in them.
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
# Exactly as many as there are sums. Is that so whatever $D$ is?

# %%
for D in (100, 1000, 10_000):
    found = [intrinsic_toy.toy(kind, seed, D).settings["intrinsic_dimension"] for kind in (DenseProjection, SparseProjection)]
    print(f"D = {D:6,}: the intrinsic dimension is {found[0]} with a dense P, {found[1]} with a sparse one")

# %% [markdown]
# It counts what the task asks, not what the model has. With one dimension less a little loss remains, and often very little: that is why "90 % of
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
# A language model's loss never reaches 0, so the usual question is softer. Call the loss before training less that after it the *gain*: $d_{90}$ is the smallest $d$ that gains 90 % of what
# full training gains in as many steps. Two starts learn the same Python code: "tiny", which has read English (fine-tuning), and its architecture with random weights (from scratch). The
# search quadruples $d$ until it reaches the line, and then bisects; each $d$ has its own best learning rate.
#
# **Predict.** Does fine-tuning need fewer numbers than learning from nothing? And does a random subspace need more of them than LoRA, whose $BA$ has a structure?

# %%
dimension, by_lora = (Table.load(f"../figures/data/{name}.json") for name in ("intrinsic_dimension", "convergence"))
plots.intrinsic_dimension(dimension, by_lora);

# %%
s = dimension.settings
print(f"{'start':14}{'d':>10}{'of D':>9}{'rate of z':>11}{'share of the gain':>19}   seeds")
curves = {}
for base in s["d90"]:
    name = {"tiny": "fine-tuning", "random": "from scratch"}[base]
    for d in sorted({row["d"] for row in dimension.where(phase="seeds", base=base, projection="sparse")}):
        rows = dimension.where(phase="seeds", base=base, projection="sparse", d=d)
        curves.setdefault(base, {})[d] = share = np.mean([row["share"] for row in rows])
        mark = "   ← d90" if d == s["d90"][base] else ""
        print(f"{name:14}{d:10,}{d / s['D']:9.2%}{rows[0]['lr']:11.3g}{share:19.1%}   {len(rows)}{mark}")
    full = dimension.where(phase="seeds", base=base, d=s["D"])
    start, end = (np.mean([row[key] for row in full]) for key in ("start", "final"))
    print(f"{name:14}with all: {start:.3f} → {end:.3f} nats a byte")
    if start > s["unigram"]:
        print(f"{'':14}byte frequencies alone reach {s['unigram']:.3f}: {(start - s['unigram']) / (start - end):.0%} of that gain")
    print()
print(f"d90 is known within a factor of {s['resolution']:.2g}\n")
random_d, random_share = np.array(list(curves["tiny"])), list(curves["tiny"].values())
for r, count in s["lora"].items():
    recovered = [row["recovered"] for row in by_lora.where(phase="seeds", method="lora", r=int(r), target_modules="all-linear")]
    line = np.interp(np.log(count), np.log(random_d), random_share)
    print(f"LoRA r = {r:>2}: {count:8,} numbers, {np.mean(recovered):.0%} of the gain; a random subspace of as many, between the measured ones: {line:.0%}")

# %% [markdown]
# Four things to read here.
#
# - Aghajanyan et al. (2020) found some 200 dimensions enough for RoBERTa to learn a classification. Here the task is another *language*, the
#   model is small, and fine-tuning's $d_{90}$ is hundreds of times that. A small intrinsic dimension is no law; it belongs to a model and a task.
# - From scratch fewer numbers reach 90 %, where the papers found more. But the two shares are of different gains. From random weights most of
#   the gain is cheap (the line on byte frequencies), and 90 % of it ends far above the loss at which fine-tuning *starts*.
# - The curve from scratch is rough: somewhere more numbers gain *less*, at any of the eight rates that were tried. Over the rates the loss has two valleys, one near full training's own rate (times $\sqrt{D/d}$) and
#   one far above it. Few numbers do best in the upper one, many in the lower, and where it falls both are shallow. The search takes for granted that more is never less, so that this $d_{90}$ is a rough one.
# - At an equal count of trained numbers, directions that are merely random do about as well here as directions with the structure of $BA$
#   (the last lines). Mind that the random ones have an advantage: they move the embedding and the norms too, which LoRA leaves frozen (notebook 05 measures what those are worth).
#   What LoRA's structure buys is something else: it can be computed without ever touching $D$ numbers, and merged.
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
# few directions hold most of a photograph, and still the eye misses much. **Predict.** Is a *learned change* simpler than that, or less simple: with
# as large a share of its numbers, does its best product keep more of the energy?
#
# ## A change that was really learned
#
# Fine-tune all of "tiny" on Python code for a short while (the committed tables used the full setting), and subtract. Beside one of the
# $\Delta W$ stands the best product of rank 4.

# %%
run = Run("full", lr=2e-3, max_steps=60, eval_every=60)
deltas = rank_reduction.learned_deltas(run)  # name → ΔW
decomposition = rank_reduction.decomposition(deltas, run)
plots.decomposition_2d(decomposition);

# %%
def kept(matrix, r):
    """(share of the numbers that a product of rank r has, share of the energy that the best one keeps)."""
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return r * sum(matrix.shape) / matrix.size, (sigma[:r] ** 2).sum() / (sigma**2).sum()


image = np.array(photograph().rows[-1]["image"])
shown = decomposition.rows[0]
grey = image - image.mean()  # without the average brightness, which is one direction and most of the energy
for what, matrix, r in (("photograph", image, 8), ("… less its mean", grey, 8), ("learned ΔW", deltas[rank_reduction.SHOWN], shown["r"])):
    numbers, energy = kept(matrix, r)
    print(f"{what:17} rank {r}: {numbers:5.1%} of the numbers, relative error {np.sqrt(1 - energy):.0%}, {energy:.0%} of the energy")

# %% [markdown]
# Far less simple. What is drawn on the right is not the change but the third of its energy that four directions hold, and whether the model misses the
# rest is a question for its loss, below.
#
# As a scene: on the left everything that full fine-tuning moved, on the right how few numbers a product of rank 4 has. B and A are the factors of the
# cut, not of a LoRA run, and each group of columns has a scale of its own: no height of one side is to be compared with one of the other. (With
# `%matplotlib widget`, from the package ipympl, it turns under the mouse.)

# %%
plots.scene_3d(decomposition);

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
print(f"{shown['name']}, {' × '.join(map(str, deltas[rank_reduction.SHOWN].shape))}")
print(f"{len(sigma)} directions; 90 % of the energy: {np.searchsorted(energy, 0.9) + 1}, random {spectra.rank_for_energy(chance)}")
print(f"effective rank: {np.exp(-(p * np.log(p)).sum()):.1f}, random {spectra.effective_rank(chance):.1f}")
plots.singular_values(rank_reduction.singular_values(deltas, run));

# %% [markdown]
# About half as many, and attention's changes are simpler than the MLP's. After the full setting, and on a real language model, over all the matrices
# of the first picture:

# %%
lines = []
for model in ("tiny", "smollm2-135m"):
    for method in ("full", "lora"):
        rows = ranks.where(model=model, method=method)
        keys = ("rank90", "effective_rank", "random_rank90")
        ninety, effective, chance = (np.median([row[key] for row in rows]) for key in keys)
        found = {"90 % of the energy": ninety, "effective rank": effective, "of a random matrix": chance}
        lines.append({"median over matrices": f"{model}, {method}"} | found)
show(lines, {"median over matrices": "", "90 % of the energy": "g", "effective rank": ".1f", "of a random matrix": "g"})

# %% [markdown]
# Biderman et al. (2024) measured so on Llama-2-7B and found ranks 10 to 100 times LoRA's usual one. **Predict** from the table: how many times $r = 8$
# is it here? And where is the change simplest, next to a random matrix of its shape?

# %%
for model in ("tiny", "smollm2-135m"):
    rows = ranks.where(model=model, method="full")
    modules = dict.fromkeys(row["module"] for row in rows)
    print(f"{model}: {np.median([row['rank90'] for row in rows]) / 8:.1f} × r = 8. The count as a share of a random matrix's, medians:")
    for name, of in (("first layer", {0}), ("other layers", range(1, 1 + max(row["layer"] for row in rows)))):
        here = [row for row in rows if row["layer"] in of]
        by_module = {m: np.median([row["rank90"] / row["random_rank90"] for row in here if row["module"] == m]) for m in modules}
        print(f"  {name:13}" + "  ".join(f"{m.removesuffix('_proj')} {share:.2f}" for m, share in by_module.items()))

# %% [markdown]
# A matrix of width $d$ has no more than $d$ directions, so a small model cannot show a factor of 100 however it learns. The keys and values have
# the lowest counts because they have the fewest rows; as a share of chance they stand with the rest of attention, and attention stands below the
# MLP. In the first layer some changes are simpler still: in "tiny" those of queries, keys, gate and up, in SmolLM2 those of all of attention.
#
# Full fine-tuning's change is not of low rank, then; it is of *lower* rank than chance. And LoRA, which learned the voice about as well (notebook 10),
# has most of its change in fewer directions than the eight it was given, on SmolLM2. (On "tiny" it uses nearly all of them evenly: its
# effective rank is close to 8.) A low rank suffices, but not because full fine-tuning would have found one.
#
# ## From energy to loss
#
# Energy is not what we train for. So cut every $\Delta W$ of the fully fine-tuned model to its top $r$ directions, and test it on code it has not
# seen. **Predict** from the last picture, where the top eight directions hold less than a third of the MLP's energy: at which rank is 95 % of the
# gain kept?

# %%
plots.truncated_loss(Table.load("../figures/data/truncated_loss.json"));

# %% [markdown]
# The loss asks for fewer directions than the energy does. Below are the shares that some ranks keep, of this model and of the one that you just
# trained, for a shorter while:

# %%
cut = Table.load("../figures/data/truncated_loss.json")
now = rank_reduction.truncated_loss(deltas, run, ranks=(1, 4, 8, 16, 64))
for table in (cut, now):
    s = table.settings
    gains = {row["r"]: (s["base_loss"] - row["heldout_loss"]) / (s["base_loss"] - s["full_loss"]) for row in table.rows}
    said = ", ".join(f"r = {r} {gain:.0%}" for r, gain in gains.items())
    print(f"{s['max_steps']} steps at {s['lr']:g} gain {s['base_loss'] - s['full_loss']:.3f} nats a byte; kept: {said}")
plots.truncated_loss(now);

# %% [markdown]
# Here fewer directions carry the gain. Two things differ from the picture before, the number of steps and the learning rate, so that it cannot be said
# which of them does it (Try 4). Where a cut keeps more than 100 %, it ends *better* than all of $\Delta W$: on text that nobody has read, some of
# what the last directions hold is noise, and leaving it out helps.
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
# **Predict.** Which corner of the map can tell anything, then: the one of small $i$ and $j$, or the one of large?

# %%
compared = Table.load("../figures/data/subspaces.json")
plots.similarity_maps(compared);

# %%
def phi(of, r, n):
    """φ(n, n) of q_proj, every pair of layers and runs, and its chance."""
    rows = compared.where(kind="similarity", of=of, r=r, module="q_proj")
    return [row["phi"][row["i"].index(n)][row["j"].index(n)] for row in rows], n / rows[0]["d"]


for r in ([8, 64], [64, 64]):
    for of in ("A", "B"):
        print(f"r = {r[0]:2} and r = {r[1]}, {of}", end="")
        for n in (1, 8):
            found, by_chance = phi(of, r, n)
            print(f"   φ({n}, {n}) {np.median(found):.3f} ({min(found):.2f} to {max(found):.2f}), {np.median(found) / by_chance:4.1f} × chance", end="")
        print()

# %% [markdown]
# The upper left corner, of small $i$ and $j$: there chance is near 0. The left column is chance, and the middle one looks the same: what two runs
# *read* with $A$ is as different at the end as at the start. (That does not say that $A$ stays where it began. Each run's $A$ may have moved
# far, to a place of its own.) What a run *writes* is another matter: the columns of $B$ start at nothing, training alone has put them there, and two
# runs agree on them more than chance would, most of all on the first one. But the pairs of layers and runs differ much, and in the median less than
# a half of the top direction is shared. The paper found a top direction of $A$ shared by more than a half in GPT-3; here none is.
#
# So the picture of a task with its one small subspace, which every run must find, is too simple for this model. If two runs can read so
# differently and do as well, could one leave $A$ at its random start? LoRA-FA (Zhang et al. 2023) does, for another reason: where $A$ has no
# gradient its input $x$ need not be kept, which saves memory. Here is what it costs, over all linear layers, each at its own best rate (notebook 09):

# %%
by_method = Table.load("../figures/data/comparison.json")
ends = {method: {row["seed"]: row["final"] for row in by_method.where(phase="seeds", method=method)} for method in ("lora", "lora-fa")}
costs = [ends["lora-fa"][seed] - loss for seed, loss in ends["lora"].items()]
means = {method: np.mean(list(of.values())) for method, of in ends.items()}
print(f"LoRA ends at {means['lora']:.3f}, LoRA-FA at {means['lora-fa']:.3f} nats a byte; seed by seed {min(costs):+.3f} to {max(costs):+.3f}")

# %% [markdown]
# Less memory, and with every seed a somewhat higher loss: what $A$ learns is worth something.
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
one = subspaces.amplification(W, deltas[rank_reduction.SHOWN], r=4)
print(f"full fine-tuning's ΔW of {shown['name']}, r = 4: " + ", ".join(f"{key} {value:.3g}" for key, value in one.items()))
plots.amplification_chart(compared);

# %% [markdown]
# The line above is one matrix, and full fine-tuning's change. The picture has LoRA's, of all matrices. The paper's numbers are those of a query matrix of GPT-3; ours beside them are the
# median over the query matrices of all layers and over the seeds:

# %%
print(f"{'':8}{'W in ΔW over W in random directions':>38}{'GPT-3':>8}{'amplification':>16}{'GPT-3':>8}")
for r in (4, 64):
    inside, factor = low_rank.median_inside(compared, r, "q_proj"), low_rank.median_factor(compared, r, "q_proj")
    print(f"r = {r:<4}{inside:38.2f}{low_rank.PAPER_INSIDE[r]:8.1f}{factor:16.2f}{low_rank.PAPER_AMPLIFICATION[r]:8.1f}")

# %% [markdown]
# What $W$ has in the directions of $\Delta W$ lies far from what it has in its own top ones: LoRA does not repeat the weight, and that is as in the
# paper. But there these directions were not just any: $W$ had many times as much in them as in random ones, and LoRA amplified "features that
# were learned but not emphasised". Here it has little more than by chance, and the amplification at $r = 4$ is a quarter of theirs.
#
# The amplification falls with the rank, as the paper's does, because more directions of $W$ are counted in; at $r = 64$ they are half
# of all that this small $W$ has, and $\Delta W$ is smaller than what lies there.
#
# ## Why low rank works: what was seen
#
# - A change that full fine-tuning learns has fewer directions than chance, and many more than LoRA's rank. It is no matrix of low rank.
# - The loss needs fewer of them than the energy does: most of the gain lies in the first few, and that is what a low rank keeps.
# - There is no one subspace that each run must find. What two runs read differs as much as at their start, what they write agrees in part.
# - LoRA's change is neither a copy of what $W$ is strong in nor, on this model, what it had already and did not use.
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
# 5. The cut of rank 4 has a relative error of some 80 %. Why is that still more than a third of the energy? What error leaves a half?
