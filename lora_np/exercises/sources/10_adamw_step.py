# %% [markdown]
# # AdamW on two factors
#
# Plain descent takes a step as long as the gradient; Adam divides each entry's step by how large its gradients usually are, so that small
# and large ones learn at the same pace. It keeps two running averages for every entry, of the gradient and of its square, which start at zero and are
# too small at first, by a factor that is known. The W stands for weight decay that is kept apart from all this: each step takes a fixed share of the
# weight away.
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\,g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\,g^2 \qquad
# \hat m = \frac{m}{1 - \beta_1^t} \qquad \hat v = \frac{v}{1 - \beta_2^t}$$
#
# $$\theta \leftarrow \theta - \eta\,\lambda\,\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}$$
#
# Every $\theta$ on the right is the one from before the step. $\eta$ is `lr`, the learning rate; $\lambda$ is `weight_decay`.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try it on the numbers below as often as you like; then `check` says whether it is right, and if it is not, what
# went wrong.

# %%
def adamw_step(factors, grads, state, t, lr, beta1, beta2, eps, weight_decay):
    """One step. Afterwards factors and state hold the new values; nothing is returned, and grads stays as it is.

    factors {"A": (r, in), "B": (out, r)}, grads the same for their gradients, state {"A": {"m", "v"}, "B": {"m", "v"}} with the
    averages m and v of each factor, uncorrected, in its shape. t counts the steps from 1, and the other five are numbers.
    """
    # BEGIN SOLUTION
    for name in factors:
        p, slots = factors[name], state[name]
        g = grads[name]
        slots["m"] = beta1 * slots["m"] + (1 - beta1) * g
        slots["v"] = beta2 * slots["v"] + (1 - beta2) * g**2
        m = slots["m"] / (1 - beta1**t)
        v = slots["v"] / (1 - beta2**t)
        p *= 1 - lr * weight_decay
        p -= lr * m / (np.sqrt(v) + eps)
    # END SOLUTION


# %%
# Numbers to try it on, and to change. Take the # off the last line.
factors = {"A": np.array([[1.0, -2.0, 0.5]]), "B": np.array([[0.5], [-1.0]])}  # r = 1, in = 3, out = 2
grads = {"A": np.array([[0.5, 1.0, -2.0]]), "B": np.array([[-1.0], [3.0]])}
state = {name: {"m": np.zeros(p.shape), "v": np.zeros(p.shape)} for name, p in factors.items()}
t, lr, beta1, beta2, eps, weight_decay = 1, 0.1, 0.9, 0.999, 1e-8, 0.01
# adamw_step(factors, grads, state, t, lr, beta1, beta2, eps, weight_decay); print(factors, state, sep="\n")

# %%
check(adamw_step)

# %% [markdown]
# **Explain.** Without decay, the first step moves an entry of $B$ by $\eta$, whether its gradient is 0.001 or 1000. Why? And why does $A$ not
# move in the first step of LoRA, and by less than $\eta$ in the second?

# %% [markdown]
# BEGIN SOLUTION
# After one step both averages hold a single gradient, and corrected they are $\hat m = g$ and $\hat v = g^2$: the step is $g / |g|$, the sign alone
# (as long as $|g|$ is far above $\varepsilon$). LoRA starts with $B = 0$, so the first gradient of $A$ is 0, and its step is $0 / (0 + \varepsilon) = 0$. In
# the second step its averages hold one gradient as well, but $t$ is 2: the correction believes that there were two. It divides the new $m$
# by $1 - \beta_1^2$, which leaves $g / (1 + \beta_1)$, and $v$ likewise, so that the step is $\eta \sqrt{1 + \beta_2} / (1 + \beta_1)$, with the usual
# 0.9 and 0.999 about $0.74\,\eta$.
# END SOLUTION
