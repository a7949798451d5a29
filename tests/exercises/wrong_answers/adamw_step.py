"""Wrong answers to adamw_step, written differently from the solution."""

HEAD = "import numpy as np\ndef adamw_step(factors, grads, state, t, lr, beta1, beta2, eps, weight_decay):\n"
LINES = {
    "loop": "    for key, g in grads.items():\n",
    "slots": "        s = state[key]\n",
    "old": "        p = factors[key]\n",
    "m": "        m = g + beta1 * (s['m'] - g)\n",
    "v": "        v = np.square(g) + beta2 * (s['v'] - np.square(g))\n",
    "keep": "        s['m'], s['v'] = m, v\n",
    "c1": "        c1 = 1 - np.power(beta1, float(t))\n",
    "c2": "        c2 = 1 - np.power(beta2, float(t))\n",
    "denominator": "        below = (v / c2) ** 0.5 + eps\n",
    "step": "        step = m / c1 / below\n",
    "new": "        factors[key] = p - lr * (step + weight_decay * p)\n",
}


def answer(**changed: str) -> str:
    lines = LINES | {name: f"        {line}\n" for name, line in changed.items()}
    return HEAD + "".join(lines.values())


ANSWERS = {
    "the averages m and v are not corrected for their start at zero": answer(c1="c1 = 1", c2="c2 = 1"),
    "the average v is not corrected for its start at zero": answer(c2="c2 = 1"),
    "the average m is not corrected for its start at zero": answer(c1="c1 = 1"),
    "the corrected averages m̂ and v̂ are stored in the state instead of m and v": answer(
        keep="m, v = m / (1 - beta1**t), v / (1 - beta2**t)\n        s.update(m=m, v=v)", c1="c1 = 1", c2="c2 = 1"
    ),
    "the correction of m and v is the same at every step t": answer(c1="c1 = 1 - beta1", c2="c2 = 1 - beta2"),
    "the correction of m and v uses β · t instead of β^t": answer(c1="c1 = 1 - t * beta1", c2="c2 = 1 - t * beta2"),
    "the correction of m and v uses t − 1 instead of t": answer(
        c1="c1 = np.float64(1 - beta1 ** (t - 1))", c2="c2 = np.float64(1 - beta2 ** (t - 1))"
    ),
    "the correction of m and v uses t + 1 instead of t": answer(
        c1="c1 = 1 - beta1 * beta1**t", c2="c2 = 1 - beta2 * beta2**t"
    ),
    "the weight decay is added to the gradient, but it must be applied to the weight directly": answer(
        old="p = factors[key]\n        g = weight_decay * p + g", new="factors[key] = p - lr * step"
    ),
    "the weight decay is missing": answer(new="factors[key] = p - lr * step"),
    "the weight decay is not multiplied by the learning rate": answer(
        new="factors[key] = p - lr * step - weight_decay * p"
    ),
    "the weight decay uses the weight after the gradient step instead of the weight before the step": answer(
        new="p = p - lr * step\n        factors[key] = p - lr * weight_decay * p"
    ),
    "the factors A and B share one state": answer(slots="s = state['A']"),
    "only one of the factors A and B gets a step": answer(
        new="factors[key] = p - lr * (step + weight_decay * p)\n        return"
    ),
    "eps is added inside the square root of v̂ instead of outside": answer(denominator="below = np.sqrt(eps + v / c2)"),
    "the weight decay has the wrong sign": answer(new="factors[key] = p - lr * (step - weight_decay * p)"),
    "eps is added before v is corrected": answer(
        denominator="below = v**0.5 + eps", step="step = c2**0.5 / c1 * m / below"
    ),
    "the step uses the averages m and v from before the update": answer(
        keep="(s['m'], m), (s['v'], v) = (m, s['m']), (v, s['v'])"
    ),
    "neither the new weights nor the new averages are stored": answer(
        keep="", new="p = p - lr * (step + weight_decay * p)\n    return p, m, v"
    ),
    "eps is left out of the divisor": answer(denominator="below = np.sqrt(v / c2)"),
    "the step divides by v̂ instead of the square root of v̂": answer(denominator="below = eps + v / c2"),
    "v is an average of the gradient instead of the squared gradient": answer(
        v="v = beta2 * s['v'] + (1 - beta2) * abs(g)"
    ),
    "the new gradient enters an average with the weight 1 instead of 1 − β": answer(
        m="m = g + beta1 * s['m']", v="v = g * g + beta2 * s['v']"
    ),
    "the weights β and 1 − β of an average are swapped": answer(
        m="m = s['m'] + beta1 * (g - s['m'])", v="v = s['v'] + beta2 * (g * g - s['v'])"
    ),
    "the parameters beta1 and beta2 are swapped": answer(
        m="m = beta2 * s['m'] + (1 - beta2) * g",
        v="v = beta1 * s['v'] + (1 - beta1) * g * g",
        c1="c1 = 1 - beta2**t",
        c2="c2 = 1 - beta1**t",
    ),
    "a new average, m or v, leaves out the old average": answer(m="m = (1 - beta1) * g", v="v = (1 - beta2) * g * g"),
    "the new averages m and v are not stored in the state": answer(keep=""),
    "the new weights are not stored in `factors`": answer(new="p = p - lr * (step + weight_decay * p)"),
    "the step goes in the direction of the gradient instead of the opposite direction": answer(
        new="factors[key] = p + lr * (step - weight_decay * p)"
    ),
}

UNKNOWN = [
    answer(new="factors[key] = p - lr * (step + weight_decay * np.sign(p))"),  # every weight shrinks by as much
    answer(c1="c1 = 1 + beta1**t", c2="c2 = 1 + beta2**t"),
    answer(denominator="below = (v + eps) ** 0.5 / c2"),
]
