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
# Full fine-tuning changes each weight matrix $W$ by some matrix $\Delta W$. LoRA allows only changes of low rank, $\Delta W = s\,BA$. Why does this restriction cost so little?
#
# **You will learn** to
#
# - compute the best approximation of a matrix by a product $BA$ of rank $r$, and its error from the singular values;
# - explain the difference between the rank of a learned $\Delta W$ and the rank that its loss needs;
# - compare the directions of two runs with the similarity $\varphi$, and decide which of its values are chance.
#
# **Before you start:** [notebook 02](02_lora_from_one_equation.ipynb), and the singular value decomposition (SVD): $M = U \Sigma V^\top$ with orthonormal columns in $U$ and $V$ and singular values
# $\sigma_1 \ge \sigma_2 \ge \dots \ge 0$ on the diagonal of $\Sigma$.
#
# *Reading: 60 minutes. Running: about 30 seconds.*

# %%
import numpy as np
from IPython.display import Markdown, display

from lora_np import load_model, plots
from lora_np.report.pictures import photograph
from lora_np.report.results import Findings
from lora_np.studies.harness.table import Table, groups, median, show
from lora_np.studies.harness.tiny_task import Run
from lora_np.studies.low_rank import intrinsic_toy, rank_reduction, spectra, subspaces
from lora_np.training.subspace import DenseProjection, SparseProjection

findings = Findings("../figures")
rng = np.random.default_rng(0)

# %% [markdown]
# ## The best product of rank r
#
# $B$ has the shape (out, r) and $A$ the shape (r, in). The product $BA$ is a sum of $r$ columns of $B$ times rows of $A$, so its rank is at most $r$.
#
# For a given matrix $M$, the best product of rank $r$ is known (Eckart and Young 1936). Keep the $r$ largest singular values of $M = U \Sigma V^\top$, with $U_r$ (out, r), $\Sigma_r$ (r, r) and $V_r$ (in, r):
#
# $$B = U_r \sqrt{\Sigma_r}, \qquad A = \sqrt{\Sigma_r}\, V_r^\top, \qquad
# \lVert M - BA \rVert_F = \sqrt{\sigma_{r+1}^2 + \sigma_{r+2}^2 + \dots}$$
#
# The error depends only on the singular values that are left out. The next cell checks this for a random matrix.

# %%
M = rng.standard_normal((8, 6))
U, sigma, Vt = np.linalg.svd(M, full_matrices=False)  # (8, 6), (6,), (6, 6)
r = 2
B = U[:, :r] * np.sqrt(sigma[:r])  # (8, r)
A = np.sqrt(sigma[:r])[:, None] * Vt[:r]  # (r, 6)
print(f"error                             {np.linalg.norm(M - B @ A):.12f}")
print(f"from the singular values left out {np.sqrt((sigma[r:] ** 2).sum()):.12f}")

# %% [markdown]
# The sum of all $\sigma_i^2$ equals $\lVert M \rVert_F^2$. This sum is called the *energy* of $M$. The best product of rank $r$ keeps the share $(\sigma_1^2 + \dots + \sigma_r^2) / \sum_i \sigma_i^2$ of the energy.
# If its relative error is $e$, this share is $1 - e^2$.
#
# A grey photograph is a matrix too. **Predict.** A product of rank 8 has about 6 % of the numbers of the photograph below. Can you recognise the person?

# %%
plots.photograph(photograph());

# %% [markdown]
# The photograph is Rear Admiral Grace Hopper, from matplotlib's sample data. Eight directions hold most of the energy, but the face needs more of them.
#
# ## A learned change
#
# Now take a change that was learned. The next cell fine-tunes all weights of "tiny" on Python code for 60 steps, and subtracts the weights of the base. The picture shows one of the $\Delta W$ beside its best product of rank 4.
#
# **Predict.** A photograph keeps most of its energy in a few directions. Does a learned $\Delta W$ keep more or less of its energy in as few directions?

