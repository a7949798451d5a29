"""LoRA in one file: a Llama, its backward pass, LoRA, AdamW, training on real text, and the merge.

The file needs only NumPy. Run it with `python -m lora_np.micro`.

At the first reading, stop after `merge`. Notebook 02 explains the functions up to `merge`. Read the
rest after notebook 03b, which derives the gradients of the Transformer.

Letters: b rows, t tokens per row, N = b·t, d hidden size, f MLP size, n attention heads, d_h head
size, r rank. Each forward function returns its result and a cache. The backward function takes the
gradient of the result, and the cache.
"""

import json
import os
from pathlib import Path

import numpy as np  # on a GPU: import cupy as np

FOLDER = Path(__file__).parent / "assets" / "tiny"  # a million weights, trained on English
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(folder=FOLDER):
    """Read config.json and model.safetensors (a length, a JSON header, and the weights)."""
    config = json.loads((folder / "config.json").read_text())
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    W = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = np.frombuffer(data[start + begin : start + end], np.float32)
        W[name] = np.array(numbers).reshape(entry["shape"])
    return config, W


# --------------------------------------------------------------------------------------------- LoRA


def init_lora(W, r, seed=0):
    """Draw A (r, in) uniformly in ±1/√in and set B (out, r) = 0, so that ΔW = s·B A starts at 0."""
    rng, lora = np.random.default_rng(seed), {}
    for name, weight in W.items():
        if name.split(".")[-2] in LINEAR:
            out, in_ = weight.shape
            A = rng.uniform(-1, 1, (r, in_)) / np.sqrt(in_)
            lora[name] = {"A": A.astype("float32"), "B": np.zeros((out, r), "float32")}
    return lora


def linear(x, W, AB, s):
    """Return y = x Wᵀ + s·(x Aᵀ) Bᵀ. W (out, in) is frozen; A (r, in), B (out, r) are trained."""
    if AB is None:
        return x @ W.T, (x, None, W, AB, s)
    h = x @ AB["A"].T  # (b, t, in) → (b, t, r)
    return x @ W.T + s * (h @ AB["B"].T), (x, h, W, AB, s)


def linear_backward(dy, cache, grad):
    """Store dA and dB in `grad`, and return dx. y is a sum of two paths, so each path receives dy.

    The bypass s·h Bᵀ gives dB = s·dyᵀ h and dh = s·dy B. Then h = x Aᵀ gives dA = dhᵀ x and adds
    dh A to dx.
    """
    x, h, W, AB, s = cache
    dx = dy @ W
    if AB is not None:
        dh = s * (dy @ AB["B"])
        grad["B"] = s * flat(dy).T @ flat(h)
        grad["A"] = flat(dh).T @ flat(x)
        dx += dh @ AB["A"]
    return dx


def flat(x):  # (b, t, features) → (N, features)
    return x.reshape(-1, x.shape[-1])


def merge(W, lora, s):
    """Return the weights W + s·B A. A model with these weights needs no bypass."""
    change = {name: s * AB["B"] @ AB["A"] for name, AB in lora.items()}  # ΔW
    return {name: w + change[name] if name in change else w for name, w in W.items()}


# ---------------------------------------------------------------------------------- the Transformer


def rms_norm(x, w, eps):
    """Return y = w ∘ x·ρ with ρ = 1/√(mean x² + ε). w (d,) holds one factor per feature."""
    rho = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return w * x * rho, (x, w, rho)


def rms_norm_backward(dy, cache):
    """Return dx = ρ·w∘dy − x·ρ³·mean(w∘dy∘x), because ∂ρ/∂x = −ρ³·x/d."""
    x, w, rho = cache
    return rho * w * dy - x * rho**3 * (w * dy * x).mean(-1, keepdims=True)


