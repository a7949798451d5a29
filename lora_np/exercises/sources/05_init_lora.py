# %% [markdown]
# # Where A and B start
#
# Before its first step an adapter must not change the model, and the adapter must be able to learn. So $B$ starts at zero, and $A$ starts at small random numbers. The size of these random numbers follows He et al. (“Kaiming” initialisation). The numbers of $x A^\top$ then have about the same size in a narrow layer and in a wide layer. The *fan-in* is the number of terms in the sum that gives one number of $x A^\top$.
#
# $$A_{ij} \sim U(-b,\, b) \qquad b = \sqrt{\frac{6}{(1 + a^2)\cdot \text{fan-in}}} \quad\text{with } a = \sqrt 5 \qquad\qquad B = 0$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** $U(-b, b)$ is the uniform distribution between $-b$ and $b$. Draw all random numbers from the generator `rng`, so that the same seed always gives the same adapter.

# %%
def init_lora(out_features, in_features, r, rng):
    """Return A (r, in) and B (out, r); rng is a np.random.Generator."""
    # BEGIN SOLUTION
    fan_in = in_features
    a = np.sqrt(5)
    bound = np.sqrt(6 / ((1 + a**2) * fan_in))
    A = rng.uniform(-bound, bound, (r, in_features))
    B = np.zeros((out_features, r))
    return A, B
    # END SOLUTION


# %%
# Try your function on these numbers, or change them. Remove the # of the last line.
out_features, in_features, r = 4, 3, 2  # larger numbers show the distribution
rng = np.random.default_rng(0)
# print(*init_lora(out_features, in_features, r, rng), sep="\n")

# %%
check(init_lora)

# %% [markdown]
# **Explain.** $\Delta W = s B A$ is zero if at least one of the factors $A$ and $B$ is zero. Why must exactly one of the two factors start at zero? Use $dA = s B^\top dW$ and $dB = s \, dW A^\top$, and describe what the first and the second training step change.

# %% [markdown]
# BEGIN SOLUTION
# If neither factor is zero, the adapted model differs from the base by a random $\Delta W$ before the adapter has learned anything. If both factors are zero, both gradients are zero, so no step ever changes $A$ or $B$, and the adapter cannot learn.
#
# With $B = 0$ and a random $A$, the gradient $dA$ is zero in the first step, and $dB = s\,dW A^\top$ is not zero. The first step changes only $B$. From the second step on, $dA = s\,B^\top dW$ is not zero either. The rows of $A$ are different, so the $r$ columns of $B$ get different gradients. If all rows of $A$ were equal, the columns of $B$ would stay equal, and $\Delta W$ would have rank one.
# END SOLUTION
