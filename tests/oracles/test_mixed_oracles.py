"""Mixed batches: PEFT's own, with the same adapters in the same rows, say the same.

"measured" beside a bound is the worst seen when this was written; `pytest tests/oracles/test_mixed_oracles.py -rP` shows it again.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle_models import SHAPES, DoubleTorch, base_pair, largest_difference, modeling_llama, peft, random_batch, torch

import lora_np as ln
from lora_np.nn import BASE
from lora_np.studies.serving.serving import WORKLOADS, workload

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]

BOUNDS = {np.float64: 1e-10, np.float32: 1e-4}  # on logits of size 1 to 10; measured 5e-15 and 5e-6
RANKS = (1, 4, 16, 64)
N = 12


def pair_with_adapters(folder, dtype):
    """(ours, theirs): one base, and in both the adapters "a0" … that we saved and PEFT read."""
    ours, theirs = base_pair(SHAPES["untied"], dtype)
    ours = ln.PeftModel(ours.freeze())
    for i in range(N):
        targets = ["q_proj", "v_proj"] if i % 3 == 2 else "all-linear"
        config = ln.LoraConfig(r=RANKS[i % 4], lora_alpha=3 + i, target_modules=targets, init_lora_weights=False)
        ours.add_adapter(f"a{i}", config, seed=i)
        ours.save_pretrained(folder / f"a{i}", f"a{i}")
    theirs = peft.PeftModel.from_pretrained(theirs, folder / "a0", "a0")
    for i in range(1, N):
        theirs.load_adapter(folder / f"a{i}", f"a{i}")
    return ours, theirs.to(torch.float64 if dtype == np.float64 else torch.float32).eval()


@pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: dtype.__name__)
def test_a_mixed_batch_is_pefts_on_every_workload(dtype, tmp_path, monkeypatch):
    if dtype == np.float64:
        monkeypatch.setattr(modeling_llama, "torch", DoubleTorch("torch"))
    ours, theirs = pair_with_adapters(tmp_path, dtype)
    for kind in WORKLOADS:
        for rows, time in ((1, 7), (13, 7), (32, 1)):  # the last as in decoding
            names = [BASE if i % 5 == 4 else f"a{k}" for i, k in enumerate(workload(kind, rows, N, seed=1))]
            tokens = random_batch(seed=2, batch=rows, time=time)[0]
            mine, _ = ours.forward(tokens, adapter_names=names)
            with torch.no_grad():
                peers = theirs(input_ids=torch.from_numpy(tokens), adapter_names=names).logits.numpy()
            error = largest_difference(mine, peers)
            print(f"measured {error:.1e} on {kind}, {rows} rows of {time}; bound {BOUNDS[dtype]:.0e}")
            assert error < BOUNDS[dtype], f"{kind}, {rows} rows of {time} tokens"


@pytest.mark.parametrize("names", [["a0"], ["a0", "poet", "a1"]], ids=["too few", "unknown"])
def test_what_peft_refuses_is_refused_with_the_same_error(names, tmp_path):
    ours, theirs = pair_with_adapters(tmp_path, np.float32)
    tokens = random_batch(seed=2)[0]
    with pytest.raises(ValueError):
        theirs(input_ids=torch.from_numpy(tokens), adapter_names=names)
    with pytest.raises(ValueError):
        ours.forward(tokens, adapter_names=names)