def rotate(x, angles):
    """Rotate each pair (x_i, x_{i+d_h/2}) by its angle. The gradient is rotate(dy, −angles)."""
    x1, x2 = np.split(x, 2, axis=-1)  # (b, n, t, d_h) → two (b, n, t, d_h/2)
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def attention(q, k, v):
    """Return o = P v with P = softmax(S) and S = q kᵀ/√d_h. A token does not see later tokens.

    q is (b, n, t, d_h). If k and v have fewer heads, several heads of q share one head of k and v.
    """
    shared_by = q.shape[1] // k.shape[1]  # the number of query heads that share a key/value head
    k, v = k.repeat(shared_by, axis=1), v.repeat(shared_by, axis=1)
    t, scale = q.shape[2], q.shape[-1] ** -0.5
    S = np.where(np.tri(t, dtype=bool), q @ k.swapaxes(-1, -2) * scale, -np.inf)
    P = np.exp(S - S.max(-1, keepdims=True))
    P /= P.sum(-1, keepdims=True)
    return P @ v, (q, k, v, P, shared_by, scale)


def attention_backward(do, cache):
    """Return dq, dk and dv.

    The gradient of the softmax is dS = P ∘ (dP − Σ P ∘ dP).
    The gradient of a shared key/value head is the sum over the query heads that share it.
    """
    q, k, v, P, shared_by, scale = cache
    dP = do @ v.swapaxes(-1, -2)
    dS = P * (dP - (P * dP).sum(-1, keepdims=True))
    dq, dk, dv = dS @ k * scale, dS.swapaxes(-1, -2) @ q * scale, P.swapaxes(-1, -2) @ do
    b, n, t, d_h = q.shape
    dk, dv = (g.reshape(b, n // shared_by, shared_by, t, d_h).sum(2) for g in (dk, dv))
    return dq, dk, dv


class Llama:
    """A Llama: embedding, blocks, norm, logits. A block adds attention(norm x) and MLP(norm x)."""

    def __init__(self, config, W, lora=None, s=1.0):
        self.config, self.W, self.lora, self.s, self.grad = config, W, lora or {}, s, {}

    def heads(self, x):  # (b, t, n·d_h) → (b, n, t, d_h)
        return x.reshape(*x.shape[:2], -1, self.config["head_dim"]).swapaxes(1, 2)

    def rows(self, x):  # (b, n, t, d_h) → (b, t, n·d_h)
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def apply(self, name, x):
        return linear(x, self.W[name], self.lora.get(name), self.s)

    def back(self, name, dy, cache):
        return linear_backward(dy, cache, self.grad.setdefault(name, {}))

    def loss(self, tokens, targets):
        """Return the mean cross-entropy in nats per token, and the cache for `backward`."""
        W, d_h, eps = self.W, self.config["head_dim"], self.config["rms_norm_eps"]
        position = np.arange(tokens.shape[1])[:, None]
        angles = position * self.config["rope_theta"] ** (np.arange(0, d_h, 2) / -d_h)  # (t, d_h/2)
        x, caches = W["model.embed_tokens.weight"][tokens], []
        for i in range(self.config["num_hidden_layers"]):
            at, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            y, norm1 = rms_norm(x, W[f"model.layers.{i}.input_layernorm.weight"], eps)
            (q, cq), (k, ck), (v, cv) = (self.apply(f"{at}{of}_proj.weight", y) for of in "qkv")
            q, k = rotate(self.heads(q), angles), rotate(self.heads(k), angles)
            o, ca = attention(q, k, self.heads(v))
            y, co = self.apply(f"{at}o_proj.weight", self.rows(o))
            x = x + y
            y, norm2 = rms_norm(x, W[f"model.layers.{i}.post_attention_layernorm.weight"], eps)
            gate, cg = self.apply(f"{mlp}gate_proj.weight", y)
            up, cu = self.apply(f"{mlp}up_proj.weight", y)
            sigma = 1 / (1 + np.exp(-gate))  # silu(gate) = gate · σ
            y, cd = self.apply(f"{mlp}down_proj.weight", gate * sigma * up)
            x = x + y
            caches.append((norm1, cq, ck, cv, ca, co, norm2, gate, up, sigma, cg, cu, cd))
        x, norm = rms_norm(x, W["model.norm.weight"], eps)
        z = x @ W["model.embed_tokens.weight"].T  # (b, t, 256): the embedding is also the head
        z = z - z.max(-1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        picked = np.take_along_axis(log_p, targets[..., None], -1)
        return -picked.mean(), (log_p, targets, norm, caches, angles)

    def backward(self, cache):
        """Set `grad[name]` to dA and dB of each layer, by the steps of `loss` in reverse order."""
        log_p, targets, norm, caches, angles = cache
        dz = np.exp(log_p)  # ∂(−log p_target)/∂z = softmax(z) − onehot(target)
        onehot = np.arange(dz.shape[-1]) == targets[..., None]
        dz = (dz - onehot).astype(dz.dtype) / targets.size
        dx = rms_norm_backward(dz @ self.W["model.embed_tokens.weight"], norm)
        for i in reversed(range(len(caches))):
            norm1, cq, ck, cv, ca, co, norm2, gate, up, sigma, cg, cu, cd = caches[i]
            at, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            dgated = self.back(f"{mlp}down_proj.weight", dx, cd)  # gated = silu(gate) ∘ up
            dgate = dgated * up * sigma * (1 + gate * (1 - sigma))
            dy = self.back(f"{mlp}gate_proj.weight", dgate, cg)
            dy += self.back(f"{mlp}up_proj.weight", dgated * gate * sigma, cu)
            dx = dx + rms_norm_backward(dy, norm2)
            do = self.heads(self.back(f"{at}o_proj.weight", dx, co))
            dq, dk, dv = attention_backward(do, ca)
            dy = self.back(f"{at}q_proj.weight", self.rows(rotate(dq, -angles)), cq)
            dy += self.back(f"{at}k_proj.weight", self.rows(rotate(dk, -angles)), ck)
            dy += self.back(f"{at}v_proj.weight", self.rows(dv), cv)
            dx = dx + rms_norm_backward(dy, norm1)


# ----------------------------------------------------------------------------------------- training


def adamw(lora, grad, state, step, lr, betas=(0.9, 0.999), eps=1e-8, decay=0.01):
    """Update in place: θ ← θ − η(λθ + m̂/(√v̂ + ε)). m and v are running means of dθ and dθ²."""
    for name, factors in lora.items():
        for key, value in factors.items():
            g = grad[name][key]  # dθ
            m, v = state.setdefault((name, key), [np.zeros_like(g), np.zeros_like(g)])
            m += (1 - betas[0]) * (g - m)
            v += (1 - betas[1]) * (g * g - v)
            update = m / (1 - betas[0] ** step) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
            value -= lr * (decay * value + update)


def batch(text, i, rows=8, length=128):
    """Return random windows of `text`: tokens (b, t), and the next bytes as targets (b, t)."""
    first = np.random.default_rng(i).integers(0, len(text) - length, rows)[:, None]
    window = text[first + np.arange(length + 1)]
    return window[:, :-1], window[:, 1:]


def main(steps=60, r=8, lr=1e-2, s=2.0):
    """Train on the standard library's code, print the held-out loss before and after, and merge."""
    files = sorted(Path(os.__file__).parent.glob("[a-m]*.py"))
    data = b"\n".join(f.read_bytes() for f in files)
    text = np.array(np.frombuffer(data, "uint8")).astype("int64")
    train, held_out = text[: -len(text) // 10], text[-len(text) // 10 :]
    config, W = load()
    lora = init_lora(W, r)
    model, test = Llama(config, W, lora, s), batch(held_out, 0, rows=32)
    state: dict = {}
    trained = sum(x.size for AB in lora.values() for x in AB.values())
    print(f"{trained:,} of {sum(w.size for w in W.values()):,} parameters are trained")
    print(f"held-out loss before: {float(model.loss(*test)[0]):.3f} nats per byte")
    for step in range(1, steps + 1):
        loss, cache = model.loss(*batch(train, step))
        model.backward(cache)
        adamw(lora, model.grad, state, step, lr)
        if step % 20 == 0:
            print(f"step {step}: loss {float(loss):.3f}")
    print(f"held-out loss after: {float(model.loss(*test)[0]):.3f}")
    merged = Llama(config, merge(W, lora, s))
    print(f"held-out loss after merging: {float(merged.loss(*test)[0]):.3f}")


if __name__ == "__main__":
    main()
