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
# Full fine-tuning changes each weight matrix $W$ by some matrix $\Delta W$. LoRA allows only changes of low rank, $\Delta W = s\,BA$. Why is the loss of LoRA nearly as low as the loss of full fine-tuning?
#
# **You will learn** to
#
# - compute the best approximation of a matrix by a product $BA$ of rank $r$, and compute the error of this approximation from the singular values;
# - explain the difference between the rank of a learned $\Delta W$ and the lower rank that is enough for nearly the same loss;
# - compare the directions of two runs with the similarity $\varphi$ (in notebook 03b, the letter $\varphi$ is an angle), and decide which values of $\varphi$ can occur by chance.
#
# **Before you start:** you have read [notebook 02](02_lora_from_one_equation.ipynb), and you know the singular value decomposition (SVD), $M = U \Sigma V^\top$. The columns of $U$ and of $V$ are orthonormal. The singular values
# $\sigma_1 \ge \sigma_2 \ge \dots \ge 0$ are on the diagonal of $\Sigma$.
#
# *Reading: 90 minutes. Tasks: 50 minutes. Running: about 30 seconds.*

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
# $B$ has the shape (out, r), and $A$ has the shape (r, in). The product $BA$ is a sum of $r$ matrices. Each of these matrices is a column of $B$ times a row of $A$. So the rank of $BA$ is at most $r$.
#
# For a given matrix $M$, the best product $BA$ of rank $r$ is the product with the smallest error $\lVert M - BA \rVert_F$ (Eckart and Young 1936). To compute the best product, keep the $r$ largest singular values of $M = U \Sigma V^\top$ and their singular vectors. The kept parts of the three matrices are $U_r$ (out, r), $\Sigma_r$ (r, r) and $V_r$ (in, r):
#
# $$B = U_r \sqrt{\Sigma_r}, \qquad A = \sqrt{\Sigma_r}\, V_r^\top, \qquad
# \lVert M - BA \rVert_F = \sqrt{\sigma_{r+1}^2 + \sigma_{r+2}^2 + \dots}$$
#
# The error depends only on the singular values that are left out. The next cell checks the formula of the error for a random matrix.

# %%
M = rng.standard_normal((8, 6))
U, sigma, Vt = np.linalg.svd(M, full_matrices=False)  # (8, 6), (6,), (6, 6)
r = 2
B = U[:, :r] * np.sqrt(sigma[:r])  # (8, r)
A = np.sqrt(sigma[:r])[:, None] * Vt[:r]  # (r, 6)
print(f"error                             {np.linalg.norm(M - B @ A):.12f}")
print(f"from the singular values left out {np.sqrt((sigma[r:] ** 2).sum()):.12f}")

# %% [markdown]
# The sum of all $\sigma_i^2$ equals $\lVert M \rVert_F^2$. This sum is called the *energy* of $M$. The best product of rank $r$ keeps the share $(\sigma_1^2 + \dots + \sigma_r^2) / \sum_i \sigma_i^2$ of the energy of $M$.
# If the relative error of the best product is $e$, this product keeps the share $1 - e^2$ of the energy of $M$.
#
# A grey photograph is a matrix too. **Predict.** The photograph below has one number per pixel. For 100 numbers of the photograph, the two factors of its best product of rank 8 have only about 6 numbers. Can you recognise the person in the picture of this product?

# %%
plots.photograph(photograph());

# %% [markdown]
# The photograph, a part of matplotlib's sample data, shows Rear Admiral Grace Hopper. Eight directions (pairs of singular vectors) hold most of the energy of the photograph, but more directions are needed to recognise the face.
#
# ## A learned change
#
# Now take a $\Delta W$ that a model has learned. The next cell fine-tunes all weights of the model tiny on Python code for 60 steps. Then the cell subtracts the weights before fine-tuning from the weights after fine-tuning. The result is one $\Delta W$ for each weight matrix. The picture shows one of these $\Delta W$ and its best product of rank 4.
#
# **Predict.** A few directions hold most of the energy of a photograph. Now take the same number of directions of a learned $\Delta W$. Do these directions hold a larger or a smaller share of the energy than in the photograph?

# %%
run = Run("full", lr=2e-3, max_steps=60, eval_every=60)
deltas = rank_reduction.learned_deltas(run)  # name → ΔW (out, in)
decomposition = rank_reduction.decomposition(deltas, run)
plots.decomposition_2d(decomposition);