# %%
run = Run("full", lr=2e-3, max_steps=60, eval_every=60)
deltas = rank_reduction.learned_deltas(run)  # name → ΔW (out, in)
decomposition = rank_reduction.decomposition(deltas, run)
plots.decomposition_2d(decomposition);

# %%
def kept(matrix, r):
    """A product of rank r: its share of the numbers, and its share of the energy at best."""
    sigma = np.linalg.svd(matrix, compute_uv=False)
    numbers = r * sum(matrix.shape) / matrix.size
    return numbers, (sigma[:r] ** 2).sum() / (sigma**2).sum()


image = np.array(photograph().rows[-1]["image"])
delta = deltas[rank_reduction.SHOWN]  # v_proj in layer 2, (64, 128)
matrices = {
    "photograph": (image, 8),
    "photograph minus its mean": (image - image.mean(), 8),
    "learned ΔW": (delta, 4),
}
lines = []
for name, (matrix, r) in matrices.items():
    numbers, energy = kept(matrix, r)
    lines.append({"matrix": name, "r": r, "numbers": numbers, "energy": energy})
show(lines, {"matrix": "", "r": "", "numbers": ".1%", "energy": ".0%"})

# %% [markdown]
# The learned change is less simple than the photograph. Most of the photograph's energy is its mean brightness, which is a single direction. But the learned $\Delta W$ keeps less than the photograph without its mean, too.
#
# The next picture shows how few numbers $B$ and $A$ have. On the left are all numbers of $\Delta W$, on the right the numbers of its best product of rank 4. The two sides have separate scales, so compare the counts and not the heights.

# %%
plots.scene_3d(decomposition);

# %% [markdown]
# ## How many directions does a learned change have?
#
# Two numbers describe how fast singular values fall. Both are computed from one list of singular values.
#
# - *rank90:* the smallest $r$ for which the top $r$ directions hold 90 % of the energy.
# - *Effective rank* (Roy and Vetterli 2007): $e^{H}$ with $H = -\sum_i \tilde\sigma_i \ln \tilde\sigma_i$ and $\tilde\sigma_i = \sigma_i / \sum_j \sigma_j$. It is $n$ if $n$ singular values are equal and all others are 0.
#
# **Predict.** A random matrix of the shape of this $\Delta W$ has 64 directions, and most of them are needed for 90 % of its energy. How many does the learned $\Delta W$ need?

# %%
sigma = np.linalg.svd(delta, compute_uv=False)  # (64,)
energy = np.cumsum(sigma**2) / (sigma**2).sum()
share = sigma / sigma.sum()
random_sigma = spectra.random_spectrum(delta.shape)
lines = [
    {
        "matrix": "learned ΔW (v_proj, layer 2)",
        "rank90": np.searchsorted(energy, 0.9) + 1,
        "effective rank": np.exp(-(share * np.log(share)).sum()),
    },
    {
        "matrix": "random matrix",
        "rank90": spectra.rank_for_energy(random_sigma),
        "effective rank": spectra.effective_rank(random_sigma),
    },
]
show(lines, {"matrix": "", "rank90": "", "effective rank": ".1f"})
plots.singular_values(rank_reduction.singular_values(deltas, run));

# %% [markdown]
# The learned $\Delta W$ needs about half as many directions as a random matrix. The changes of attention have fewer directions than the changes of the MLP.
#
# That was one short run. The next picture has the longer runs: all matrices of "tiny" (which learns code) and of SmolLM2-135M, a real language model (which learns to answer in the voice of a lighthouse keeper).
# Each dot is one layer, and each method has its best learning rate. The number beside each black bar is the count of full fine-tuning divided by the count of a random matrix.
#
# **Predict.** Biderman et al. (2024) found ranks that are 10 to 100 times as high as LoRA's usual rank, on Llama-2-7B. How many times $r = 8$ is it here?

# %%
ranks = Table.load("../figures/data/spectra.json")
plots.rank_by_layer(ranks);

