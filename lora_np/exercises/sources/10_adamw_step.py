# %% [markdown]
# # AdamW on two factors
#
# In gradient descent the step is proportional to the gradient. Adam divides the step of each number by the usual size of this number's gradients. So numbers with small gradients learn as fast as numbers with large gradients. For every number Adam keeps two running averages: $m$ averages the gradient, and $v$ averages the square of the gradient. Both averages start at zero and are therefore too small in the first steps. Dividing by $1 - \beta^t$ corrects the averages. The W in AdamW stands for weight decay. Each step subtracts a fixed share of the weight, separately from the gradient.
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\,g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\,g^2 \qquad
# \hat m = \frac{m}{1 - \beta_1^t} \qquad \hat v = \frac{v}{1 - \beta_2^t}$$
#
# $$\theta \leftarrow \theta - \eta\,\lambda\,\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}$$
#
# Every $\theta$ on the right is the weight before the step. $\eta$ is the learning rate `lr`, $\lambda$ is `weight_decay`, and $\varepsilon$ is `eps`.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try your function on the numbers below first. `check` then says whether the function is right. If it is not right, `check` names the mistake and gives a hint.

# %%
def adamw_step(factors, grads, state, t, lr, beta1, beta2, eps, weight_decay):
    """Take one step. Write the new values into factors and state, and return nothing.

    factors: {"A": (r, in), "B": (out, r)}. grads: their gradients; do not change them.
    state: {"A": {"m", "v"}, "B": {"m", "v"}}, the averages without the correction.
    t counts the steps from 1. lr, beta1, beta2, eps and weight_decay are numbers.
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
# Try your function on these numbers, or change them. Remove the # of the last line.
# r = 1, in = 3, out = 2
factors = {"A": np.array([[1.0, -2.0, 0.5]]), "B": np.array([[0.5], [-1.0]])}
grads = {"A": np.array([[0.5, 1.0, -2.0]]), "B": np.array([[-1.0], [3.0]])}
state = {name: {"m": np.zeros(p.shape), "v": np.zeros(p.shape)} for name, p in factors.items()}
t, lr, beta1, beta2, eps, weight_decay = 1, 0.1, 0.9, 0.999, 1e-8, 0.01
# adamw_step(factors, grads, state, t, lr, beta1, beta2, eps, weight_decay); print(factors)

# %%
check(adamw_step)

# %% [markdown]
# **Explain.** Without weight decay, the first step moves each number of $B$ by the learning rate, whether the gradient of this number is 0.001 or 1000. Why is the step independent of the size of the gradient? Why does $A$ not move in the first step of LoRA? Why does $A$ move by less than the learning rate in the second step?

# %% [markdown]
# BEGIN SOLUTION
# After one step both averages contain one gradient. After the correction, $\hat m = g$ and $\hat v = g^2$, so the step is $\eta\, g / |g|$. The length of the step is $\eta$ (if $|g|$ is far above $\varepsilon$).
#
# LoRA starts with $B = 0$, so the first gradient of $A$ is 0. The step of $A$ is then $0 / (0 + \varepsilon) = 0$. In the second step the averages of $A$ contain only one gradient that is not zero. But $t$ is 2, so the correction assumes two gradients. The correction divides the new $m$ by $1 - \beta_1^2$, which gives $\hat m = g / (1 + \beta_1)$. In the same way, $\hat v = g^2 / (1 + \beta_2)$. The step is $\eta \sqrt{1 + \beta_2} / (1 + \beta_1)$. With the usual values $\beta_1 = 0.9$ and $\beta_2 = 0.999$, this step is about $0.74\,\eta$.
# END SOLUTION