# %%
def kept(matrix, r):
    """Return the share of numbers and the share of energy that the best rank-r product has."""
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
# The best product of low rank keeps a smaller share of the energy for the learned $\Delta W$ than for the photograph. Most of the energy of the photograph comes from its mean brightness, which needs only one direction. But even after this mean is subtracted, the best product keeps a larger share of the energy for the photograph than for the learned $\Delta W$.
#
# The next picture shows how few numbers $B$ and $A$ have. The left side shows all numbers of $\Delta W$. The right side shows the numbers of $B$ and $A$ (cyan) of the best product of rank 4. The grey floor of the picture has as many rows and columns as $\Delta W$. The floor marks the place of the product $BA$, whose numbers are not drawn. The heights on the two sides have different scales. So compare only the number of coloured columns in the two halves of the picture.

# %%
plots.scene_3d(decomposition);

# %% [markdown]
# ## How many directions does a learned change have?
#
# Two numbers, *rank90* and the *effective rank*, describe how fast the singular values of a matrix fall. Both numbers are computed from the list of the singular values.
#
# - *rank90* is the smallest $r$ for which the $r$ directions with the largest singular values hold at least 90 % of the energy of the matrix.
# - The *effective rank* (Roy and Vetterli 2007) is $e^{H}$ with $H = -\sum_i \tilde\sigma_i \ln \tilde\sigma_i$ and $\tilde\sigma_i = \sigma_i / \sum_j \sigma_j$. For example, if five singular values are equal and all others are 0, the effective rank is 5.
#
# The rank90 and the effective rank of a matrix can be very different. The rank90 uses the *squares* of the singular values, so the many small singular values hardly count. The effective rank uses the singular values *without* squares, so the small singular values count more. For this reason, the effective rank can be larger than the rank90.
#
# **Predict.** The learned $\Delta W$ in the pictures above and a random matrix of the same shape both have 64 directions. The random matrix needs most of these directions for 90 % of its energy. How many directions does the learned $\Delta W$ need for 90 % of its energy?

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
# For 90 % of its energy, the learned $\Delta W$ needs about half as many directions as a random matrix. The $\Delta W$ matrices of attention need fewer directions than the $\Delta W$ matrices of the MLP.
#
# These results come from one short run. The next picture shows the rank90 of $\Delta W$ in longer runs with two models. The model tiny learns code, and SmolLM2-135M, a real language model, learns to answer in the voice of a lighthouse keeper.
# Each dot is one layer. Full fine-tuning and LoRA each use their best learning rate (notebook 05 explains how a study finds this rate). The black bars show the rank90 of a random matrix of the same shape. The number beside each bar is the rank90 of full fine-tuning divided by the rank90 of the random matrix.
#
# **Predict.** Biderman et al. (2024) studied the $\Delta W$ of full fine-tuning on Llama-2-7B. In this study, the rank of $\Delta W$ was 10 to 100 times as high as the usual ranks of LoRA. For each of our two models, divide the rank90 of full fine-tuning by $r = 8$. How large is the quotient?

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
# A matrix of width $d$ has at most $d$ directions. So the rank90 in a small model cannot be 100 times as high as $r = 8$. With full fine-tuning, the $\Delta W$ matrices of the keys and values have the lowest rank90, because they have the fewest rows. To compare matrices of different shapes, look at the numbers beside the bars. In the model tiny, these numbers are about the same for the keys, the values, the queries and the output projection. In SmolLM2, the numbers for the keys and values lie between the numbers for the other two attention matrices and the numbers for the MLP.
#
# So the $\Delta W$ of full fine-tuning does not have a low rank. Its rank90 is only *lower* than the rank90 of a random matrix. LoRA learns the voice of the lighthouse keeper about as well as full fine-tuning (notebook 10). In SmolLM2, LoRA may use eight directions per weight matrix, but fewer than eight directions hold 90 % of the energy of LoRA's $\Delta W$.
# So a low rank is enough to learn the voice of the lighthouse keeper. But full fine-tuning, which may use any rank, does not find a $\Delta W$ of low rank.
#
# ## From energy to loss
#
# Training minimises the loss. The energy of $\Delta W$ tells us about the loss only indirectly. So the next study cuts every $\Delta W$ of a fully fine-tuned model to its top $r$ directions. Then the study measures the loss on code that the model has not read.
#
# **Predict.** In the picture of singular values, the top eight directions hold about half of the energy of $\Delta W$ in attention, and less than half of the energy in the MLP. Which rank is needed to keep 95 % of the gain? (The *gain* is the loss before training minus the loss after training.)

