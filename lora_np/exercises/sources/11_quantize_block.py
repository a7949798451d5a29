# %% [markdown]
# # Four bits a weight
#
# A frozen weight is only read, so QLoRA keeps it in four bits: the number of one of sixteen values $c_0 \dots c_{15}$ between −1 and 1. The weights
# of a block share a scale, the largest of their magnitudes, which brings each of them to between −1 and 1, and each then takes the nearest value.
# Two such numbers fit into a byte, the first of the two in its upper four bits.
#
# $$s = \max_i |w_i| \qquad\qquad q_i = \arg\min_q \left|\frac{w_i}{s} - c_q\right| \qquad\qquad \hat w_i = c_{q_i}\, s$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Test it in a cell of your own as often as you like; then `check` says whether it is right, and if it is not, what
# went wrong.

# %%
def quantize_block(w, values):
    """w (n,) with n even, values (16,) ascending from −1 to 1 → (packed (n/2,), s): the bytes, as whole numbers from 0 to 255, and the scale.

    A block of zeros has s = 0, and each of its weights the number of the value 0, which is one of the sixteen.
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
# **Explain.** NF4 has blocks of 64 weights. Why not one scale for the whole matrix, and why not one for every four weights?

# %% [markdown]
# BEGIN SOLUTION
# The scale is the largest magnitude, so one weight decides for all that share it. In a whole matrix there is always some outlier, and divided by it nearly all
# weights come to lie around zero, where only a few of the sixteen values are: the codes are wasted. The smaller the block, the fewer suffer from an outlier
# and the nearer the largest weight is to the others. But each scale costs 32 bits, half a bit a weight in blocks of 64 and eight bits a weight in blocks of
# four, which is twice the codes themselves. (Double quantisation stores the scales in 8 bits, and then 64 costs an eighth of a bit.)
# END SOLUTION
