"""`python -m lora_np generate`: what it prints and when, the prompts that the model gets, and one clear line for wrong input.

The model of these tests has a known answer: it continues a fixed chain of tokens and then ends its turn.
"""

from __future__ import annotations

import io
import itertools
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import lora_np as ln
from lora_np.__main__ import main
from lora_np.commands import generate as command
from lora_np.files import ByteTokenizer, TextStream, VocabularyTokenizer
from lora_np.files.tokenizer import CHATML
from lora_np.transformer.generation import Sampling

tokenizers = pytest.importorskip("tokenizers")

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ANSWER = "Hi😀"
TEXTS = ["The capital", "naïve Ångström", "日本語", "😀 👩‍👩‍👧 🇫🇷 e\u0301", "a\ufffdb\x00\n", "\ufffd\ufffd"]


def a_byte_a_token():
    """A vocabulary of the 256 bytes and three special tokens; each character of an emoji is four tokens."""
    words = [END, START, STOP, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([END, START, STOP])
    return VocabularyTokenizer(backend, {"eos": 2}, CHATML)


def llama_2s():
    """A vocabulary like Llama 2's: a token contains the space before it, except at the start of a text; "日" is three bytes."""
    words = ["<unk>", "▁Paris", "▁is", "▁", *(f"<0x{i:02X}>" for i in range(256))]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True)
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return VocabularyTokenizer(backend, {}, None), {word: i for i, word in enumerate(words)}


# --------------------------------------------------------------------------------------------------- tokens as they come


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), a_byte_a_token()], ids=["bytes", "vocabulary"])
def test_a_stream_gives_the_text_and_never_half_a_character(tokenizer, text):
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in tokenizer.encode(text)] + [stream.end()]
    text = text.replace("\x00", "") if isinstance(tokenizer, ByteTokenizer) else text  # there it is a special token
    assert "".join(pieces) == text
    for n in range(len(pieces)):
        assert text.startswith("".join(pieces[:n])), "what was given stays"


def test_an_emoji_of_four_tokens_is_given_with_its_last_token():
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer)
    assert [stream.add(token) for token in tokenizer.encode("x😀y")] == ["x", "", "", "", "😀", "y"]


def test_an_incomplete_character_is_held_back_until_the_end():
    stream = TextStream(ByteTokenizer())
    assert [stream.add(byte) for byte in "é日".encode()[:-1]] == ["", "é", "", ""]
    assert (stream.end(), stream.end()) == ("\ufffd", "")


def test_invalid_bytes_are_given_with_the_next_character():
    stream = TextStream(ByteTokenizer())
    assert [stream.add(byte) for byte in b"\xff\xffA"] == ["", "", "\ufffd\ufffdA"]


def test_special_tokens_give_no_text():
    stream = TextStream(a_byte_a_token())
    assert [stream.add(token) for token in (0, *a_byte_a_token().encode("ab"), 2)] == ["", "a", "b", ""]


def test_a_token_after_a_prompt_keeps_its_space():
    tokenizer, ids = llama_2s()
    alone, after = TextStream(tokenizer), TextStream(tokenizer, after=[ids["▁is"]])
    assert [s.add(ids["▁Paris"]) for s in (alone, after)] == ["Paris", " Paris"]


def test_the_bytes_of_one_character_are_given_together():
    """This tokenizer decodes an incomplete run of bytes to nothing, so that "日" disappears when the next character begins."""
    tokenizer, ids = llama_2s()
    stream = TextStream(tokenizer, after=[ids["▁is"]])
    pieces = [stream.add(ids[f"<0x{byte:02X}>"]) for byte in "日本".encode()]
    assert pieces == ["", "", "日", "", "", "本"]


# ----------------------------------------------------------------------------------------------------------- what it prints


@pytest.fixture
def folder(tmp_path):
    """A saved model that answers "Hi😀" and ends its turn, with its tokenizer and a chat template."""
    tokenizer = a_byte_a_token()
    save_parrot(tmp_path / "parrot", [*tokenizer.encode("\n" + ANSWER), tokenizer.eos_token_id], tokenizer.vocab_size)
    tokenizer.save_pretrained(tmp_path / "parrot")
    return str(tmp_path / "parrot")


def save_parrot(folder, chain, size):
    """Save a Transformer that predicts the next token of `chain`: its blocks add nothing, and its head is a table."""
    config = ln.TransformerConfig(
        vocab_size=size,
        hidden_size=size + size % 2,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        max_position_embeddings=400,
    )
    model = ln.Transformer.random(config)
    for name, p in model.named_parameters():
        if p.value.ndim == 2:
            p.value[...] = 0
        if name == "model.embed_tokens.weight":
            p.value[...] = np.eye(size, config.hidden_size)
        if name == "lm_head.weight":
            p.value[chain[1:], chain[:-1]] = 1
    ln.save_model(model, folder)


