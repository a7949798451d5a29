"""Tests of tokenizers: decoding inverts encoding, a tokenizer from a GGUF file equals the original, and conversations
follow the chat template."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from gguf_files import CONFIG, metadata_of, write
from tokenizer_cases import CHAT, TRICKY, metadata_for

from lora_np import Transformer, data, load_tokenizer, save_model
from lora_np.files import ByteTokenizer, tokenizer_from_folder, tokenizer_from_gguf

tokenizers = pytest.importorskip("tokenizers")

# ------------------------------------------------------------------------------------------------------------------ bytes


def test_tiny_reads_bytes_as_its_data_does():
    tokenizer = load_tokenizer("tiny")
    for text in TRICKY:
        ids = tokenizer.encode(text)
        np.testing.assert_array_equal(ids, data.encode(text))
        assert ids.dtype == data.encode(text).dtype
        assert tokenizer.decode(ids) == data.decode(ids) == text
    assert tokenizer.vocab_size == data.VOCAB_SIZE
    assert chr(tokenizer.eos_token_id) == data.END
    assert tokenizer.decode([72, 105, 0], skip_special_tokens=True) == "Hi"
    assert tokenizer.decode([0xC3]) == "\ufffd", "half a character becomes U+FFFD and is not an error"


def test_a_folder_of_a_model_of_bytes_has_the_bytes_tokenizer(tmp_path):
    save_model(Transformer.random(replace(CONFIG, vocab_size=256)), tmp_path / "bytes")
    assert isinstance(load_tokenizer(tmp_path / "bytes"), ByteTokenizer)
    save_model(Transformer.random(CONFIG), tmp_path / "others")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "others")


def test_tiny_can_be_taught_conversations():
    text = load_tokenizer("tiny").apply_chat_template(CHAT, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n 1 + 1? <|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>assistant\n"
    )


# ------------------------------------------------------------------------------------------------- from files, and the same


def test_rebuilt_from_gguf_it_cuts_text_as_the_original(trained, tmp_path):
    metadata = metadata_of(CONFIG) | metadata_for(trained)
    metadata["tokenizer.ggml.token_type"] = metadata["tokenizer.ggml.token_type"].tolist()
    write(tmp_path / "model.gguf", {}, metadata)
    tokenizer, (_, original) = load_tokenizer(tmp_path / "model.gguf"), trained
    for text in TRICKY:
        ids = tokenizer.encode(text)
        assert ids.tolist() == original.encode(text).ids, text
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.vocab_size == original.get_vocab_size()


def test_the_two_ways_to_cut_differ_where_spaces_meet_digits(trained):
    pre, _ = trained
    tokens = tokenizer_from_gguf(metadata_for(trained))
    pieces = [tokens.convert_ids_to_tokens(i) for i in tokens.encode("x  1")]
    assert pieces == (["x", "ĠĠ", "1"] if pre == "smollm" else ["x", "Ġ", "Ġ1"]), (
        "the text must be split differently by the two kinds"
    )


def test_a_folder_comes_back(trained, tmp_path):
    tokenizer = tokenizer_from_gguf(metadata_for(trained) | {"tokenizer.chat_template": "{{ bos_token }}Δ"})
    tokenizer.save_pretrained(tmp_path)
    back = tokenizer_from_folder(tmp_path)
    for text in TRICKY:
        assert back.encode(text).tolist() == tokenizer.encode(text).tolist()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template", "vocab_size"):
        assert getattr(back, name) == getattr(tokenizer, name)
    assert back.apply_chat_template(CHAT, tokenize=False) == "<|im_start|>Δ"


def test_special_tokens_are_one_token_and_can_be_left_out_of_the_text(trained):
    tokenizer = tokenizer_from_gguf(metadata_for(trained))
    ids = tokenizer.encode("<|im_start|>a<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"


def test_without_token_types_the_named_tokens_are_special(trained):
    tokenizer = tokenizer_from_gguf(metadata_for(trained, token_type=None))
    assert tokenizer.encode("<|im_end|>").tolist() == [2]
    assert len(tokenizer.encode("<|endoftext|>")) > 1, "without an entry for it, the text is not a special token"


def test_a_model_that_wants_a_first_token_gets_it(trained):
    tokenizer = tokenizer_from_gguf(metadata_for(trained, add_bos_token=True, add_eos_token=True))
    assert tokenizer.encode("a").tolist() == [1, *tokenizer.encode("a", add_special_tokens=False), 2]


def test_a_limit_in_the_file_does_not_cut_the_text(trained, tmp_path):
    """tokenizer.json may contain the truncation of a training run, which would silently cut long texts."""
    backend = tokenizers.Tokenizer.from_str(trained[1].to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "one two three four five six seven"
    assert tokenizer_from_folder(tmp_path).encode(text).tolist() == trained[1].encode(text).ids


# ----------------------------------------------------------------------------------------------------------- conversations


@pytest.fixture
def chatty(trained):
    """Return a tokenizer with a chat template like that of SmolLM2."""
    template = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nHi<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer_from_gguf(metadata_for(trained) | {"tokenizer.chat_template": template})


def test_a_conversation_is_rendered_and_is_a_prefix_of_the_one_with_its_answer(chatty):
    prompt, whole = (chatty.apply_chat_template(CHAT[:n], add_generation_prompt=n == 2) for n in (2, 3))
    assert whole[: len(prompt)].tolist() == prompt.tolist(), "the conversation must begin with the tokens of the prompt"
    assert chatty.decode(whole[len(prompt) :]) == "2<|im_end|>\n"
    text = chatty.apply_chat_template(CHAT[1:2], tokenize=False)
    assert text == "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\n 1 + 1? <|im_end|>\n<|im_start|>assistant\n"


def test_a_template_runs_in_a_sandbox(chatty):
    for escape in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ open('x') }}"):
        chatty.chat_template = escape
        with pytest.raises(ValueError, match="the chat template raised an error"):
            chatty.apply_chat_template(CHAT)


def test_a_templates_own_objection_is_passed_on(chatty):
    chatty.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="the chat template raised an error: roles must alternate"):
        chatty.apply_chat_template(CHAT)
    chatty.chat_template = "{% for %}"
    with pytest.raises(ValueError, match="the chat template raised an error: "):
        chatty.apply_chat_template(CHAT)


@pytest.mark.parametrize("messages", [[], ["hi"], [{"role": "user"}], [{"role": "user", "content": None}], [{}]])
def test_messages_that_are_none_are_refused(messages, chatty):
    with pytest.raises(ValueError, match=r"without messages|message 0 is .*; expected"):
        chatty.apply_chat_template(messages)


def test_a_tokenizer_without_a_template_says_so(trained):
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer_from_gguf(metadata_for(trained)).apply_chat_template(CHAT)


# --------------------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_text_or_no_token_is_refused(trained):
    for tokenizer in (load_tokenizer("tiny"), tokenizer_from_gguf(metadata_for(trained))):
        with pytest.raises(TypeError, match="encode takes one string, got list"):
            tokenizer.encode(["a"])
        with pytest.raises(UnicodeEncodeError):
            tokenizer.encode("half a pair: \ud83d")
        for wrong in (-1, tokenizer.vocab_size):
            with pytest.raises(ValueError, match=f"got token id {wrong}; expected 0 to {tokenizer.vocab_size - 1}"):
                tokenizer.decode([1, wrong])


WRONG = {
    "another kind": ({"model": "t5"}, "model is 't5'; only byte-level BPE"),
    "no scores": ({"model": "llama"}, "tokenizer.ggml.scores is missing"),
    "another way to cut": ({"pre": "tekken"}, r"pre is 'tekken'; only \['gpt-2', 'llama-bpe', 'qwen2', 'smollm'\]"),
    "no tokens": ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
    "tokens that are numbers": ({"tokens": np.arange(3)}, "tokens is a ndarray; expected a list"),
    "a token twice": ({"tokens": ["a", "a"]}, "contains a token twice"),
    "a merge of unknown tokens": ({"merges": ["日 本"]}, "tokenizer.ggml.merges: .*out of vocabulary"),
    "a merge that is no pair": ({"merges": ["a b c"]}, "tokenizer.ggml.merges: "),
    "types for other tokens": ({"token_type": np.ones(3)}, "token_type has 3 entries for 800 tokens"),
    "an end token out of range": ({"eos_token_id": 800}, "the id of the eos token is 800; expected 0 to 799"),
}


def test_a_word_of_llama_3_that_is_a_token_is_kept_whole():
    """In Llama 3, "abc" is a token that no sequence of merges reaches."""
    entries = {"ggml.model": "gpt2", "ggml.tokens": ["a", "b", "c", "ab", "abc"], "ggml.merges": ["a b"]}
    kept, cut = (
        tokenizer_from_gguf({f"tokenizer.{key}": value for key, value in (entries | {"ggml.pre": pre}).items()})
        for pre in ("llama-bpe", "qwen2")
    )
    assert kept.encode("abc").tolist() == [4] and cut.encode("abc").tolist() == [3, 2]


def test_numbers_are_cut_into_three_digits_in_llama_3_and_into_one_in_qwen(trained):
    _, backend = trained
    pieces = {}
    for pre in ("llama-bpe", "qwen2"):
        tokenizer = tokenizer_from_gguf(metadata_for(("gpt-2", backend), pre=pre))
        pieces[pre] = [word for word, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str("12345")]
    assert pieces == {"llama-bpe": ["123", "45"], "qwen2": ["1", "2", "3", "4", "5"]}


def test_sentencepiece_merges_the_best_score_first_and_writes_unknown_characters_as_bytes():
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "ab", "ba", "▁a"]
    scores = np.array([0.0] * 259 + [-9, -9, -9, -1, -2, -3], np.float32)
    kinds = np.array([2, 3, 3] + [6] * 256 + [1] * 6)
    metadata = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds, "bos_token_id": 1}
    tokenizer = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    ids = {token: i for i, token in enumerate(tokens)}
    assert tokenizer.encode("aba").tolist() == [ids[t] for t in ("<s>", "▁", "ab", "a")]
    assert tokenizer.encode("é").tolist() == [ids[t] for t in ("<s>", "▁", "<0xC3>", "<0xA9>")]
    assert tokenizer.decode(tokenizer.encode("ab é a")[1:]) == "ab é a"


@pytest.mark.parametrize("case", WRONG)
def test_a_gguf_tokenizer_that_cannot_be_rebuilt_is_refused(case, trained):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        tokenizer_from_gguf(metadata_for(trained, **changes))


FILES = {
    "a tokenizer.json cut off": ("tokenizer.json", lambda text: text[:-9], "tokenizer.json: "),
    "a tokenizer.json of something else": ("tokenizer.json", lambda text: "[1, 2]", "tokenizer.json: "),
    "an unknown token": ("tokenizer_config.json", lambda text: '{"eos_token": "<no>"}', "eos_token '<no>' is not in"),
    "a special token that is not a string": (
        "tokenizer_config.json",
        lambda text: '{"eos_token": 3}',
        "eos_token 3 is not in",
    ),
    "half a surrogate pair as a token": (
        "tokenizer_config.json",
        lambda text: '{"bos_token": "\\ud800"}',
        r"tokenizer_config\.json: the bos_token '\\ud800' is not in",
    ),
    "a template that is not a string": (
        "tokenizer_config.json",
        lambda text: '{"chat_template": 3}',
        "chat_template is a int; expected a string",
    ),
    "settings that are not an object": (
        "tokenizer_config.json",
        lambda text: "[]",
        "tokenizer_config.json: got a JSON list, expected an object",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_files_are_named(case, trained, tmp_path):
    file, edit, message = FILES[case]
    tokenizer_from_gguf(metadata_for(trained)).save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        tokenizer_from_folder(tmp_path)


def test_an_error_of_a_template_names_the_file_of_the_template(trained, tmp_path):
    tokenizer_from_gguf(metadata_for(trained)).save_pretrained(tmp_path)
    config, jinja = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    config.write_text('{"chat_template": "{{ 1 // 0 }}"}')
    with pytest.raises(ValueError, match=rf"template in {re.escape(str(config))} raised an error: integer division"):
        tokenizer_from_folder(tmp_path).apply_chat_template(CHAT)
    jinja.write_text("{% for %}")
    with pytest.raises(ValueError, match=rf"template in {re.escape(str(jinja))} raised an error: "):
        tokenizer_from_folder(tmp_path).apply_chat_template(CHAT)
    jinja.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=rf"{re.escape(str(jinja))} is damaged or not UTF-8"):
        tokenizer_from_folder(tmp_path)


def test_templates_are_found_where_hugging_face_puts_them(trained, tmp_path):
    tokenizer_from_gguf(metadata_for(trained)).save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    config.write_text(json.dumps({"chat_template": named, "eos_token": {"content": "<|im_end|>"}}))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert (tokenizer.chat_template, tokenizer.eos_token_id) == ("yes", 2)
    (tmp_path / "chat_template.jinja").write_text("a file of its own")
    assert tokenizer_from_folder(tmp_path).chat_template == "a file of its own"
