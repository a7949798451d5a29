"""A text ends where transformers ends it: at each token that the saved generation_config.json or config.json names."""

from __future__ import annotations

import pytest
from oracle_models import UNTIED, torch, transformers
from tokenizer_cases import byte_level_bpe

import lora_np as ln

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def folder(tmp_path):
    """A random Llama and a tokenizer, saved by transformers."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**UNTIED | {"vocab_size": 800, "max_position_embeddings": 64}, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe("gpt-2"), eos_token="<|im_end|>")
    saved.save_pretrained(tmp_path)
    return tmp_path


def theirs(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False)
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("where", ["a number", "a list", "config.json"])
def test_generation_ends_at_the_token_of_transformers(at, where, folder):
    model, ids = ln.load_model(folder, device="numpy"), ln.load_tokenizer(folder).encode("def main():").tolist()
    free = ln.generate(model, [ids], 12)[0]
    stop = free[at]
    if where == "config.json":
        (folder / "generation_config.json").unlink()
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"eos_token_id": 2', f'"eos_token_id": {stop}'))
    else:
        transformers.GenerationConfig(eos_token_id=stop if where == "a number" else [2, stop]).save_pretrained(folder)
    stops = ln.load_tokenizer(folder).stop_token_ids
    assert set(stops) == {2, stop}
    found = ln.generate(model, [ids], 12, stop_tokens=stops)[0]
    expected = theirs(folder, ids)
    assert expected == [*found, stop], "transformers keeps the stop token at the end"
    assert found == free[: free.index(stop)]
