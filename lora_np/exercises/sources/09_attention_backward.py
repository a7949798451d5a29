# %% [markdown]
# # The backward pass of attention
#
# One head: each token scores itself and the tokens before it, the scores become shares that add up to 1, and its output is the values, mixed
# in these shares. The backward pass computes the shares once more and walks the same way in reverse, from $o$ to $p$ and $v$, from $p$ to $z$, from $z$ to
# $q$ and $k$. Every step is the rule of notebook 03: the index that appears twice is summed.
#
# $$z_{tu} = \frac{1}{\sqrt d} \sum_c q_{tc}\,k_{uc} \quad (u \le t), \qquad p_{tu} = \frac{e^{z_{tu}}}{\sum_{u' \le t} e^{z_{tu'}}}, \qquad
# o_{tc} = \sum_{u \le t} p_{tu}\,v_{uc}$$
#
# You are given $do_{tc} = \partial L / \partial o_{tc}$, and owe $dq$, $dk$ and $dv$, each with the shape of what it belongs to. You may
# assume the derivative of one row of a softmax, $\partial p_i / \partial z_j = p_i\,(\delta_{ij} - p_j)$.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try it on the numbers below as often as you like; then `check` says whether it is right, and if it is not, what
# went wrong.

# %%
def attention_backward(do, q, k, v):
    """do, q, k, v, each (t, d): t tokens, d features → dq, dk, dv, each (t, d).

    A token sees itself and the tokens before it. Scores may be in the thousands, and all is to stay finite.
    """
    # BEGIN SOLUTION
    t, d = q.shape
    scale = 1 / np.sqrt(d)
    mask = np.triu(np.full((t, t), -1e30), k=1)  # added to a forbidden score: exp makes it 0
    z = scale * (q @ k.T) + mask  # (t, d) (d, t) → (t, t)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    dv = p.T @ do  # o = p v:  (t, t) (t, d) → (t, d)
    dp = do @ v.T  # (t, d) (d, t) → (t, t)
    dot = (p * dp).sum(axis=-1, keepdims=True)  # (t, t) → (t, 1)
    dz = p * (dp - dot)
    dq = scale * (dz @ k)  # z = q kᵀ/√d:  (t, t) (t, d) → (t, d)
    dk = scale * (dz.T @ q)  # (t, t) (t, d) → (t, d)
    return dq, dk, dv
    # END SOLUTION


# %%
# Numbers to try it on, and to change. Take the # off the last line.
do = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 2.0]])  # t = 3, d = 2
q = np.array([[1.0, 0.5], [-1.0, 2.0], [0.0, 1.5]])
k = np.array([[0.5, -1.0], [2.0, 1.0], [1.0, 0.0]])
v = np.array([[1.0, 2.0], [-0.5, 0.0], [3.0, -1.0]])
# print(*attention_backward(do, q, k, v), sep="\n")

# %%
check(attention_backward)

# %% [markdown]
# **Explain.** The mask stands in the forward pass. Why does no line of the backward pass need it, and why can it not be left out of a
# backward pass that computes the shares once more?

# %% [markdown]
# BEGIN SOLUTION
# A forbidden share is exactly 0, because its score was pushed so far down that exp gave 0. The softmax's derivative has the share itself as a
# factor, so no gradient reaches a forbidden score, and none goes on from it to $q$ or $k$; and a value with share 0 was not in the output, so
# it gets nothing either. The zeros of $p$ carry the mask through the whole way back. But they have to be there: shares that are computed again
# without the mask are those of another function, in which every token sees its future, and their gradient is that function's.
# END SOLUTION