# %% jupyter={"source_hidden": true}
# prints the medians over all matrices of each model and method
lines = []
for (model, method), rows in groups(ranks.rows, "model", "method").items():
    lines.append({
        "model": model,
        "method": method,
        "rank90": median(rows, "rank90"),
        "rank90 of a random matrix": median(rows, "random_rank90"),
        "effective rank": median(rows, "effective_rank"),
    })
show(lines, dict(zip(lines[0], ("", "", "g", "g", ".0f"), strict=True)))
display(Markdown(findings.say("low_rank.times_r.tiny", "low_rank.times_r.smollm2-135m")))

# %% [markdown]
# A matrix of width $d$ has at most $d$ directions. So a small model cannot reach a factor of 100, however it learns. The keys and values have the lowest counts because they have the fewest rows. Relative to a random matrix, they are like the rest of attention.
#
# So full fine-tuning's change does not have a low rank. It has a *lower* rank than chance. LoRA learns the voice about as well (notebook 10), and on SmolLM2 most of its change lies in fewer directions than the eight that it may use.
# A low rank is enough, but full fine-tuning does not find a low rank by itself.
#
# ## From energy to loss
#
# Training minimises the loss, and the energy of $\Delta W$ is only a proxy for it. So cut every $\Delta W$ of a fully fine-tuned model to its top $r$ directions, and measure the loss on code that the model has not read.
#
# **Predict.** In the picture of singular values, the top eight directions hold about half of the energy in attention and less in the MLP. At which rank is 95 % of the gain kept? (The *gain* is the loss before training minus the loss after it.)

# %%
cut = Table.load("../figures/data/truncated_loss.json")
plots.truncated_loss(cut);

# %%
names = ("energy.top8", "gain_kept.r4", "gain_kept.r16")
display(Markdown(findings.say(*(f"low_rank.{name}" for name in names))))

# %% [markdown]
# The loss needs fewer directions than the energy. The next cell makes the same cut for the model that you trained above.

# %%
shown = (1, 4, 8, 16, 64)
now = rank_reduction.truncated_loss(deltas, run, ranks=shown)
lines = []
for table in (cut, now):
    s = table.settings
    gain = s["base_loss"] - s["full_loss"]
    kept_by = {row["r"]: (s["base_loss"] - row["heldout_loss"]) / gain for row in table.rows}
    lines.append({"steps": s["max_steps"], "η": s["lr"], "gain": gain})
    lines[-1] |= {f"r = {r}": kept_by[r] for r in shown}
show(lines, {"steps": "", "η": "", "gain": ".3f"} | {f"r = {r}": ".0%" for r in shown})

# %% [markdown]
# In the shorter run fewer directions carry the gain. The two runs differ in their steps and in their learning rates, so the table does not say which of the two is the reason (Try 2 and 3).
#
# A cut can keep more than 100 %. Then the cut model is *better* than the uncut model on text that it has not read: some of the last directions hold noise.
#
# ## Do two runs find the same directions?
#
# If a task has a few directions of its own, LoRA runs with another rank or seed should find them again. Hu et al. (2021, §7.2) compare the top $i$ right singular vectors of $A$ in one run, $V_1$ (d, i), with the top $j$ in
# another run, $V_2$ (d, j):
#
# $$\varphi(i, j) = \frac{\lVert V_1^\top V_2 \rVert_F^2}{\min(i, j)}, \qquad 0 \le \varphi \le 1$$
#
# $\varphi$ is 1 if one span contains the other, and 0 if the two spans are orthogonal. The right singular vectors of $A$ are the directions of the input that the adapter *reads*. For $B$, take the left singular vectors: the directions of the output that it *writes*.
#
# **Predict.** What is $\varphi$ of two *random* spans in $d = 128$ dimensions, with $i = 8$ and $j = 64$?

# %%
d, i, j = 128, 8, 64
drawn = []
for _ in range(200):
    V1, V2 = (np.linalg.qr(rng.standard_normal((d, n)))[0] for n in (i, j))  # (d, i), (d, j)
    drawn.append(np.linalg.norm(V1.T @ V2) ** 2 / min(i, j))