# %%
cut = Table.load("../figures/data/truncated_loss.json")
plots.truncated_loss(cut);

# %% jupyter={"source_hidden": true}
# prints two shares per rank: of the energy (median over matrices), and of the gain
spectrum = Table.load("../figures/data/singular_values.json")
s = cut.settings
gain = s["base_loss"] - s["full_loss"]
lines = []
for row in cut.rows:
    squares = [np.square(matrix["singular_values"]) for matrix in spectrum.rows]
    energies = [values[: row["r"]].sum() / values.sum() for values in squares]
    lines.append({"r": row["r"], "energy kept": np.median(energies)})
    lines[-1]["gain kept"] = (s["base_loss"] - row["heldout_loss"]) / gain
show(lines, {"r": "", "energy kept": ".0%", "gain kept": ".0%"})
display(Markdown(findings.say("low_rank.gain_kept.norms")))

# %% [markdown]
# The column "gain kept" shows which rank is needed to keep 95 % of the gain. At every rank, this column includes the gain of the fine-tuned norms. The cut model keeps the gain of the norms even at rank 0. Rank 16 keeps less than 95 % of the gain, and rank 32 keeps more than 95 %. So the smallest rank that keeps 95 % of the gain lies between 16 and 32.
#
# At each rank below the full rank, the share of the gain that the cut model keeps is larger than the share of the energy that the cut $\Delta W$ keeps. So a given share of the gain needs fewer directions than the same share of the energy. The next cell makes the same cuts for the model that you trained above.

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
# To keep the same share of the gain, the shorter run needs fewer directions than the longer run. The two runs differ in the number of steps and in the learning rate. The table does not show which of these two differences causes the result (see tasks 2 and 3 under "Try").
#
# A cut of $\Delta W$ can keep more than 100 % of the gain. Then, on text that neither model has read, the cut model has a *lower* loss than the uncut model. A possible reason is that some of the removed directions hold noise. This notebook does not test this reason.
#
# ## Do two runs find the same directions?
#
# If a task needs a few particular directions, every LoRA run should find these directions, with any rank and any seed. Hu et al. (2021, §7.2) compare the right singular vectors of $A$ in two runs. The columns of $V_1$ (d, i) are the top $i$ right singular vectors of one run. The columns of $V_2$ (d, j) are the top $j$ right singular vectors of the
# other run. In this section, $i$ and $j$ are numbers of directions, and $d$ is the number of columns of $A$. The similarity of the two runs is
#
# $$\varphi(i, j) = \frac{\lVert V_1^\top V_2 \rVert_F^2}{\min(i, j)}, \qquad 0 \le \varphi \le 1$$
#
# The *span* of a set of vectors is the set of all their weighted sums. $\varphi$ compares the span of the columns of $V_1$ with the span of the columns of $V_2$. $\varphi$ is 1 if one span contains the other, and 0 if the two spans are orthogonal. For example, take a space with three axes. The span of axis 1 and the span of axes 1 and 2 have $\varphi(1, 2) = 1$. The span of axis 1 and the span of axes 2 and 3 have $\varphi(1, 2) = 0$.
#
# The right singular vectors of $A$ are the directions of the input that the adapter *reads*. For $B$, we take the left singular vectors, which are the directions of the output that the adapter *writes*.
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
# For random spans the mean of $\varphi(i, j)$ is $\max(i, j)/d$. In the model tiny, 64 directions are half of all 128 directions, so $\varphi(8, 64)$ is 0.5 by chance. (In the paper of Hu et al., $d$ is 12,288, so $\varphi$ is nearly 0 by chance.)
#
# **Predict.** The maps below show $\varphi$ for all $i$ and $j$. In which corner of a map is the $\varphi$ of random spans so small that a large $\varphi$ cannot occur by chance?

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
# In the upper left corner of each map, $i$ and $j$ are small, so the $\varphi$ of random spans is small there.
#
# - *A:* For $A$, the map after training looks like the map before training. The directions that two runs read are as different as random directions. This result does not show how far $A$ moves from its random start. The matrices $A$ of two runs could both move far, but in different directions.
# - *B:* $B$ starts at zero, so all directions of $B$ come from training. For $B$, the $\varphi$ of two runs is larger than the $\varphi$ of random spans. The difference is largest for the first direction. But $\varphi$ varies strongly between pairs of runs, and for the first direction the median of $\varphi$ is below 0.5.
#
# For GPT-3, Hu et al. found that the $\varphi$ of the top direction of $A$ is larger than 0.5. For the model tiny, the median of the $\varphi$ of the top direction of $A$ is not larger than the $\varphi$ of random spans. So there is no single small subspace that the $A$ of a query matrix must read in every run. Two runs may read different directions and still reach the same loss.
# (The two runs of each pair have different seeds. With the same seed, the $A$ of the first layer would start with the same rows in both runs.)
#
# ## How large is W in the directions of ΔW?
#
# Does $\Delta W$ repeat directions in which $W$ is already large? In this section, $U$ (out, r) and $V$ (in, r) hold the top $r$ singular vectors of $\Delta W$. So $\Delta W$ reads the directions $V$ of its input and writes the directions $U$ of its output. The matrix $U^\top W V$ has the shape (r, r). This matrix is the part of $W$ that reads the directions $V$ and writes the directions $U$, and $\lVert U^\top W V \rVert_F$ is the size of this part.
#
# Hu et al. (2021, §7.3) compare the size of $\Delta W$ with the size of this part of $W$. They call the ratio of the two sizes the *amplification*:
#
# $$\text{amplification} = \frac{\lVert \Delta W \rVert_F}{\lVert U^\top W V \rVert_F}$$
#
# An amplification of 5 means that $\Delta W$ is five times as large as $U^\top W V$. An amplification below 1 means that $\Delta W$ is smaller than $U^\top W V$. (The norm of $\Delta W$ counts all directions of $\Delta W$, not only the top $r$ directions.)
#
# Hu et al. found that $W$ is many times as large in the directions of $\Delta W$ as in random directions. They also found that $\Delta W$ amplifies these directions. Hu et al. conclude that LoRA amplifies features that $W$ has learned but does not emphasise. **Predict.** Will we find the two results of Hu et al. in the model tiny too?

