"""What we save, transformers loads; what it saves, we load; and a GGUF file is the same model and tokenizer to both."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf_files import CONFIG, metadata_of, write, write_model
from on_device import host
from oracle_models import SHAPES, base_pair, largest_difference, torch, transformers
from tokenizer_cases import CHAT, TRICKY, metadata_for

import lora_np as ln
from lora_np.files import tokenizer_from_gguf

tokenizers = pytest.importorskip("tokenizers")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 9))
shapes = pytest.mark.parametrize("shape", SHAPES)


def their_logits(theirs, tokens=TOKENS):
    with torch.no_grad():
        return theirs.eval()(torch.from_numpy(tokens)).logits.float().numpy()


def assert_same_weights(ours, theirs):
    state = {name: x.float().numpy() for name, x in theirs.state_dict().items()}
    if ours.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    assert state.keys() == ours.state_dict().keys()
    for name, x in ours.state_dict().items():
        np.testing.assert_array_equal(host(x), state[name], err_msg=name)


@shapes
def test_a_folder_that_we_save_is_the_same_model_in_transformers(shape, tmp_path):
    ours, _ = base_pair(SHAPES[shape], np.float32)
    ln.save_model(ours, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_weights(ours, theirs)
    difference = largest_difference(host(ours.forward(TOKENS)[0]), their_logits(theirs))
    print(f"measured {difference:.1e} in the logits")
    assert difference < 1e-5, "the same weights, but another function: a setting of config.json was lost"


@shapes
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_size", ["1GB", "9KB"])
def test_a_folder_that_transformers_saves_is_the_same_model_here(shape, dtype, shard_size, tmp_path):
    _, theirs = base_pair(SHAPES[shape], np.float32)
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "9KB"), "this test wants shards"
    ours = ln.load_model(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_weights(ours, theirs)
    difference = largest_difference(host(ours.forward(TOKENS)[0]), their_logits(theirs))
    print(f"measured {difference:.1e} in the logits")
    assert difference < 1e-5, "the same weights, but another function: a setting of config.json was not read"


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_gguf_file_is_the_same_model_in_transformers(kind, tied, trained, tmp_path):
    tokens = metadata_for(trained)
    tokens["tokenizer.ggml.token_type"] = tokens["tokenizer.ggml.token_type"].tolist()
    config = replace(CONFIG, tie_word_embeddings=tied, vocab_size=len(tokens["tokenizer.ggml.tokens"]))
    model = ln.Transformer.random(config)
    write_model(tmp_path / "model.gguf", model, Type[kind], **{k.replace(".", "__"): v for k, v in tokens.items()})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = ln.load_model(tmp_path / "model.gguf")
    assert_same_weights(ours, theirs)
    difference = largest_difference(host(ours.forward(TOKENS)[0]), their_logits(theirs))
    print(f"measured {difference:.1e} in the logits")
    assert difference < 1e-5


def their_tokenizer(tokens, folder):
    """transformers' own, from the same GGUF file, told of the digits that it does not read from tokenizer.ggml.pre."""
    entries = metadata_of(CONFIG) | tokens
    entries["tokenizer.ggml.token_type"] = entries["tokenizer.ggml.token_type"].tolist()
    write(folder / "model.gguf", {}, entries)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    if tokens["tokenizer.ggml.pre"] == "smollm":
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        cut = tokenizers.pre_tokenizers.Sequence([digits, theirs.backend_tokenizer.pre_tokenizer])
        theirs.backend_tokenizer.pre_tokenizer = cut
    return theirs


def test_a_gguf_tokenizer_is_transformers_own(trained, tmp_path):
    tokens = metadata_for(trained)
    ours, theirs = tokenizer_from_gguf(tokens), their_tokenizer(tokens, tmp_path)
    for text in TRICKY:
        assert ours.encode(text).tolist() == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_a_tokenizer_that_we_save_is_the_same_in_transformers(trained, tmp_path):
    ours = tokenizer_from_gguf(
        metadata_for(trained) | {"tokenizer.chat_template": ln.load_tokenizer("tiny").chat_template}
    )
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        assert ours.encode(text).tolist() == theirs.encode(text), text
    for n, prompt in ((2, True), (3, False)):
        ids = theirs.apply_chat_template(CHAT[:n], add_generation_prompt=prompt, return_dict=False)
        assert ours.apply_chat_template(CHAT[:n], add_generation_prompt=prompt).tolist() == ids


def test_a_tokenizer_that_transformers_saves_is_the_same_here(trained, tmp_path):
    _, backend = trained
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    theirs.chat_template = (
        "{%- for m in messages %}\n  {%- if m.role == 'user' %}\n{{ m.content | trim | tojson }}\n  {%- else %}{% continue %}"
        "{%- endif %}\n{%- endfor %}{{ eos_token }}{% if tools is not none %}never{% endif %}"
    )
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    ours = ln.load_tokenizer(tmp_path)
    for text in TRICKY:
        assert ours.encode(text).tolist() == theirs.encode(text), text
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.apply_chat_template(CHAT, tokenize=False) == theirs.apply_chat_template(CHAT, tokenize=False)