error = np.std(drawn) / np.sqrt(len(drawn))
print(f"φ({i}, {j}) of random spans: {np.mean(drawn):.4f} ± {error:.4f}")
print(f"max(i, j)/d:            {max(i, j) / d:.4f}")

# %% [markdown]
# For random spans the mean of $\varphi(i, j)$ is $\max(i, j)/d$. On "tiny", 64 directions are half of all 128 directions, so $\varphi$ is 0.5 by chance. (In the paper $d$ is 12,288, and chance is nearly 0.)
#
# **Predict.** In which corner of the maps below is chance small, so that a large $\varphi$ means something?

# %%
compared = Table.load("../figures/data/subspaces.json")
plots.similarity_maps(compared);

# %% jupyter={"source_hidden": true}
# prints φ(1, 1) and φ(8, 8) of q_proj: median and range over layers and pairs, and chance
lines = []
for pair in ("r8-r64", "r64-r64"):
    for of in ("A", "B"):
        for n in (1, 8):
            found = findings[f"low_rank.phi.{of}.{pair}.top{n}"]
            lines.append({"runs": pair.replace("-", ", "), "of": of, "φ": f"φ({n}, {n})"})
            least, most = found.spread
            lines[-1] |= {"median": found.value, "least": least, "most": most, "chance": n / d}
show(lines, dict(zip(lines[0], ("", "", "", ".3f", ".3f", ".3f", ".3f"), strict=True)))

# %% [markdown]
# The upper left corner, with small $i$ and $j$, is the informative one.
#
# - *A:* the map after training looks like the map before training. Two runs read different directions, as different as random ones. This does not mean that $A$ stays at its random start. Each $A$ may move far, but to a different place.
# - *B:* $B$ starts at zero, so all its directions come from training. Two runs share more of them than chance, most of all the first direction. But the pairs of runs differ much, and the median of the first direction stays below 0.5.
#
# The paper found that runs of GPT-3 share more than half of the top direction of $A$. That is not so here. A task does not have one small subspace that each run must find. Two runs may read differently and still do equally well.
# (All pairs have two different seeds. With one seed, the first layer's $A$ of both runs would start with the same rows.)
#
# ## How large is W in the directions of ΔW?
#
# Does $\Delta W$ repeat directions in which $W$ is already large? Let $U$ (out, r) and $V$ (in, r) be the top $r$ singular vectors of $\Delta W$. Then $\lVert U^\top W V \rVert_F$ is the size of $W$ in these directions. Hu et al. (2021, §7.3) call the following ratio the
# *amplification*:
#
# $$\text{amplification} = \frac{\lVert \Delta W \rVert_F}{\lVert U^\top W V \rVert_F}$$
#
# They found that $W$ is many times as large there as in random directions, and that $\Delta W$ amplifies these directions. They conclude that LoRA amplifies features that $W$ has learned but does not emphasise. **Predict** whether a small model shows the same.

# %%
W = load_model("tiny").state_dict()[rank_reduction.SHOWN]  # (64, 128)
one = subspaces.amplification(W, delta, r=4)
directions = {"of ΔW": "in_delta", "of W itself": "in_W", "random": "in_random"}
lines = [{"directions": name, "‖Uᵀ W V‖": one[key]} for name, key in directions.items()]
show(lines, {"directions": "", "‖Uᵀ W V‖": ".2f"})
print(f"\n‖ΔW‖ = {one['norm_delta']:.2f}, so the amplification is {one['factor']:.2f}.")
plots.amplification_chart(compared);

# %% [markdown]
# The table above is one matrix of the full fine-tuning that you ran. The picture has all matrices of LoRA runs. The next cell compares the query matrices with the query matrix of GPT-3 in the paper.

# %%
for r in (4, 64):
    names = (f"low_rank.{what}.q_proj.r{r}" for what in ("amplification", "inside"))
    display(Markdown(findings.say(*names)))