# %%
W = load_model("tiny").state_dict()[rank_reduction.SHOWN]  # (64, 128)
one = subspaces.amplification(W, delta, r=4)
directions = {"of ΔW": "in_delta", "of W itself": "in_W", "random": "in_random"}
lines = [{"directions": name, "‖Uᵀ W V‖": one[key]} for name, key in directions.items()]
show(lines, {"directions": "", "‖Uᵀ W V‖": ".2f"})
print(f"\n‖ΔW‖ = {one['norm_delta']:.2f}, so the amplification is {one['factor']:.2f}.")
plots.amplification_chart(compared);

# %% [markdown]
# The table above is about one weight matrix of the full fine-tuning run in this notebook. The picture shows all weight matrices that have an adapter in the LoRA runs of the study. Each point is the median of one kind of matrix. The title of the picture gives one median over all matrices for each rank, so single points can lie above or below these medians. The next cell compares the query matrices of these LoRA runs with the query matrix of GPT-3 in the paper.

# %%
for r in (4, 64):
    names = (f"low_rank.{what}.q_proj.r{r}" for what in ("amplification", "inside"))
    display(Markdown(findings.say(*names)))

# %% [markdown]
# - As in the paper of Hu et al., $\Delta W$ does not repeat the top directions of $W$. At $r = 4$, $W$ is much smaller in the directions of $\Delta W$ than in the top directions of $W$. At $r = 64$, the difference is smaller, because 64 directions are a large part of all directions. The weight matrices of the keys and values have only 64 rows, so there $U$ includes every direction of the output.
# - Unlike in the paper of Hu et al., $W$ is only a little larger in the directions of $\Delta W$ than in random directions. At $r = 4$, the amplification is about a quarter of the amplification in the paper.
# - The amplification falls with the rank, as in the paper, because with a larger rank, $U^\top W V$ includes more directions of $W$.
#
# ## A different question: how many numbers does a task need?
#
# So far we looked at the rank of each matrix. Li et al. (2018) look at all weights together. They freeze the vector $\theta_0$ of all $D$ weights of the model. They train only a short vector $z$, which changes the weights through a fixed random matrix $P$ with orthonormal columns.
#
# In this section some letters have other meanings than in the table of notation. $z$ is the trained vector, $d$ is the length of $z$ (the number of trained dimensions), and $P$ is the random matrix:
#
# $$\theta = \theta_0 + P z, \qquad dz = P^\top d\theta, \qquad \theta \in \mathbb{R}^D,\; z \in \mathbb{R}^d$$
#
# The smallest $d$ with which the model still learns the task is the *intrinsic dimension* of the task. First take a toy task with a known intrinsic dimension. The toy task has $D = 1000$ weights in ten blocks of a hundred weights. Here $b$ is the number of a block from 1 to 10, $i$ is the number of a weight, and $t_b$ is the given target of block $b$. In each block $b$, the sum of the weights must equal $t_b$:
#
# $$L(\theta) = \sum_{b=1}^{10} \Big(\sum_{i \in b} \theta_i - t_b\Big)^2$$
#
# **Predict.** What is the smallest $d$ for which a random subspace contains a point with loss 0?

