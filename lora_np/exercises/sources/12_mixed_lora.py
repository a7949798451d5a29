# %% [markdown]
# # A mixed batch
#
# Many adapters can share one base. Each row of a batch can then use a different adapter, or no adapter. The frozen weight is the same for all rows, so the product with the frozen weight is computed once for the whole batch. Only the narrow products with $A$ and $B$ differ. Each row needs the products of its own adapter, and the rows must keep their order.
#
# $$y_i = x_i W^\top + s_{k}\,(x_i A_{k}^\top)\,B_{k}^\top \qquad k = \text{the adapter of row } i$$
#
# For a row without an adapter, the output is $y_i = x_i W^\top$.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try your function in a cell of your own first. `check` then says whether the function is right. If it is not right, `check` names the mistake and gives a hint.

# %%
def mixed_lora(x, W, adapters, names):
    """x (b, t, in), W (out, in) → y (b, t, out): b rows of t tokens.

    adapters: name → (A, B, s) with A (r, in), B (out, r) and the number s. Each adapter has
    its own r and s. names: a list of b names; names[i] is the adapter of row i. "__base__"
    means no adapter and is not in adapters. An adapter can be used by several rows or by none.
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
# **Explain.** In each step, a server computes one token for each of 32 rows (t = 1). Why does computing these 32 tokens take hardly more time with 32 adapters than with one adapter? Why do 32 merged models take much longer than one base with 32 adapters?

# %% [markdown]
# BEGIN SOLUTION
# With one token per row there is little to compute, and most of the time is spent on loading weights from memory. The matrix $W$ has $out \cdot in$ numbers and is loaded once for the whole batch. An adapter has $r\,(in + out)$ numbers. With a small rank and a wide layer, an adapter has a few thousandths of the numbers of $W$, so even 32 adapters add little.
#
# Each merged model has its own $W$. So 32 whole matrices must be loaded, each for one row, and all 32 matrices must be kept in memory. (Many separate calls of small products take time too. So the rows with the same adapter are computed together, and small products are stacked into one product.)
# END SOLUTION