# %% [markdown]
# - As in the paper, $\Delta W$ does not repeat the weight: $W$ is much smaller in the directions of $\Delta W$ than in its own top directions.
# - Unlike in the paper, these directions are hardly special: $W$ is little larger there than in random directions. The amplification at $r = 4$ is about a quarter of the paper's.
# - The amplification falls with the rank, as in the paper, because a larger rank includes more directions of $W$.
#
# ## A different question: how many numbers does a task need?
#
# So far each matrix had its own rank. Li et al. (2018) ask about all weights together. Freeze the weights $\theta_0$ (all $D$ numbers of the model in one vector) and train only $z$, through a fixed random matrix $P$ with orthonormal columns. In this section $d$ is the
# number of trained dimensions, and $z$ is not the logits:
#
# $$\theta = \theta_0 + P z, \qquad dz = P^\top d\theta, \qquad \theta \in \mathbb{R}^D,\; z \in \mathbb{R}^d$$
#
# The smallest $d$ that still learns the task is the *intrinsic dimension* of the task. Take a toy whose answer is known. It has $D = 1000$ weights in ten blocks $b$ of a hundred, and each block must have a given sum $t_b$:
#
# $$L(\theta) = \sum_{b=1}^{10} \Big(\sum_{i \in b} \theta_i - t_b\Big)^2$$
#
# **Predict.** What is the smallest $d$ for which a random subspace contains a point with loss 0?

# %%
D = 1000
C, t = intrinsic_toy.constraints(D)  # (10, D): 1 where a weight is in the block; (10,)
for d in (8, 9, 10, 11):
    P = np.linalg.qr(np.random.default_rng(0).standard_normal((D, d)))[0]  # (D, d)
    M = C @ P  # (10, d): the ten sums as functions of z
    z = np.linalg.lstsq(M, t, rcond=None)[0]  # (d,): the best z
    print(f"d = {d:2}: smallest loss {((M @ z - t) ** 2).sum():.0e}")
lines = []
for D in (100, 1000, 10_000):
    projections = (DenseProjection, SparseProjection)
    dense, sparse = (intrinsic_toy.toy(P, D=D).settings for P in projections)
    lines.append({"D": D, "dense P": dense["intrinsic_dimension"]})
    lines[-1]["sparse P"] = sparse["intrinsic_dimension"]
print("\nintrinsic dimension:")
show(lines, {"D": ",", "dense P": "", "sparse P": ""})

# %% [markdown]
# The answer is ten, the number of constraints, for any $D$. With one dimension less, a small loss remains.
#
# For "tiny" and $d = 50{,}000$, a dense $P$ would have fifty billion numbers. The sparse $P$ has one entry per row: each weight belongs to one of $d$ groups, and $z_j$ moves all weights of group $j$, each with a random sign. Its columns are orthonormal too.
#
# The loss of a language model never reaches 0. So the usual question is softer: $d_{90}$ is the smallest $d$ that reaches 90 % of the gain of full training in as many steps. Two starts learn the same Python code: "tiny", which was trained on English (fine-tuning), and the
# same architecture with random weights (from scratch).
#
# **Predict.** Does fine-tuning need fewer dimensions than training from scratch? And does a random subspace need more numbers than LoRA?

# %%
dimension = Table.load("../figures/data/intrinsic_dimension.json")
plots.intrinsic_dimension(dimension, Table.load("../figures/data/convergence.json"));

# %%
display(Markdown(findings.say("low_rank.d90.tiny", "low_rank.d90.random")))