# %%
D = 1000
C, t = intrinsic_toy.constraints(D)  # C (10, D): 1 if the weight is in the block; t (10,)
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
# For all three values of $D$, the smallest $d$ with loss 0 is ten, which is the number of constraints. With nine dimensions, the smallest loss is larger than 0.
#
# For the model tiny and $d = 50{,}000$, a dense $P$ would have fifty billion numbers. In each row of the sparse $P$, only one entry is not zero. Each weight belongs to one of $d$ groups, and $z_j$ changes all weights of group $j$. If a group has $g$ weights, its column of $P$ has $g$ entries $\pm 1/\sqrt{g}$ with random signs. All other entries of the column are zero. The columns of the sparse $P$ are orthonormal too. No two columns have a nonzero entry in the same row, and the squares of the entries of a column sum to 1.
#
# The loss of a language model never reaches 0. So the usual measure is $d_{90}$, the smallest $d$ with which training reaches 90 % of a reference gain. The reference gain is the gain of training all weights for the same number of steps. Two models learn the same Python code. The first model, tiny, was already trained on English, so its training on Python code is *fine-tuning*. The second model has the
# same architecture as the first model, but starts with random weights, so its training is *training from scratch*.
#
# **Predict.** Is $d_{90}$ smaller for fine-tuning than for training from scratch? Does a random subspace need more trained parameters than LoRA to reach the same gain?

# %%
dimension = Table.load("../figures/data/intrinsic_dimension.json")
plots.intrinsic_dimension(dimension, Table.load("../figures/data/convergence.json"));

# %%
names = ("low_rank.d90.tiny", "low_rank.d90.random", "low_rank.falls.random", "low_rank.dense")
display(Markdown(findings.say(*names)))

