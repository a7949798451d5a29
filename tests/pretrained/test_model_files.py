"""Tests of model files: shards, 16-bit weights and GGUF load correctly and only once in memory; others raise clear errors."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from gguf_files import CONFIG, gguf_name, interleaved, metadata_of, write, write_model
from on_device import DEVICE, assert_allclose, host
from safetensors.numpy import load_file, save_file

from lora_np import Transformer, TransformerConfig, load_model, ops, save_model
from lora_np.pretrained.llama_gguf import half_split, huggingface_name

TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 7))


@pytest.fixture
def model():
    """Return a random model in which a mistake in any weight changes the logits clearly."""
    model = Transformer.random(CONFIG, seed=3)
    rng = np.random.default_rng(3)
    for _, p in model.named_parameters():
        noise = rng.standard_normal(p.value.shape).astype(np.float32)
        p.value = 1 + 0.1 * noise if p.value.ndim == 1 else 5 * p.value
    return model.to("auto")


def arrays_of(model):
    return {name: host(x) for name, x in model.state_dict().items()}


def assert_same(back, model):
    assert back.config == model.config
    mine, others = arrays_of(back), arrays_of(model)
    assert mine.keys() == others.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], others[name], err_msg=name)


def write_folder(folder, model, arrays=None, **changes):
    """Write config.json, and model.safetensors with `arrays`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | changes))
    if arrays is not None:
        save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_shards(folder, model, edit=lambda weight_map: weight_map):
    """Write three shards and their index. `edit` changes the index."""
    write_folder(folder, model)
    arrays = arrays_of(model)
    files = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(arrays)}
    for file in set(files.values()):
        save_file({name: x for name, x in arrays.items() if files[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": edit(files)}))
    return folder


# -------------------------------------------------------------------------------------------------- Hugging Face's folders


def test_shards_are_one_model(model, tmp_path):
    assert_same(load_model(write_shards(tmp_path / "shards", model)), model)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_comes_as_the_numbers_it_holds(kind, model, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = np.dtype(getattr(ml_dtypes, kind, kind))
    arrays = {name: x.astype(half) for name, x in arrays_of(model).items()}
    back = load_model(write_folder(tmp_path / "half", model, arrays), np.float64)
    for name, x in arrays_of(back).items():
        assert x.dtype == np.float64
        np.testing.assert_array_equal(x, arrays[name].astype(np.float64), err_msg=name)


def test_a_head_that_is_stored_though_tied_is_left_out_and_another_is_refused(model, tmp_path):
    arrays = arrays_of(model)
    tied = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"].copy()}
    folder = write_folder(tmp_path / "tied", model, tied, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_model(folder).state_dict()
    write_folder(folder, model, arrays, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_model(folder)


def test_the_rotary_frequencies_of_old_files_are_computed_and_not_read(model, tmp_path):
    arrays = arrays_of(model) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    assert_same(load_model(write_folder(tmp_path / "old", model, arrays)), model)


WRONG_SHARDS = {
    "a shard that is not there": (lambda m: dict.fromkeys(m, "gone.safetensors"), FileNotFoundError, "gone"),
    "an array in another shard": (
        lambda m: dict.fromkeys(m, next(iter(m.values()))),
        KeyError,
        "no shard contains .* does not list",
    ),
    "an array that no shard has": (
        lambda m: m | {"x": next(iter(m.values()))},
        KeyError,
        r"no shard contains \[\('x', 'model-",
    ),
    "an array that the index leaves out": (lambda m: dict(list(m.items())[1:]), KeyError, "embed_tokens"),
    "a shard elsewhere": (lambda m: dict.fromkeys(m, "../model.safetensors"), ValueError, "a file in the same folder"),
    "a shard that is not a name": (lambda m: dict.fromkeys(m, 3), ValueError, "names 3"),
    "no map": (lambda m: [], ValueError, "expected a weight_map"),
}


@pytest.mark.parametrize("case", WRONG_SHARDS)
def test_an_index_that_is_wrong_is_refused(case, model, tmp_path):
    edit, error, message = WRONG_SHARDS[case]
    with pytest.raises(error, match=message):
        load_model(write_shards(tmp_path / "shards", model, edit))


def test_a_shard_cut_off_is_refused_by_name(model, tmp_path):
    folder = write_shards(tmp_path / "shards", model)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is damaged"):
        load_model(folder)


def test_a_tensor_that_is_wrong_is_named_with_its_shard(model, tmp_path):
    folder = write_shards(tmp_path / "shards", model)
    name = "model.layers.0.mlp.up_proj.weight"
    shard = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    sound = load_file(shard)
    for x, message in (
        (sound[name] * np.nan, "contains NaN"),
        (sound[name].T.copy(), "has shape"),
        (sound[name] > 0, "bool"),
    ):
        save_file(sound | {name: x}, shard, {"format": "pt"})
        with pytest.raises(ValueError, match=rf"index\.json \(with config\.json\): {name} in {shard.name} .*{message}"):
            load_model(folder)


def test_a_pickle_is_never_opened(model, tmp_path):
    folder = write_folder(tmp_path / "old", model)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        load_model(folder)


ABSURD = {
    "vocab_size": (2**50, r"embed_tokens\.weight has shape \(40, 96\); expected \(1125899906842624, 96\)"),
    "hidden_size": (2**50, r"embed_tokens\.weight has shape"),
    "intermediate_size": (2**40, r"mlp\.gate_proj\.weight has shape \(160, 96\)"),
    "num_hidden_layers": (2**40, "num_hidden_layers = 1099511627776, but the file has only 21 arrays"),
    "num_attention_heads": (2**40, r"q_proj\.weight has shape"),
    "num_key_value_heads": (-(10**50), "num_key_value_heads = -1000"),
    "head_dim": (2**62, "a size in this configuration is too large for an array"),
    "max_position_embeddings": (4.5, "max_position_embeddings = 4.5; expected an integer"),
    "quantization_config": ({"quant_method": "gptq"}, "got quant_method 'gptq'"),
}


@pytest.mark.parametrize("key", ABSURD)
def test_a_claim_is_held_against_the_file_before_it_takes_memory(key, model, tmp_path):
    value, message = ABSURD[key]
    folder = write_folder(tmp_path / "model", model, arrays_of(model), **{key: value})
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"model.*{message}"):
        load_model(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_weights_that_are_integers_are_refused(model, tmp_path):
    arrays = arrays_of(model) | {"model.norm.weight": np.ones(96, np.int8)}
    with pytest.raises(ValueError, match=r"model\.norm\.weight has dtype int8"):
        load_model(write_folder(tmp_path / "model", model, arrays))


def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    model.model.norm.weight.value[3] = np.nan
    with pytest.raises(ValueError, match=r"model\.norm\.weight contains NaN or infinity"):
        load_model(write_folder(tmp_path / "model", model, arrays_of(model)))


# ----------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def large():
    """Return a model of 38 MB with 46 arrays, the largest of 3 MB, so that a second copy of the model is noticed."""
    return Transformer.random(
        replace(CONFIG, vocab_size=1000, hidden_size=512, intermediate_size=1536, num_hidden_layers=3, head_dim=128)
    )


@pytest.mark.skipif(DEVICE != "numpy", reason="tracemalloc sees the host's memory alone")
@pytest.mark.parametrize("kind", ["folder", "shards", "bfloat16", "F32.gguf", "Q4_0.gguf"])
def test_loading_never_holds_two_copies(kind, large, tmp_path):
    path = tmp_path / kind
    if kind == "folder":
        save_model(large, path)
    elif kind == "shards":
        write_shards(path, large)
    elif kind == "bfloat16":
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        write_folder(path, large, {name: x.astype(bfloat16) for name, x in arrays_of(large).items()})
    else:
        write_model(path, large, Type[kind.removesuffix(".gguf")])
    load_model(path)  # the first call imports modules
    tracemalloc.start()
    model = load_model(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sizes = [p.value.nbytes for _, p in model.named_parameters()]
    print(f"measured {peak / sum(sizes):.3f} of the model, whose largest array is {max(sizes) / sum(sizes):.3f} of it")
    assert sum(sizes) <= peak < sum(sizes) + max(sizes), (
        f"{peak:,} bytes at the peak for a model of {sum(sizes):,}: read the arrays one at a time"
    )


# ------------------------------------------------------------------------------------------------------------------- GGUF


def test_a_gguf_file_is_the_model_that_was_written(model, tmp_path):
    write_model(tmp_path / "model.gguf", model)
    back = load_model(tmp_path / "model.gguf")
    assert_same(back, model)
    assert_allclose(back.forward(TOKENS)[0], model.forward(TOKENS)[0], rtol=0, atol=0)
    assert all(p.trainable and host(p.value).flags.c_contiguous for _, p in back.named_parameters())


def test_embeddings_are_tied_where_the_output_is_absent(tmp_path):
    model = Transformer.random(replace(CONFIG, tie_word_embeddings=True)).to("auto")
    write_model(tmp_path / "model.gguf", model)
    assert_same(load_model(tmp_path / "model.gguf"), model)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights_are_what_their_bytes_say(kind, model, tmp_path):
    write_model(tmp_path / "model.gguf", model, Type[kind])
    back, arrays = arrays_of(load_model(tmp_path / "model.gguf")), arrays_of(model)
    for name, x in arrays.items():
        # each row is quantised separately, so the order of the rows does not matter
        expected = x if x.ndim == 1 else dequantize(quantize(x, Type[kind]), Type[kind])
        np.testing.assert_array_equal(back[name], expected, err_msg=name)
    error = max(np.linalg.norm(back[name] - x) / np.linalg.norm(x) for name, x in arrays.items())
    assert error < 0.15, "far from the weights: check the order of the rows of q and k"


def test_the_row_order_of_q_and_k_is_undone_and_undone_only_there(model, tmp_path):
    write_model(tmp_path / "model.gguf", model)
    with_order = arrays_of(load_model(tmp_path / "model.gguf"))
    q = arrays_of(model)["model.layers.0.self_attn.q_proj.weight"]
    assert not np.array_equal(interleaved(q, CONFIG.num_attention_heads), q), (
        "the order of the rows must matter in this test"
    )
    np.testing.assert_array_equal(with_order["model.layers.0.self_attn.q_proj.weight"], q)
    assert not np.array_equal(half_split(q, 1), half_split(q, CONFIG.num_attention_heads)), (
        "each head must be reordered separately"
    )


@pytest.mark.parametrize(("heads", "d"), [(1, 2), (1, 8), (3, 4), (4, 6), (2, 16)])
def test_half_split_and_interleaved_undo_each_other(heads, d):
    W = np.random.default_rng(1).standard_normal((heads * d, 5))
    np.testing.assert_array_equal(half_split(interleaved(W, heads), heads), W)
    np.testing.assert_array_equal(interleaved(half_split(W, heads), heads), W)


def test_interleaved_rotation_of_the_files_rows_is_our_rotation_in_another_order():
    """Check R_interleaved P = P R_half: rotate neighbouring features one pair at a time, and compare with ops.rotary_forward."""
    rng, d, positions = np.random.default_rng(2), 8, np.arange(5)
    W, x = rng.standard_normal((d, 6)), rng.standard_normal((5, 6))
    cos, sin = ops.rotary_tables(positions, d, 500.0, np.float64)
    ours, _ = ops.rotary_forward((x @ W.T)[None, None], cos, sin)  # (1, 1, position, d)
    theirs = x @ interleaved(W, 1).T  # with the rows of a GGUF file
    for m in positions:
        for i in range(d // 2):
            angle = m * 500.0 ** (-2 * i / d)
            a, b = theirs[m, 2 * i : 2 * i + 2].copy()
            theirs[m, 2 * i] = a * np.cos(angle) - b * np.sin(angle)
            theirs[m, 2 * i + 1] = a * np.sin(angle) + b * np.cos(angle)
    np.testing.assert_allclose(theirs, interleaved(ours[0, 0].T, 1).T, atol=1e-14)


def test_every_name_has_its_counterpart_and_no_other(model):
    for name in arrays_of(model):
        assert huggingface_name(gguf_name(name), CONFIG) == name
    for stray in ("blk.0.attn_q.bias", "blk.x.attn_q.weight", "blk.0.token_embd.weight", "attn_q.weight", "rope", ""):
        ours = huggingface_name(stray, CONFIG)
        assert ours == stray or ours.endswith(".bias"), f"{stray} became {ours}"


WRONG_GGUF = {
    "another architecture": ({"architecture": "bloom"}, "general.architecture is 'bloom'; expected one of llama"),
    "no size": ({"llama__embedding_length": None}, "llama.embedding_length is missing"),
    "a size that is a text": ({"llama__block_count": "2"}, "llama.block_count = '2'; expected one number of type int"),
    "a size for each layer": ({"llama__attention__head_count": [4, 4]}, "llama.attention.head_count = .*one number"),
    "no heads": ({"llama__attention__head_count": 0}, "head_count = 0; expected at least 1"),
    "heads that do not divide": ({"llama__attention__head_count_kv": 3}, "4 query heads cannot share 3"),
    "a scaled rotary embedding": ({"llama__rope__scaling__type": "yarn"}, "scaling.type is 'yarn'; expected 'none' or"),
    "half a rotary embedding": ({"llama__rope__dimension_count": 8}, "dimension_count = 8; expected the head size, 16"),
    "experts": ({"llama__expert_count": 8}, "mixtures of experts are not supported"),
    "2³¹ layers": ({"llama__block_count": 2**31}, "num_hidden_layers = 2147483648, but the file has only 21 arrays"),
    "2³² hidden features": ({"llama__feed_forward_length": 2**32 - 1}, r"gate_proj\.weight has shape \(160, 96\)"),
    "another vocabulary": (
        {"llama__vocab_size": 41},
        r"embed_tokens\.weight has shape \(40, 96\); expected \(41, 96\)",
    ),
}


@pytest.mark.parametrize("case", WRONG_GGUF)
def test_a_gguf_file_of_something_else_is_refused_by_name(case, model, tmp_path):
    changes, message = WRONG_GGUF[case]
    write_model(tmp_path / "model.gguf", model, **changes)
    with pytest.raises(ValueError, match=rf"model\.gguf: .*{message}"):
        load_model(tmp_path / "model.gguf")


def test_frequencies_that_are_not_llama_31s_are_refused(model, tmp_path):
    arrays = {gguf_name(name): x for name, x in arrays_of(model).items()} | {
        "rope_freqs.weight": np.linspace(1, 2, 8, dtype=np.float32)
    }
    write(tmp_path / "model.gguf", arrays, metadata_of(CONFIG))
    with pytest.raises(ValueError, match=r"rope_freqs\.weight is not the scaling of Llama 3\.1"):
        load_model(tmp_path / "model.gguf")


def test_an_array_that_is_missing_or_unknown_is_named(model, tmp_path):
    arrays = {gguf_name(name): x for name, x in arrays_of(model).items()}
    arrays["blk.0.attn_q.bias"] = np.zeros(64, np.float32)
    del arrays["blk.1.ffn_up.weight"]
    write(tmp_path / "model.gguf", arrays, metadata_of(CONFIG))
    with pytest.raises(KeyError, match=r"missing \['model\.layers\.1\.mlp\.up_proj\.weight'\]; unexpected \['model"):
        load_model(tmp_path / "model.gguf")


def test_the_configuration_holds_the_decimals_that_were_meant():
    """GGUF stores 1e-5 as the float32 9.999999747378752e-06. Without rounding, the float64 model would differ."""
    from lora_np.pretrained.llama_gguf import _shortest

    for meant in (1e-5, 1e-6, 10000.0, 1e5, 0.1, 5e5):
        assert _shortest(float(np.float32(meant))) == meant


def test_a_config_without_a_head_size_or_a_vocabulary_size_takes_them_from_the_rest(model, tmp_path):
    write_model(
        tmp_path / "model.gguf",
        Transformer.random(replace(CONFIG, head_dim=24)),
        **dict.fromkeys(("llama__vocab_size", "llama__attention__key_length", "llama__attention__value_length")),
    )
    config = load_model(tmp_path / "model.gguf").config
    assert (config.vocab_size, config.head_dim) == (40, 24)
    assert isinstance(config, TransformerConfig)
