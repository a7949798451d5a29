"""Tests of the stop tokens: the eos token, eos_token_id of generation_config.json and config.json, and GGUF's end of a turn."""

from __future__ import annotations

import json
import re

import pytest
from tokenizer_cases import byte_level_bpe, metadata_for

from lora_np.files import ByteTokenizer, tokenizer_from_folder, tokenizer_from_gguf
from lora_np.pretrained import load_tokenizer

pytest.importorskip("tokenizers")
BYTES = {  # a config.json of a model with one token per byte
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 256,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def trained():
    return "gpt-2", byte_level_bpe("gpt-2")


@pytest.fixture
def folder(trained, tmp_path):
    """The folder of a tokenizer of 800 tokens, with eos 2."""
    tokenizer_from_gguf(metadata_for(trained)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, (2,)),
        ({}, {}, (2,)),
        ({"eos_token_id": None}, {"eos_token_id": None}, (2,)),
        ({"eos_token_id": 0}, None, (2, 0)),
        ({"eos_token_id": [0, 2, 799]}, None, (2, 0, 799)),
        (None, {"eos_token_id": 1}, (2, 1)),
        ({"eos_token_id": [7]}, {"eos_token_id": [1, 0]}, (2, 1, 0, 7)),
        ({"eos_token_id": [900, 2]}, {"vocab_size": 1000}, (2, 900)),  # the model's vocabulary is padded
        ({"eos_token_id": []}, None, (2,)),
    ],
)
def test_the_ids_of_both_files_follow_the_eos_token(generation, config, expected, folder):
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    assert tokenizer_from_folder(folder).stop_token_ids == expected


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"eos_token_id": "2"}', "eos_token_id is '2'; expected a token id, a list of token ids, or null"),
        ('{"eos_token_id": -1}', "eos_token_id is -1; expected"),
        ('{"eos_token_id": 2.0}', "eos_token_id is 2.0; expected"),
        ('{"eos_token_id": true}', "eos_token_id is True; expected"),
        ('{"eos_token_id": NaN}', "eos_token_id is nan; expected"),
        ('{"eos_token_id": {"a": 2}}', "eos_token_id is {'a': 2}; expected"),
        ('{"eos_token_id": [2, [3]]}', "eos_token_id is [2, [3]]; expected"),
        ('{"eos_token_id": [2, null]}', "eos_token_id is [2, None]; expected"),
        ('{"eos_token_id": ' + "9" * 5000 + "}", "is damaged or not JSON: Exceeds the limit"),
        ('{"eos_token_id": ' + "[" * 100_000, "is damaged or not JSON: maximum recursion"),
        ("[2]", "got a JSON list, expected an object"),
        ('{"eos_token_id": 2', "is damaged or not JSON"),
    ],
)
def test_a_damaged_file_is_refused_by_its_name(file, text, message, folder):
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / file))}.*{re.escape(message)}") as error:
        tokenizer_from_folder(folder)
    assert len(str(error.value)) < 1000


def test_an_id_outside_the_vocabulary_is_ignored_with_a_warning(folder):
    """transformers writes 50256 for any GPT-2, also for one with a small vocabulary."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [50256, 0]}))
    with pytest.warns(UserWarning, match=rf"{re.escape(str(path))}: eos_token_id \[50256\] is ignored; .* below 800"):
        assert tokenizer_from_folder(folder).stop_token_ids == (2, 0)


def test_a_model_of_bytes_has_stop_tokens_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BYTES))
    assert load_tokenizer(tmp_path).stop_token_ids == ByteTokenizer().stop_token_ids == (0,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 10}')
    assert load_tokenizer(tmp_path).stop_token_ids == (0, 10)
    assert ByteTokenizer().stop_token_ids == (0,), "the ids belong to one tokenizer, not to the class"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, (2,)),  # "<|im_end|>" is the eos token
        ({"eos_token_id": 0}, (0, 2)),  # found by its text, as llama.cpp does
        ({"eos_token_id": 0, "eot_token_id": 1}, (0, 1)),
        ({"eot_token_id": 2, "eom_token_id": 5}, (2, 5)),
        ({"eos_token_id": None, "eot_token_id": 7}, (7,)),
    ],
)
def test_a_gguf_file_names_the_tokens_that_end_a_turn_and_a_message(entries, expected, trained):
    assert tokenizer_from_gguf(metadata_for(trained, **entries)).stop_token_ids == expected


@pytest.mark.parametrize("i", [-1, 800, 2.0, True, "2", [2]])
@pytest.mark.parametrize("which", ["eot", "eom"])
def test_a_gguf_id_that_is_no_token_is_refused(which, i, trained):
    with pytest.raises(ValueError, match=rf"tokenizer\.ggml\.{which}_token_id is .*; expected a token id, 0 to 799"):
        tokenizer_from_gguf(metadata_for(trained, **{f"{which}_token_id": i}))


def test_saved_stop_tokens_come_back_and_other_settings_stay(trained, tmp_path):
    tokenizer = tokenizer_from_gguf(metadata_for(trained, eot_token_id=5))
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [2, 5]}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 3}')
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"temperature": 0.6, "eos_token_id": [2, 5]}
    assert tokenizer_from_folder(tmp_path).stop_token_ids == tokenizer.stop_token_ids == (2, 5)


def test_a_tokenizer_that_ends_texts_with_eos_only_writes_no_generation_config(folder):
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.stop_token_ids == (tokenizer.eos_token_id,)
    assert not (folder / "generation_config.json").exists()
