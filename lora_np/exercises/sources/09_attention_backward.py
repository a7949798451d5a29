# %% [markdown]
# # The backward pass of attention
#
# In one attention head, each token computes a score for itself and for each token before it. A softmax turns the scores $z$ into shares $p$ with the sum 1. The output $o$ is the sum of the values, weighted with the shares. The backward pass computes the shares again and then applies the chain rule. The chain rule leads from $o$ to $p$ and $v$, from $p$ to $z$, and from $z$ to $q$ and $k$. Each step follows the rule of notebook 03. In this rule, the sum runs over the index that appears twice.
#
# $$z_{tu} = \frac{1}{\sqrt d} \sum_c q_{tc}\,k_{uc} \quad (u \le t), \qquad p_{tu} = \frac{e^{z_{tu}}}{\sum_{u' \le t} e^{z_{tu'}}}, \qquad
# o_{tc} = \sum_{u \le t} p_{tu}\,v_{uc}$$
#
# You get $do_{tc} = \partial L / \partial o_{tc}$. Compute $dq$, $dk$ and $dv$, which have the shapes of $q$, $k$ and $v$. You may use the derivative of one row of a softmax, $\partial p_i / \partial z_j = p_i\,(\delta_{ij} - p_j)$.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try your function on the numbers below first. `check` then says whether the function is right. If it is not right, `check` names the mistake and gives a hint.

# %%
def attention_backward(do, q, k, v):
    """do, q, k, v, each (t, d): t tokens, d features → dq, dk, dv, each (t, d).

    A token sees itself and the tokens before it. Scores can be in the thousands; the results
    must be finite.
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
# Try your function on these numbers, or change them. Remove the # of the last line.
do = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 2.0]])  # t = 3, d = 2
q = np.array([[1.0, 0.5], [-1.0, 2.0], [0.0, 1.5]])
k = np.array([[0.5, -1.0], [2.0, 1.0], [1.0, 0.0]])
v = np.array([[1.0, 2.0], [-0.5, 0.0], [3.0, -1.0]])
# print(*attention_backward(do, q, k, v), sep="\n")

# %%
check(attention_backward)

# %% [markdown]
# **Explain.** The mask is part of the forward pass. Why does no line of the backward pass need the mask? Why must the mask still be used when the backward pass computes the shares again?

# %% [markdown]
# BEGIN SOLUTION
# A masked share is exactly 0, because the exponential function of a very negative score is 0. The derivative of the softmax contains the share as a factor. So a masked score gets no gradient, and $q$ and $k$ get no gradient from this score. A value with the share 0 is not in the output, so this value gets no gradient either. The zeros of $p$ have the effect of the mask in the whole backward pass.
#
# But the zeros must be in $p$. Shares computed without the mask belong to another function, in which every token sees later tokens. With these shares, the backward pass gives the gradient of that other function.
# END SOLUTION