@pytest.fixture
def asked(monkeypatch):
    """The prompts of each call of `generate`, as text."""
    prompts, generate, tokenizer = [], ln.transformer.generate, a_byte_a_token()

    def record(model, ids, *args, **settings):
        prompts.append([tokenizer.decode(row) for row in ids])
        return generate(model, ids, *args, **settings)

    monkeypatch.setattr(ln.transformer, "generate", record)
    return prompts


def run(*arguments):
    assert main(["generate", *map(str, arguments)]) == 0


def refused(capsys, *arguments):
    """Run a command that must fail; return its one line of error."""
    assert main(["generate", *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), "nothing on stdout, and an error is one line"
    return err


def test_a_model_with_a_chat_template_answers_the_prompt_and_stops_at_the_end_of_its_turn(folder, asked, capsys):
    run("--model", folder, "Who is there?")
    assert capsys.readouterr().out == ANSWER + "\n"
    assert asked == [[f"{START}user\nWho is there?{STOP}\n{START}assistant\n"]]


def test_the_stop_tokens_of_generation_config_end_an_answer_too(tmp_path, capsys):
    tokenizer = a_byte_a_token()
    save_parrot(tmp_path, [*tokenizer.encode("\n" + ANSWER), 0], tokenizer.vocab_size)  # ends with 0; eos is 2
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    run("--model", tmp_path, "--max-new-tokens", 40, "Who is there?")
    out, err = capsys.readouterr()
    assert (out, "6 tokens in" in err) == (ANSWER + "\n", True), "generation went on after the stop token"


def test_a_system_message_comes_first(folder, asked):
    run("--model", folder, "--system", "Be brief.", "Who?")
    assert asked == [[f"{START}system\nBe brief.{STOP}\n{START}user\nWho?{STOP}\n{START}assistant\n"]]


def test_raw_continues_the_plain_text(folder, asked, capsys):
    run("--model", folder, "--raw", "I said H")
    assert capsys.readouterr().out == "I said Hi😀\n"
    assert asked == [["I said H"]]


def test_tiny_is_raw_by_default_and_gives_the_text_of_generate(capsys):
    prompt = "The function returns"
    run("--model", "tiny", "--max-new-tokens", 12, prompt)
    tokenizer = ln.load_tokenizer("tiny")
    (new,) = ln.generate(ln.load_model("tiny"), [tokenizer.encode(prompt).tolist()], 12)
    assert capsys.readouterr().out == prompt + tokenizer.decode(new) + "\n"


def test_tiny_answers_with_chat(capsys):
    run("--model", "tiny", "--chat", "--max-new-tokens", 12, "Hello")
    tokenizer = ln.load_tokenizer("tiny")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    (new,) = ln.generate(ln.load_model("tiny"), [prompt.tolist()], 12)
    assert capsys.readouterr().out == tokenizer.decode(new) + "\n"


def test_each_piece_is_shown_before_the_next_token_is_computed(folder, monkeypatch):
    events, choose = [], Sampling.next_token

    def chosen(*arguments):
        events.append("token")
        return choose(*arguments)

    monkeypatch.setattr(Sampling, "next_token", chosen)
    monkeypatch.setattr(command, "_show", lambda text: events.append(text) if text else None)
    run("--model", folder, "Who?")
    assert events == ["token", "H", "token", "i", *["token"] * 4, "😀", "token"], "the last one ends the turn"


def test_several_prompts_are_one_batch_and_each_is_printed_with_its_continuation(folder, asked, capsys):
    run("--model", folder, "--raw", "I said H", "i")
    assert capsys.readouterr().out == "I said Hi😀\n\ni😀\n"
    run("--model", folder, "One?", "And two?")
    assert capsys.readouterr().out == f">>> One?\n{ANSWER}\n\n>>> And two?\n{ANSWER}\n"
    assert [len(prompts) for prompts in asked] == [2, 2]


def test_the_settings_of_sampling_reach_generate(capsys):
    settings = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 3}
    run("--model", "tiny", "--max-new-tokens", 20, "--temperature=1.5", "--top-k=40", "--top-p=0.9", "--seed=3", "The ")
    tokenizer = ln.load_tokenizer("tiny")
    (new,) = ln.generate(ln.load_model("tiny"), [tokenizer.encode("The ").tolist()], 20, **settings)
    assert capsys.readouterr().out == "The " + tokenizer.decode(new) + "\n"


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each generation takes one second."""
    monkeypatch.setattr(command, "time", SimpleNamespace(perf_counter=itertools.count().__next__))


def test_the_speed_is_on_stderr_so_that_stdout_is_the_text_alone(folder, clock, capsys):
    run("--model", folder, "One?", "Two?")
    assert capsys.readouterr().err == "12 tokens in 1.0 s, 12.0 tokens/s\n"


def test_a_prompt_may_be_piped_in_as_utf_8(folder, asked, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(" é\n\nH\n\n".encode()), encoding="latin-1"))
    run("--model", folder, "--raw")
    assert asked == [[" é\n\nH\n"]], "without the newline that echo puts after it"


def test_without_a_limit_the_text_ends_at_the_models_limit(tmp_path, capsys):
    save_parrot(tmp_path / "endless", [104, 97, 104], 256)  # bytes, so that it says "haha…"
    run("--model", tmp_path / "endless", "x" * 299 + "h")
    assert capsys.readouterr().out == "x" * 299 + "ha" * 50 + "h\n", "400 positions in all"
    run("--model", tmp_path / "endless", "h")
    assert len(capsys.readouterr().out) == 1 + command.MAX_NEW_TOKENS + 1
    run("--model", tmp_path / "endless", "h", "x" * 299 + "h")
    assert len(capsys.readouterr().out) == 1 + 100 + 2 + 300 + 100 + 1, "as many for each as the longest leaves"


def test_a_character_that_is_cut_by_the_limit_is_shown_as_incomplete(folder, capsys):
    run("--model", folder, "--max-new-tokens", 4, "Who?")
    assert capsys.readouterr().out == "Hi\ufffd\n"


# ------------------------------------------------------------------------------------------------------- a conversation


class Terminal(io.StringIO):
    """A stdin that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def typed(monkeypatch):
    """`typed(*lines)` types these lines at `>>> `, then Ctrl-D."""

    def script(*lines):
        lines = iter(lines)

        def answer(prompt):
            print(prompt, end="")
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", answer)

    return script


