# %% [markdown]
# # Merge and unmerge
#
# The bypass can be added into the weight: from then on the layer costs what the base costs, and its output is the same. It can be taken out
# again, so that $A$ and $B$ can be trained further, or another adapter can have its turn. So a layer has a state, merged or not, and whoever
# asks for a state must get it: when the layer has it already, when $W$ itself has learned something in between, and when $A$ and $B$ were
# trained on between two merges.
#
# $$W_\text{merged} = W + s\,B A$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try it on the numbers below as often as you like; then `check` says whether it is right, and if it is not, what
# went wrong.

# %%
def set_merged(layer, merged):
    """Bring the layer into the state that is asked for: merged True, s·B A is in W; merged False, it is not.

    layer is a dict of "W" (out, in), "A" (r, in), "B" (out, r), "scaling" (the number s) and "merged" (its state now, True or
    False). It is changed, and nothing is returned. The optimizer holds the array layer["W"] too, so it is that array whose
    numbers change. "A", "B" and "scaling" stay as they are, and a layer in the state that is asked for stays as it is. Others
    train "A" and "B" only while the layer is unmerged, and "W" at any time.
    """
    # BEGIN SOLUTION
    if layer["merged"] == merged:
        return
    product = layer["B"] @ layer["A"]  # (out, r) (r, in) → (out, in)
    delta = layer["scaling"] * product
    if merged:
        layer["W"] += delta
    else:
        layer["W"] -= delta
    layer["merged"] = merged
    # END SOLUTION


# %%
# Numbers to try it on, and to change. Take the # off the last line.
layer = {
    "W": np.array([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0]]),  # out = 2, in = 3
    "A": np.array([[1.0, -1.0, 0.5]]),  # r = 1
    "B": np.array([[0.5], [2.0]]),
    "scaling": 3.0,
    "merged": False,
}
# set_merged(layer, True); print(layer)

# %%
check(set_merged)

# %% [markdown]
# **Explain.** Merged and unmerged again, $W$ is not the same to the last bit. Why not, and why does it matter more in float16 than in
# float64?

# %% [markdown]
# BEGIN SOLUTION
# The sum $W + sBA$ is rounded to a number that the format has: whatever of $sBA$ is smaller than the spacing of the numbers around
# the sum is lost. Taking the whole of $sBA$ away again cannot bring it back, so each entry may end half such a spacing beside where it was. In
# float64 the spacing is about $10^{-16}$ of the entry and nobody sees it. In float16 it is about $10^{-3}$ of the entry, which can be as large as
# $sBA$ itself: then already the merging loses a part of what was learned, and every further round may move $W$ a little more. So one merges in a
# wider format, or keeps the base where it is exact.
# END SOLUTION
