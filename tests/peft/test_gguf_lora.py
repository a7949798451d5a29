"""A LoRA in a GGUF file, as llama.cpp's convert_lora_to_gguf.py writes it, computes what the same LoRA in a folder computes."""

from __future__ import annotations

import numpy as np
import pytest
from adapted import adapted, state
from on_device import xp

import lora_np as ln

pytest.importorskip("gguf", reason="the extra [models] is not installed")
from gguf import GGUFWriter
from gguf_files import CONFIG, gguf_name, interleaved

TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 9))
HEADS = {"q_proj": CONFIG.num_attention_heads, "k_proj": CONFIG.num_key_value_heads}
PLAIN = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 7.0}


def base():
    return ln.Transformer.random(CONFIG, seed=3).to("numpy" if xp is np else "cupy")


def written(peft_model, path, metadata=PLAIN, architecture="llama", rename=lambda name: name):
    """Write the active LoRA of a model to a GGUF file."""
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_string)(key, value)
    for name, p in peft_model.named_parameters():
        layer, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        if factor:
            x = p.value if isinstance(p.value, np.ndarray) else p.value.get()
            x = (
                interleaved(x, HEADS[layer.rsplit(".", 1)[-1]])
                if factor[0] == "B" and layer.endswith(tuple(HEADS))
                else x
            )
            writer.add_tensor(
                rename(f"{gguf_name(f'{layer}.weight')}.lora_{factor[0].lower()}"), np.ascontiguousarray(x)
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CASES = {
    "all layers": ({}, PLAIN),
    "layers of different ranks": ({"rank_pattern": {"k_proj": 1, "1.mlp.up_proj": 5}}, PLAIN),
    "α = 0, which means a scaling of 1": (
        {"lora_alpha": 3, "rank_pattern": {"k_proj": 5}, "alpha_pattern": {"k_proj": 5}},
        PLAIN | {"adapter.lora.alpha": 0.0},
    ),
    "the head": ({"target_modules": ["lm_head", "q_proj"]}, PLAIN),
}


@pytest.mark.parametrize("what", CASES)
def test_the_logits_are_those_of_the_adapter_that_was_written(what, tmp_path):
    changes, metadata = CASES[what]
    before = adapted(base(), **changes)
    path = written(before, tmp_path / "lora.gguf", metadata)
    after = ln.PeftModel.from_pretrained(base(), path)
    expected = before.forward(TOKENS)[0]
    assert xp.abs(after.forward(TOKENS)[0] - expected).max() <= 1e-5 * xp.abs(expected).max()
    assert xp.abs(base().forward(TOKENS)[0] - expected).max() > 1e-2 * xp.abs(expected).max()
    after.save_pretrained(tmp_path / "folder")
    again = ln.PeftModel.from_pretrained(base(), tmp_path / "folder")
    assert xp.array_equal(again.forward(TOKENS)[0], after.forward(TOKENS)[0])


REFUSED = {
    "a model": (PLAIN | {"general.type": "model"}, {}, "general.type is 'model'; expected 'adapter'"),
    "another family": (PLAIN, {"architecture": "bert"}, "general.architecture is 'bert'; expected 'llama'"),
    "another method": (PLAIN | {"adapter.type": "ia3"}, {}, "adapter.type is 'ia3'; expected 'lora'"),
    "an unknown layer": (
        PLAIN,
        {"rename": lambda name: name.replace("attn_q", "attn_x")},
        r"unexpected tensor blk\.0\.attn_x\.weight\.lora_a",
    ),
    "a tensor that is no factor": (
        PLAIN,
        {"rename": lambda name: name.replace("blk.1.attn_q.weight.lora_b", "blk.1.attn_norm.weight")},
        r"unexpected tensor blk\.1\.attn_norm\.weight",
    ),
    "a missing factor": (
        PLAIN,
        {"rename": lambda name: name.replace("blk.1.attn_q.weight.lora_b", "blk.7.attn_q.weight.lora_b")},
        r"lora\.gguf: unexpected tensor \S*layers\.7\.self_attn\.q_proj\.lora_B",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_by_name_and_the_model_is_unchanged(what, tmp_path):
    metadata, settings, message = REFUSED[what]
    path = written(adapted(base()), tmp_path / "lora.gguf", metadata, **settings)
    model = base()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        ln.PeftModel.from_pretrained(model, path)
    assert state(model) == before


def test_a_missing_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ln.PeftModel.from_pretrained(base(), tmp_path / "lora.gguf")
    path = written(adapted(base()), tmp_path / "lora.gguf")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"lora\.gguf is damaged or not supported"):
        ln.PeftModel.from_pretrained(base(), path)