def test_in_a_terminal_each_answer_knows_the_conversation_so_far(folder, asked, typed, clock, capsys):
    typed("One?", "And two?", " ", "never read")
    run("--model", folder, "--system", "Be brief.")
    first = f"{START}system\nBe brief.{STOP}\n{START}user\nOne?{STOP}\n{START}assistant\n"
    second = f"{first}{ANSWER}{STOP}\n{START}user\nAnd two?{STOP}\n{START}assistant\n"
    assert asked == [[first], [second]]
    out, err = capsys.readouterr()
    assert out == f">>> {ANSWER}\n\n>>> {ANSWER}\n\n>>> "
    assert err == "12 tokens in 2.0 s, 6.0 tokens/s\n", "of both answers"


def test_the_end_of_input_ends_the_conversation(folder, typed, capsys):
    typed("One?")
    run("--model", folder)
    assert capsys.readouterr().out == f">>> {ANSWER}\n\n>>> \n"


def test_raw_in_a_terminal_continues_each_line_alone(folder, asked, typed, capsys):
    typed(" I said H", "i", "")
    run("--model", folder, "--raw")
    assert asked == [[" I said H"], ["i"]]
    assert capsys.readouterr().out == ">>>  I said Hi😀\n\n>>> i😀\n\n>>> "


