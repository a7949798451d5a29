# %% [markdown]
# # Where A and B start
#
# Before its first step an adapter must change nothing, and yet be able to learn. So one factor starts at zero, and the other at small random
# numbers, drawn after He (“Kaiming”) so that the size of what comes out of $A$ does not depend on the width of the layer. The fan-in is the number of terms in
# the sum that makes one of the numbers of $x A^\top$.
#
# $$A_{\rho j} \sim U(-b,\, b) \qquad b = \sqrt{\frac{6}{(1 + a^2)\cdot \text{fan-in}}} \quad\text{with } a = \sqrt 5 \qquad\qquad B = 0$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** $U(-b, b)$ is the uniform distribution: every number between $-b$ and $b$ is as likely as any other. All random numbers come
# from the generator that the function is given, so that a seed means the same adapter every time.

# %%
def init_lora(out_features, in_features, r, rng):
    """The features out and in of a layer, the rank r, and rng, a np.random.Generator → A (r, in), B (out, r)."""
    # BEGIN SOLUTION
    fan_in = in_features
    a = np.sqrt(5)
    bound = np.sqrt(6 / ((1 + a**2) * fan_in))
    A = rng.uniform(-bound, bound, (r, in_features))
    B = np.zeros((out_features, r))
    return A, B
    # END SOLUTION


# %%
# Numbers to try it on, and to change. Take the # off the last line.
out_features, in_features, r = 4, 3, 2  # make them larger to see how the numbers are spread
rng = np.random.default_rng(0)
# print(*init_lora(out_features, in_features, r, rng), sep="\n")

# %%
check(init_lora)

# %% [markdown]
# **Explain.** $\Delta W = s\,B A$ is zero if only one factor is, and also if both are. Why must exactly one of them start at zero? Use $dA = s\,B^\top dW$ and
# $dB = s\,dW A^\top$, and say what happens in the first step and in the second.

# %% [markdown]
# BEGIN SOLUTION
# If none is zero, the adapted model differs from the base at random before it has learned anything. If both are, then so are both gradients, and no
# step ever changes that: the adapter is dead. With $B = 0$ and a random $A$ the first gradient $dA$ is zero, but $dB = s\,dW A^\top$ is not; so
# the first step moves $B$ alone, and from the second on $dA = s\,B^\top dW$ is there too. Random rows in $A$ also differ from each other, so the $r$
# columns of $B$ are told different things. Were they equal, $\Delta W$ would have rank one.
# END SOLUTION