# %% [markdown]
# - Aghajanyan et al. (2020) found that some 200 dimensions are enough for RoBERTa on a classification task. Here the task is a new *language*, the model is small, and $d_{90}$ is hundreds of times larger. A small intrinsic dimension is a property of a model and a task.
# - From scratch, fewer dimensions reach 90 %, but 90 % of a different gain. From random weights most of the gain is easy: the model first learns how frequent each byte is. After that it is still far above the loss at which fine-tuning *starts*.
# - The curve from scratch falls once although $d$ grows. So its $d_{90}$ is a rough estimate.
# - At equal numbers of parameters, random directions do about as well as LoRA (diamonds). The random directions also move the embedding and the norms, which LoRA freezes. The structure of $BA$ has another advantage: it needs no product with all $D$ weights, and it can be merged.
#
# ## Recap
#
# - The best product of rank $r$ keeps the $r$ largest singular values. Its error is the root of the sum of the other $\sigma_i^2$.
# - A change that full fine-tuning learns has fewer directions than a random matrix, but many more than LoRA's rank.
# - The loss needs fewer directions than the energy. Most of the gain lies in the first directions, and LoRA can use these.
# - Two runs read different directions with $A$. They share some of the directions that they write with $B$.
# - All these cuts were made after training. LoRA trains within its rank from the start. [Notebook 05](05_convergence.ipynb) measures what it reaches.
#
# ## Three questions
#
# 1. A product of rank 4 has a relative error of 80 %. Which share of the energy does it keep, and which error leaves half of the energy?
#
# <details><summary>Answer</summary>
#
# It keeps $1 - 0.8^2 = 36\,\%$ of the energy. An error of $\sqrt{0.5} \approx 71\,\%$ leaves half of it.
#
# </details>
#
# 2. Someone reports $\varphi(64, 64) = 0.55$ for two runs on a layer with $d = 128$. Is this a sign of shared directions?
#
# <details><summary>Answer</summary>
#
# Hardly. Random spans have $\varphi = 64/128 = 0.5$ on average.
#
# </details>
#
# 3. Why can the loss need a lower rank than the energy?
#
# <details><summary>Answer</summary>
#
# The energy counts all directions of $\Delta W$ by their size alone. The loss depends on the inputs and on the task: some directions hardly change the outputs for real text, and some hold noise of the training text.
#
# </details>
#
# ## Try
#
# 1. In the toy, make two of the ten sums equal: `C[1] = C[0]; t[1] = t[0]`. What is the intrinsic dimension now?
#
# <details><summary>Hint</summary>
#
# Repeat the loop over `d` with 7, 8, 9 and 10. How many different constraints are there?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Nine. Two equal sums with equal targets are one constraint, so nine different constraints remain. With $d = 9$ the loss is rounding error, with $d = 8$ it is not.
#
# </details>
#
# 2. Compute the median effective rank and the median rank90 of all $\Delta W$ after 10, 60 and 200 steps. Do they grow or shrink with training?
#
# <details><summary>Hint</summary>
#
# Change `max_steps` and `eval_every` of `Run`, then use `spectra.effective_rank` and `spectra.rank_for_energy` on the singular values of each matrix in a layer.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Both shrink first and then hardly change: the median rank90 is 41, 36 and 37, the median effective rank 83, 78 and 77. The loss is another matter. A cut to rank 4 keeps 158 % of the gain after 10 steps, 85 % after 60 and 64 % after 200: with more steps, more directions carry the gain.
#
# </details>
#
# 3. Train with `lr=2e-4`, a tenth of the learning rate, for 60 steps. Is the rank of $\Delta W$ a property of the task alone?
#
# <details><summary>Hint</summary>
#
# Compare the rank90, and the shares of the gain that the cuts of `truncated_loss` keep.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No. With a tenth of the learning rate, 60 steps gain nearly as much, and the median rank90 falls from 36 to 28 (with `lr=1e-3` it is 34). Yet a cut to rank 8 keeps less of the gain, 84 % instead of 97 %. The rank of $\Delta W$ depends on how the model was trained.
#
# </details>
#
# 4. Which module has the flattest spectrum, relative to a random matrix? Would you give it a higher rank? (`rank_pattern` of `LoraConfig` sets ranks per module.)
#
# <details><summary>Hint</summary>
#
# In the table `ranks`, compare `rank90 / random_rank90` by `module`, or read the numbers in the picture of all layers.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The modules of the MLP are flattest, in both models. A flat spectrum means that a cut to rank $r$ loses more energy there, so a higher rank is a reasonable try. But energy is not loss: only a comparison of losses at equal numbers of parameters can decide.
#
# </details>
#
# Continue with [Convergence](05_convergence.ipynb).
