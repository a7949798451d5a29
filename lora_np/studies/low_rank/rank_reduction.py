"""Which rank does fine-tuning need?

The study measures the singular values of the ΔW of full fine-tuning, and the loss after ΔW is cut to rank r.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...pretrained import load_model
from ...training import evaluate
from ..harness.table import Table, rounded
from ..harness.tiny_task import Run, fine_tune, heldout_batches
from .spectra import layer_and_module

SHOWN = "model.layers.2.self_attn.v_proj.weight"  # the matrix in the pictures of one ΔW
Deltas = dict[str, np.ndarray]  # name → ΔW = fine-tuned − base, for every matrix of the model


def learned_deltas(run: Run) -> Deltas:
    """Fine-tune all weights with the settings of `run`.

    Return ΔW of every parameter by name, of shape (out, in) for matrices and the embedding, and (d,) for norms.
    """
    model, _ = fine_tune(run)
    base = load_model(run.base).state_dict()
    return {name: p.value - base[name] for name, p in model.named_parameters()}


def truncate(matrix: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    """Return B (out, r) and A (r, in) with the best rank-r product BA in the Frobenius norm (Eckart and Young 1936).

    If U Σ Vᵀ is the singular value decomposition of the matrix, B = U_r √Σ_r and A = √Σ_r V_rᵀ. The error ‖matrix − BA‖
    is √(σ²_{r+1} + σ²_{r+2} + …).
    """
    U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(s[:r])
    return U[:, :r] * root, root[:, None] * Vt[:r]


def singular_values(deltas: Deltas, run: Run, seed: int = 0) -> Table:
    """Compute the singular values of each learned ΔW, and of a Gaussian random matrix.

    The random matrix has the shape and the Frobenius norm of ΔW. The rows have `layer`, `module`, `shape`, `norm`,
    `singular_values` and `random_singular_values`.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name, delta in deltas.items():
        if delta.ndim != 2 or "layers" not in name.split("."):
            continue
        chance, norm = rng.standard_normal(delta.shape), float(np.linalg.norm(delta))
        chance *= np.linalg.norm(delta) / np.linalg.norm(chance)
        spectra = {"singular_values": _spectrum(delta), "random_singular_values": _spectrum(chance)}
        rows.append(
            layer_and_module(name.removesuffix(".weight")) | {"shape": list(delta.shape), "norm": norm} | spectra
        )
    return _table("singular_values", "Which rank has the ΔW that full fine-tuning learns?", run, rows)


def truncated_loss(deltas: Deltas, run: Run, ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)) -> Table:
    """Evaluate the base plus the top r singular directions of every ΔW, for each rank r.

    The rows have `r` and `heldout_loss` in nats per byte. The weights of norms are vectors and cannot be cut, so all
    models have the fine-tuned norms. The settings have `base_loss`, `norms_loss` (the base with the fine-tuned norms
    alone), `full_loss` (with all of ΔW) and `rank_max`.
    """
    model = load_model(run.base)
    base = {name: x.copy() for name, x in model.state_dict().items()}

    def loss(r: int | None) -> float:
        cut = {n: d if r is None or d.ndim == 1 else np.matmul(*truncate(d, r)) for n, d in deltas.items()}
        return evaluate(model.load_state_dict({n: base[n] + cut[n] for n in base}), heldout_batches())

    started = time.perf_counter()
    settings = {"base_loss": evaluate(model, heldout_batches()), "norms_loss": loss(0), "full_loss": loss(None)}
    settings["rank_max"] = max(min(d.shape) for d in deltas.values() if d.ndim == 2)
    rows = [{"r": r, "heldout_loss": loss(r)} for r in ranks if r <= settings["rank_max"]]
    table = _table("truncated_loss", "What is lost when only the top r directions of ΔW survive?", run, rows, settings)
    table.seconds = time.perf_counter() - started
    return table


def decomposition(deltas: Deltas, run: Run, r: int = 4, name: str = SHOWN) -> Table:
    """Cut one learned ΔW to rank r.

    The table has one row with `name`, `r`, `matrix`, `B`, `A` and `error`; the error
    is ‖ΔW − BA‖/‖ΔW‖."""
    B, A = truncate(deltas[name], r)
    error = float(np.linalg.norm(deltas[name] - B @ A) / np.linalg.norm(deltas[name]))
    row = {"name": name.removeprefix("model.").removesuffix(".weight"), "r": r, "error": error}
    row |= {key: np.round(x.astype(float), 5).tolist() for key, x in {"matrix": deltas[name], "B": B, "A": A}.items()}
    return _table("decomposition", "What does B·A look like beside the ΔW that it stands for?", run, [row])


def photograph(image: np.ndarray, ranks: Sequence[int] = (2, 8, 32, 64)) -> Table:
    """Cut a grey image (height, width) to its top r singular directions, for each rank r.

    Each row of the table contains `r`, `image`, `share_of_numbers` and `error`; the last row is the original. `share_of_numbers` is
    r·(height + width) / (height·width); the error is relative to ‖image‖. Raises ValueError for a colour image.
    """
    if image.ndim != 2:
        raise ValueError(f"image has shape {image.shape}; expected grey values of shape (height, width)")
    height, width = image.shape
    rows: list[dict[str, Any]] = []
    for r in ranks:
        cut = np.matmul(*truncate(image, r))
        error = float(np.linalg.norm(image - cut) / np.linalg.norm(image))
        share = r * (height + width) / (height * width)
        rows.append({"r": r, "image": cut, "share_of_numbers": share, "error": error})
    rows.append({"r": None, "image": image, "share_of_numbers": 1.0, "error": 0.0})
    return Table("photograph", "What does a low rank keep of a photograph?", "python -m lora_np reproduce", rows=rows)


def _spectrum(matrix: np.ndarray) -> list[float]:
    return [rounded(s, 6) for s in np.linalg.svd(matrix.astype(np.float64), compute_uv=False)]


def _table(study: str, question: str, run: Run, rows: list, settings: dict[str, Any] | None = None) -> Table:
    return Table(study, question, "python -m lora_np reproduce --full", vars(run) | (settings or {}), rows)