# %% [markdown]
# - Aghajanyan et al. (2020) found that about 200 dimensions are enough for RoBERTa on a classification task. In our study the task is a new *language*, the model is small, and $d_{90}$ is hundreds of times as large as 200. So the intrinsic dimension depends on the model and on the task.
# - $d_{90}$ is smaller for training from scratch than for fine-tuning, but the two values of $d_{90}$ stand for 90 % of different gains. For the model with random weights, most of the gain is easy, because the model first learns how frequent each byte is. After this easy gain, the loss of the model that started with random weights is still far above the loss at which fine-tuning *starts*.
# - The sparse $P$ is random, but not all subspaces are possible with a sparse $P$. So the study also used a dense $P$ as a control, with a $d$ that is small enough for a dense $P$ (the triangles in the picture).
# - With the same number of trained parameters, random directions reach about the same gain as LoRA (the diamonds in the picture). The random directions also change the embedding and the norms, which LoRA freezes. LoRA has two advantages over random directions: it needs no product with a matrix of $D$ rows, and $BA$ can be merged.
#
# ## Recap
#
# - The best product of rank $r$ keeps the $r$ largest singular values. The error of this product is the square root of the sum of the other $\sigma_i^2$.
# - For 90 % of its energy, the $\Delta W$ of full fine-tuning needs fewer directions than a random matrix, but many more directions than the usual ranks of LoRA.
# - Fewer directions are needed to keep most of the gain than to keep most of the energy. Most of the gain lies in the first directions, and a $\Delta W$ of low rank can hold these directions.
# - The matrices $A$ of two runs read different directions. The matrices $B$ of two runs share some of the directions that they write.
# - In the section "From energy to loss", each $\Delta W$ was cut to a low rank *after* training. LoRA trains a $\Delta W$ of low rank from the start. [Notebook 05](05_convergence.ipynb) measures the loss that LoRA reaches.
#
# ## Three questions
#
# 1. A product of rank 4 has a relative error of 80 %. What share of the energy does this product keep? What is the relative error of a product that keeps half of the energy?
#
# <details><summary>Answer</summary>
#
# The product keeps $1 - 0.8^2 = 36\,\%$ of the energy. A product that keeps half of the energy has a relative error of $\sqrt{0.5} \approx 71\,\%$.
#
# </details>
#
# 2. Someone reports $\varphi(64, 64) = 0.55$ for two runs on a layer with $d = 128$. Is $\varphi(64, 64) = 0.55$ a sign of shared directions?
#
# <details><summary>Answer</summary>
#
# This value is at most a weak sign. Random spans already have $\varphi = 64/128 = 0.5$ on average.
#
# </details>
#
# 3. Why can a rank be enough for 90 % of the gain, but too low for 90 % of the energy?
#
# <details><summary>Answer</summary>
#
# The energy counts all directions of $\Delta W$ by their size alone. The loss depends on the inputs and on the task. Some directions hardly change the outputs for real text, and some directions hold noise of the training text.
#
# </details>
#
# ## Try
#
# 1. In the toy task, make two of the ten sums equal: `C[1] = C[0]; t[1] = t[0]`. What is the intrinsic dimension now?
#
# <details><summary>Hint</summary>
#
# Repeat the loop over `d` with the values 7, 8, 9 and 10. How many different constraints are there?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The intrinsic dimension is now nine. Two equal sums with equal targets are one constraint, so nine different constraints remain. With $d = 9$ the loss is only rounding error, but with $d = 8$ the loss is much larger.
#
# </details>
#
# 2. Compute the median effective rank and the median rank90 of all $\Delta W$ after 10, 60 and 200 steps. Do these two medians grow or shrink with the number of steps?
#
# <details><summary>Hint</summary>
#
# Change `max_steps` and `eval_every` of `Run`, then use `spectra.effective_rank` and `spectra.rank_for_energy` on the singular values of each $\Delta W$ in the blocks. Leave out the embedding and the norms.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Both medians first shrink and then hardly change. After 10, 60 and 200 steps, the median rank90 is 41, 36 and 37. The median effective rank is 83, 78 and 77. But if every $\Delta W$ is cut to rank 4, the cut model keeps 158 % of the gain after 10 steps, 85 % after 60 steps and 64 % after 200 steps. So with more steps, the gain is spread over more directions.
#
# </details>
#
# 3. Train with `lr=2e-4`, a tenth of the learning rate used above, for 60 steps. Is the rank of $\Delta W$ a property of the task alone?
#
# <details><summary>Hint</summary>
#
# Compare the median rank90 of both runs. Also compare the share of the gain that each cut of `truncated_loss` keeps.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No. With `lr=2e-4` the gain of 60 steps is nearly as large as with `lr=2e-3`. But the median rank90 is 28 with `lr=2e-4` and 36 with `lr=2e-3` (with `lr=1e-3` it is 34). A cut to rank 8 keeps 84 % of the gain with `lr=2e-4` and 97 % with `lr=2e-3`, although rank90 is lower with `lr=2e-4`. The rank of $\Delta W$ depends on how the model was trained.
#
# </details>
#
# 4. A spectrum (the list of the singular values) is flat if the values fall slowly. In which modules does $\Delta W$ have the flattest spectrum, compared with a random matrix of the same shape? Should the modules with the flattest spectrum get a higher rank? (`rank_pattern` of `LoraConfig` sets ranks per module.)
#
# <details><summary>Hint</summary>
#
# In the table `ranks`, compare `rank90 / random_rank90` by `module`, or read the numbers in the picture of all layers.
#
# </details>
#
# <details><summary>Answer</summary>
#
# In both models, $\Delta W$ has the flattest spectrum in the modules of the MLP. The flatter the spectrum, the more energy a cut to rank $r$ loses, so it is reasonable to try a higher rank for the MLP. But less energy does not always mean a higher loss. Only a comparison of losses at equal numbers of parameters can decide.
#
# </details>
#
# Continue with [Convergence](05_convergence.ipynb).
