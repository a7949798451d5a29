# %% [markdown]
# # Four bits per weight
#
# A frozen weight is only read, so QLoRA stores it in four bits. These four bits hold a number $q$ from 0 to 15, which stands for one of sixteen values $c_0 \dots c_{15}$ between −1 and 1. The weights of a block share a scale, which is the largest magnitude in the block. Each weight is divided by the scale, which gives a result between −1 and 1. This result is replaced by the nearest of the sixteen values. Two numbers $q$ fit into one byte. The first number is stored in the upper four bits, and the second number in the lower four bits.
#
# $$s = \max_i |w_i| \qquad\qquad q_i = \arg\min_q \left|\frac{w_i}{s} - c_q\right| \qquad\qquad \hat w_i = c_{q_i}\, s$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try your function in a cell of your own first. `check` then says whether the function is right. If it is not right, `check` names the mistake and gives a hint.

# %%
def quantize_block(w, values):
    """w (n,) with n even, values (16,) ascending from −1 to 1 → packed (n/2,), s.

    packed has the bytes as integers from 0 to 255, and s is the scale. For a block of zeros
    s is 0, and each weight gets the number of the value 0, which is one of the sixteen.
    """
    # BEGIN SOLUTION
    s = np.abs(w).max()
    divisor = s if s > 0 else 1.0
    scaled = w / divisor  # (n,)
    distance = np.abs(scaled[:, None] - values)  # (n, 1) − (16,) → (n, 16)
    q = distance.argmin(axis=1)  # (n, 16) → (n,)
    first, second = q[::2], q[1::2]  # (n/2,) each
    packed = 16 * first + second
    return packed, s
    # END SOLUTION


# %%
check(quantize_block)

# %% [markdown]
# **Explain.** NF4 uses blocks of 64 weights. Why is one scale for the whole matrix worse than blocks of 64 weights? Why are blocks of four weights, each with its own scale, worse than blocks of 64 weights?

# %% [markdown]
# BEGIN SOLUTION
# The scale is the largest magnitude, so one weight determines the scale of its block. A large matrix always has a few outliers. After division by the largest outlier, nearly all weights are close to zero. Only a few of the sixteen values are close to zero, so most of the sixteen values are hardly used. In smaller blocks, fewer weights share their scale with an outlier than in larger blocks.
#
# But each scale needs 32 bits. In blocks of 64 the scale takes half a bit per weight. In blocks of four the scale takes eight bits per weight, twice as much as the four-bit numbers themselves. (Double quantisation stores the scales in 8 bits. Then blocks of 64 need an eighth of a bit per weight.)
# END SOLUTION
