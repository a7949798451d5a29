# %% [markdown]
# # Merge and unmerge
#
# The matrix $s\,BA$ of the bypass can be added to the weight $W$. This addition is called *merging*. A merged layer costs as much as the base layer, and its output is the same as before merging. The matrix $s\,BA$ can also be subtracted from the merged weight, to train $A$ and $B$ further or to use another adapter.
#
# So a layer has a state: merged or not merged. The function `set_merged` must give the right result in every order of calls. The layer may already be in the requested state. The weight $W$ may have been trained while the layer was merged. The factors $A$ and $B$ may have been trained between two merges.
#
# $$W_\text{merged} = W + s\,B A$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try your function on the numbers below first. `check` then says whether the function is right. If it is not right, `check` names the mistake and gives a hint.

# %%
def set_merged(layer, merged):
    """Set the state: if merged=True, W must contain s·B A; if merged=False, W must not.

    layer is a dict with "W" (out, in), "A" (r, in), "B" (out, r), "scaling" (the number s) and
    "merged" (the present state, True or False). Change the dict and return nothing.
    The optimizer also holds the array layer["W"]: change the numbers of this array in place.
    Do not change "A", "B" and "scaling". If the state is already right, change nothing.
    Training changes "A" and "B" only while the layer is not merged, and "W" at any time.
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
# Try your function on these numbers, or change them. Remove the # of the last line.
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
# **Explain.** After merging and unmerging, why do the last bits of $W$ differ from the last bits of the old $W$? Why does this difference matter more in float16 than in float64?

# %% [markdown]
# BEGIN SOLUTION
# The sum $W + sBA$ is rounded to a number of the number format, for example float16. The part of $sBA$ that is smaller than the spacing of the numbers near the sum is lost. Subtracting $sBA$ cannot bring the lost part back, so each entry can be wrong by half the spacing.
#
# In float64 the spacing is about $10^{-16}$ of the entry, which does not matter. In float16 the spacing is about $10^{-3}$ of the entry. This spacing can be as large as $sBA$ itself. Then merging already loses a part of what was learned, and every further merging and unmerging can change $W$ a little more. So merge in a wider format, or keep a copy of the base.
# END SOLUTION