# ------------------------------------------------------------------------------------------------------------- an adapter


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter for tiny that is not the identity, and the PeftModel from which it was saved."""
    config = ln.LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = ln.get_peft_model(ln.load_model("tiny"), config, seed=1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_with_an_adapter_the_text_is_that_of_the_adapted_model(adapter, capsys):
    folder, model = adapter
    tokenizer = ln.load_tokenizer("tiny")
    (new,) = ln.generate(model, [tokenizer.encode("The ").tolist()], 12)
    spoken = []
    for options in ([], ["--adapter", folder]):
        run("--model", "tiny", "--max-new-tokens", 12, *options, "The ")
        spoken.append(capsys.readouterr().out)
    assert spoken[1] == "The " + tokenizer.decode(new, skip_special_tokens=True) + "\n" != spoken[0]


def test_the_adapter_is_merged_before_generation(adapter, monkeypatch):
    models, generate = [], ln.transformer.generate
    monkeypatch.setattr(
        ln.transformer, "generate", lambda model, *a, **k: models.append(model) or generate(model, *a, **k)
    )
    run("--model", "tiny", "--adapter", adapter[0], "--max-new-tokens", 1, "x")
    assert isinstance(models[0], ln.Transformer)
    assert not any(isinstance(m, ln.AdaptedLinear) for _, m in models[0].named_modules()), "no bypass is left in it"


@pytest.mark.parametrize(
    "config",
    [ln.PrefixTuningConfig(num_virtual_tokens=4), ln.BottleneckConfig(init_weights=False)],
    ids=["prefix", "bottleneck"],
)
def test_an_adapter_that_changes_no_weights_generates_unmerged(tmp_path, capsys, config):
    model = ln.get_peft_model(ln.load_model("tiny"), config, seed=1)
    model.save_pretrained(tmp_path)
    tokenizer = ln.load_tokenizer("tiny")
    (new,) = ln.generate(model, [tokenizer.encode("The ").tolist()], 12)
    run("--model", "tiny", "--max-new-tokens", 12, "--adapter", tmp_path, "The ")
    assert capsys.readouterr().out == "The " + tokenizer.decode(new, skip_special_tokens=True) + "\n"


def test_over_a_4_bit_base_the_adapter_is_not_merged(adapter, capsys):
    quantised = ln.quantize_model(ln.load_model("tiny"), "nf4")
    model, tokenizer = ln.PeftModel.from_pretrained(quantised, adapter[0]), ln.load_tokenizer("tiny")
    (new,) = ln.generate(model, [tokenizer.encode("The ").tolist()], 12)
    run("--model", "tiny", "--adapter", adapter[0], "--quantize", "nf4", "--max-new-tokens", 12, "The ")
    assert capsys.readouterr().out == "The " + tokenizer.decode(new, skip_special_tokens=True) + "\n"


def test_a_quantised_model_is_not_quantised_again(adapter, tmp_path, capsys):
    ln.save_model(ln.quantize_model(ln.load_model("tiny")), tmp_path / "four bits")
    run("--model", tmp_path / "four bits", "--adapter", adapter[0], "--max-new-tokens", 1, "x")
    capsys.readouterr()
    assert "is already quantised" in refused(capsys, "--model", tmp_path / "four bits", "--quantize", "nf4", "x")


def test_an_adapter_of_another_model_is_refused(adapter, folder, capsys):
    said = refused(capsys, "--model", folder, "--adapter", adapter[0], "x")
    assert f"this adapter does not fit {folder}: {adapter[0] / 'adapter_model.safetensors'}: unexpected tensor " in said


def test_a_folder_without_an_adapter_is_named(tmp_path, capsys):
    said = refused(capsys, "--model", "tiny", "--adapter", tmp_path, "x")
    assert said.startswith(f"lora_np generate: no adapter in {tmp_path}: ")


# -------------------------------------------------------------------------------------------------------------- bad input


WRONG = {
    "a negative temperature": (["--temperature=-1"], "temperature = -1.0; expected 0 (greedy) or more"),
    "a temperature that is none": (["--temperature=nan"], "temperature = nan; expected 0 (greedy) or more"),
    "no token to draw from": (["--temperature=1", "--top-k=0"], "top_k = 0; expected at least 1"),
    "a probability over 1": (["--temperature=1", "--top-p=1.5"], "top_p = 1.5; expected 0 < top_p ≤ 1"),
    "a cut where nothing is drawn": (["--top-k=5"], "add --temperature 1"),
    "no new tokens": (["--max-new-tokens=0"], "--max-new-tokens 0; expected at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_option_out_of_range_is_refused_before_a_model_is_loaded(case, capsys):
    options, message = WRONG[case]
    assert message in refused(capsys, "--model", "no-such-model", *options, "x")


def test_an_unknown_model_is_answered_with_the_known_models(capsys):
    assert "no model 'no-such-model': the package contains ['tiny']" in refused(capsys, "--model", "no-such-model", "x")


def test_a_prompt_longer_than_the_model_is_refused(folder, capsys):
    said = refused(capsys, "--model", folder, "x" * 500)
    assert re.search(r"a prompt of 5\d\d tokens and 1 new tokens; this model accepts 400 in total", said)


def test_a_system_message_without_a_conversation_is_refused(capsys):
    assert "add --chat" in refused(capsys, "--model", "tiny", "--system", "Be brief.", "x")


def test_a_conversation_without_a_template_is_refused(folder, tmp_path, capsys):
    tokenizer = a_byte_a_token()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    assert "no chat template" in refused(capsys, "--model", folder, "--chat", "x")
    run("--model", folder, "H")
    assert capsys.readouterr().out == "Hi😀\n", "without --chat such a model goes on with the text"


def test_an_empty_pipe_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "no prompt" in refused(capsys, "--model", "tiny")


def test_chat_and_raw_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--chat", "--raw", "x"])
    assert "--raw: not allowed with argument --chat" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the real model


@pytest.mark.smollm2
def test_smollm2_answers_a_question(capsys):
    run("What is the capital of France?")
    assert capsys.readouterr().out == "The capital of France is Paris.\n"
