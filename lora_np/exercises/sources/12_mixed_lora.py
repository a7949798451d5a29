# %% [markdown]
# # A mixed batch
#
# Many adapters can share one base, and then the rows of a batch may each ask for another one, or for none. The frozen weight is the same
# for all rows, so its product can be made for the whole batch at once. Only the narrow products with $A$ and $B$ depend on who asks, and
# each row has to get those of its own adapter and keep its place in the batch.
#
# $$y_i = x_i W^\top + s_{k}\,(x_i A_{k}^\top)\,B_{k}^\top \qquad k = \text{the adapter of row } i$$
#
# and $y_i = x_i W^\top$ for a row of the base.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Test it in a cell of your own as often as you like; then `check` says whether it is right, and if it is not, what
# went wrong.

# %%
def mixed_lora(x, W, adapters, names):
    """x (b, t, in), W (out, in) → y (b, t, out): b rows of t tokens, each row through W and the adapter that it names.

    adapters is a dict, name → (A, B, s), with A (r, in), B (out, r) and the number s; each adapter has its own r and s. names is
    a list of b names: names[i] is the adapter of row i, or "__base__", which is in no adapters and means none. An adapter may
    be named by several rows, or by none.
    """
    # BEGIN SOLUTION
    y = x @ W.T  # (b, t, in) (in, out) → (b, t, out), once for all rows
    for name, (A, B, s) in adapters.items():
        rows = [i for i, wanted in enumerate(names) if wanted == name]
        hidden = x[rows] @ A.T  # (n, t, in) (in, r) → (n, t, r)
        bypass = hidden @ B.T  # (n, t, r) (r, out) → (n, t, out)
        y[rows] += s * bypass
    return y
    # END SOLUTION


# %%
check(mixed_lora)

# %% [markdown]
# **Explain.** A server writes one token for each of 32 rows at a time (t = 1). Why does it take hardly longer when the rows use 32 adapters
# than when they all use one, and why would 32 merged models take so much longer?

# %% [markdown]
# BEGIN SOLUTION
# With one token a row there is little to compute, and most of the time goes into fetching the weights from memory. $W$ is fetched once
# for the whole batch, whoever asks, and it has $out \cdot in$ numbers; an adapter has $r\,(in + out)$, a few hundredths of that, so even 32 of them add
# little. Merged models have a weight each: 32 whole matrices to fetch, for one row apiece, and 32 to keep in memory. (What remains is to
# make few calls: the rows of one adapter together, and small products stacked into one.)
# END SOLUTION
