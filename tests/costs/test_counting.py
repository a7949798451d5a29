"""Parameter counts: each expected number was published, or computed by PEFT."""

from dataclasses import fields, replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_np import BottleneckConfig, LoraConfig, PrefixTuningConfig, VeraConfig, costs, get_peft_model
from lora_np.costs.planned import PlannedModel
from lora_np.nn import Linear, Module
from lora_np.nn.targets import is_target, select_targets
from lora_np.peft import AdaptedLinear, registry
from lora_np.peft.lora.method import LoraMethod
from lora_np.studies.counting import parameters

QUERY_VALUE = ["q_proj", "v_proj"]


def lora(r, target_modules):
    return LoraConfig(r=r, target_modules=target_modules)


# Hu et al. 2021, and plain arithmetic: one 4096 × 4096 matrix
ONE_MATRIX = [(4, 32_768, 512), (8, 65_536, 256), (16, 131_072, 128)]

# Hu et al. 2021, tables 4 and 5 and appendix D.4: 4.7M, 18M, 37.7M and 302M for GPT-3 175B; r_v = 2 adapts W_v only
GPT3 = [(2, ["v_proj"], 4_718_592), (4, QUERY_VALUE, 18_874_368), (8, QUERY_VALUE, 37_748_736)]
GPT3 += [(64, QUERY_VALUE, 301_989_888)]

# peft 0.21.2 and transformers 5.23 on torch's meta device
TOTALS = {
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "gpt-2": 124_439_808,
    "smollm2-135m": 134_515_008,
}
LORA = [
    ("llama-2-7b", 8, QUERY_VALUE, 4_194_304),
    ("llama-2-13b", 8, QUERY_VALUE, 6_553_600),
    ("llama-2-70b", 8, QUERY_VALUE, 16_384_000),
    ("llama-3-8b", 8, QUERY_VALUE, 3_407_872),
    ("gpt-2", 8, ["c_attn"], 294_912),
    ("llama-2-7b", 16, "all-linear", 39_976_960),
    ("llama-2-13b", 16, "all-linear", 62_586_880),
    ("llama-2-70b", 16, "all-linear", 207_093_760),
    ("llama-3-8b", 16, "all-linear", 41_943_040),
    ("smollm2-135m", 8, "all-linear", 2_442_240),
]


@pytest.mark.parametrize(("r", "trainable", "factor"), ONE_MATRIX)
def test_lora_on_one_matrix_trains_r_times_in_plus_out(r, trainable, factor):
    assert costs.lora_parameters(4096, 4096, r) == trainable
    assert 4096 * 4096 == 16_777_216 == factor * trainable


def test_rank_16_is_less_than_one_percent_of_a_4096_matrix():
    share = costs.lora_parameters(4096, 4096, 16) / 4096**2
    assert f"{100 * share:.2f} %" == "0.78 %"


def test_a_wide_matrix_counts_both_its_sides():
    message = "A is (r, in) and B is (out, r): a square matrix would hide a count of 2·r·in"
    assert costs.lora_parameters(out=7, in_=3, r=2) == 2 * 3 + 7 * 2, message


@pytest.mark.parametrize(("r", "target_modules", "trainable"), GPT3)
def test_gpt3_counts_are_those_of_the_lora_paper(r, target_modules, trainable):
    assert costs.count("gpt-3-175b", lora(r, target_modules)).trainable == trainable


def test_adapting_all_four_attention_matrices_of_gpt3_costs_37_7_million_at_rank_4():
    # Section D.4 of the LoRA paper gives 37.7M for r = 2, but its table 5 gives 18M, which agrees with this count.
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert costs.count("gpt-3-175b", lora(2, attention)).trainable == 18_874_368
    assert costs.count("gpt-3-175b", lora(4, attention)).trainable == 37_748_736


def test_gpt3_has_175_billion_parameters():
    # Brown et al. 2020, table 2.1; we count 174,604,259,328
    assert round(costs.MODELS["gpt-3-175b"].parameters / 1e9) == 175


@pytest.mark.parametrize(("model", "total"), TOTALS.items())
def test_model_totals_are_exact(model, total):
    assert costs.MODELS[model].parameters == total
    assert costs.count(model) == costs.ParameterCount(base=total, total=total, trainable=total)


@pytest.mark.parametrize(("model", "r", "target_modules", "trainable"), LORA)
def test_lora_counts_are_exact(model, r, target_modules, trainable):
    assert costs.count(model, lora(r, target_modules)).trainable == trainable


def test_prefix_tuning_trains_a_key_and_a_value_for_each_virtual_token_and_layer():
    llama = costs.MODELS["llama-2-7b"]
    assert costs.prefix_parameters(20, llama.layers, llama.kv_heads, llama.head_dim) == 5_242_880  # PEFT


def test_on_paper_a_prefix_and_adapters_are_added_up_by_layer():
    assert costs.count("llama-2-7b", PrefixTuningConfig(num_virtual_tokens=20)).trainable == 5_242_880  # PEFT
    each = costs.houlsby_parameters(d=4096, m=64)
    assert costs.count("llama-2-7b", BottleneckConfig(bottleneck_size=64)).trainable == 2 * 32 * each
    assert costs.count("llama-2-7b", BottleneckConfig(bottleneck_size=64, placement="pfeiffer")).trainable == 32 * each
    assert costs.count("llama-3-8b", PrefixTuningConfig(num_virtual_tokens=20)).trainable == 5_242_880 / 4, (
        "8 heads of 32"
    )


def test_a_houlsby_adapter_is_two_matrices_and_two_biases():
    down, up = np.zeros((64, 768)), np.zeros((768, 64))
    down_bias, up_bias = np.zeros(64), np.zeros(768)
    expected = down.size + up.size + down_bias.size + up_bias.size
    assert costs.houlsby_parameters(d=768, m=64) == expected == 2 * 64 * 768 + 768 + 64


def test_a_count_reads_like_peft():
    # peft 0.21.2, print_trainable_parameters, Llama-2-7B
    line = "trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622"
    counted = costs.count("llama-2-7b", lora(8, QUERY_VALUE))
    assert str(counted) == line
    assert counted.frozen == counted.base == TOTALS["llama-2-7b"]
    assert counted.reduction == pytest.approx(6_738_415_616 / 4_194_304)


# --------------------------------------------------------------------------------------------------------------------
# A live model


def live_model():
    """A module with one frozen matrix."""
    return Linear(np.zeros((5, 3))).freeze()


def test_a_live_model_is_counted_array_by_array():
    model = AdaptedLinear(live_model())
    model.adapters["default"] = LoraMethod().draw(LoraConfig(r=2), model.base_layer, np.random.default_rng(0), None)
    assert costs.count(model) == costs.ParameterCount(base=15, total=31, trainable=16)


def test_a_model_that_trains_nothing_has_share_zero_and_no_finite_reduction():
    counted = costs.count(live_model())
    assert counted.share == 0
    assert counted.reduction == float("inf")


@pytest.mark.parametrize("config", [LoraConfig(r=8), LoraConfig(target_modules="all-linear"), PrefixTuningConfig()])
def test_a_live_model_takes_no_configuration(config):
    with pytest.raises(ValueError, match=r"counted without further settings; call get_peft_model\(model, config\)"):
        costs.count(live_model(), config)


def test_what_is_no_model_cannot_be_counted():
    with pytest.raises(TypeError, match="got int"):
        costs.count(7)
    with pytest.raises(ValueError, match="no parameters"):
        costs.count(Module())


# --------------------------------------------------------------------------------------------------------------------
# Targets

NAMES = [f"model.layers.{i}.self_attn.{leaf}" for i in range(12) for leaf in ("q_proj", "v_proj")] + ["lm_head"]


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        (["q_proj"], 12),
        ("q_proj", 12),
        (("self_attn.q_proj", "v_proj"), 24),
        (["model.layers.3.self_attn.q_proj"], 1),
        (["lm_head"], 1),
        ("all-linear", 24),
        (r".*\.[qv]_proj", 24),
        (r".*\.1\..*_proj", 2),
    ],
)
def test_targets_are_suffixes_patterns_or_all_linear(target_modules, expected):
    assert len(select_targets(NAMES, target_modules)) == expected


def test_a_suffix_is_whole_path_components():
    assert not is_target("mlp.gate_up_proj", ["up_proj"]), "the target up_proj must not match gate_up_proj"
    assert not is_target("layers.11.q_proj", ["1.q_proj"]), "the target 1.q_proj must not match layer 11"


def test_a_pattern_must_match_the_whole_name():
    assert not is_target("layers.0.q_proj", r"q_pro[j]"), "PEFT uses re.fullmatch, so a pattern must start with .*"


def test_targets_keep_the_models_order():
    assert select_targets(["b", "a"], ["a", "b"]) == ["b", "a"]


@pytest.mark.parametrize("target_modules", [["q_proj", "q_prj"], "q_prj", ["all-linear"], r".*_prj"])
def test_a_target_that_matches_nothing_is_an_error_that_lists_what_exists(target_modules):
    with pytest.raises(ValueError, match=r"matches no linear layer; .* q_proj, v_proj, lm_head\.") as error:
        select_targets(NAMES, target_modules)
    wrong = target_modules if isinstance(target_modules, str) else target_modules[-1]
    assert repr(wrong) in str(error.value), "the message must contain the wrong entry"


def test_an_empty_target_list_and_a_broken_pattern_are_errors():
    with pytest.raises(ValueError, match="target_modules is empty"):
        select_targets(NAMES, [])
    with pytest.raises(ValueError, match="not a valid regular expression"):
        select_targets(NAMES, "(q_proj")


# --------------------------------------------------------------------------------------------------------------------
# Bad input, the report, the study


@pytest.mark.parametrize("r", [0, -1, 1.5, "8", True])
def test_a_rank_below_one_or_not_whole_is_an_error(r):
    with pytest.raises((ValueError, TypeError), match=r"r = .*; the rank (must be at least 1|is a whole number)"):
        costs.lora_parameters(4096, 4096, r)
    with pytest.raises((ValueError, TypeError), match=r"r = .*; the rank (must be at least 1|is a whole number)"):
        costs.count("llama-2-7b", lora(r, QUERY_VALUE))


def test_a_size_of_numpy_counts_as_pythons_to_a_number_that_json_takes():
    for config in (
        LoraConfig(r=np.int64(8)),
        LoraConfig(rank_pattern={"q_proj": np.int64(4)}),
        VeraConfig(r=np.int32(16)),
        PrefixTuningConfig(num_virtual_tokens=np.int32(20)),
        PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=np.int64(512)),
        BottleneckConfig(bottleneck_size=np.int64(64)),
    ):
        sizes = {f.name: int(x) for f in fields(config) if isinstance(x := getattr(config, f.name), np.integer)}
        assert costs.count("llama-2-7b", config) == costs.count("llama-2-7b", replace(config, **sizes))
        assert type(costs.count("llama-2-7b", config).trainable) is int
        assert type(costs.count("llama-2-7b", config).total) is int


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"'llama-9'; use one of gpt-2, .*gpt-3-175b"):
        costs.count("llama-9", lora(8, QUERY_VALUE))
    with pytest.raises(ValueError, match=r"'q_proj' matches no linear layer; .* c_attn, c_proj, c_fc, lm_head"):
        costs.count("gpt-2", lora(8, QUERY_VALUE))


def test_a_method_that_adds_nothing_to_an_architecture_is_an_error_and_no_count():
    from_elsewhere = replace(costs.MODELS["gpt-2"], linears=(costs.LinearShape("mixer.out", 768, 768),))
    with pytest.raises(ValueError, match="does not define the cost of a training step, or it adapts no layer"):
        costs.count(from_elsewhere, BottleneckConfig())


CALLS = {  # arguments that are not a configuration, or calls of earlier versions
    "a rank": (8,),
    "a rank and targets": (8, QUERY_VALUE),
    "a method": ("lora",),
    "a dict": ({"r": 8},),
    "a class": (LoraConfig,),
}


@pytest.mark.parametrize("function", ["count", "flops", "memory", "model_structure", "report"])
@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS.keys())
def test_a_call_without_a_configuration_is_shown_how_to_call(function, arguments):
    step = {"batch": 1, "seq": 8} if function in ("flops", "memory") else {}
    named = ", batch=…, seq=…" if step else ""
    with pytest.raises(TypeError) as error:
        getattr(costs, function)("llama-2-7b", *arguments, **step)
    assert str(error.value).endswith(f'for example costs.{function}("llama-2-7b", ln.LoraConfig(r=8){named})')
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'target_modules'; for example"):
        getattr(costs, function)("llama-2-7b", target_modules="all-linear", **step)


def test_a_number_that_two_layers_share_is_counted_once_and_one_that_they_do_not_twice():
    """All layers share VeRA's A and B. In LoRA-FA each layer has its own frozen A, with its own rank."""
    llama, layers = "llama-2-7b", 32
    vera = costs.count(llama, VeraConfig(r=16, target_modules=QUERY_VALUE))
    assert vera.total - vera.base - vera.trainable == 16 * (4096 + 4096)
    frozen_A = costs.count(llama, LoraConfig(r=8, freeze_A=True, rank_pattern={"v_proj": 2}))
    assert frozen_A.total - frozen_A.base - frozen_A.trainable == layers * (8 + 2) * 4096
    assert frozen_A.trainable == layers * (8 + 2) * 4096, "B"


def test_the_report_adds_up():
    text = costs.report("llama-2-7b", lora(16, "all-linear"))
    each_kind = [int(line.split()[-1].replace(",", "")) for line in text.splitlines() if "_proj" in line]
    assert len(each_kind) == 7
    assert sum(each_kind) == 39_976_960
    assert "adapter file: 159.9 MB in float32, 80.0 MB in 16 bit" in text


IN_FILES = {method.peft_type: method.example for method in registry.METHODS} | {
    "PiSSA": LoraConfig(r=2, init_lora_weights="pissa", rank_pattern={"v_proj": 1}),
    "prefix with an MLP": PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True),
}


@pytest.mark.parametrize("method", IN_FILES)
def test_the_adapter_file_on_paper_has_as_many_numbers_as_the_saved_one(method, make_model, tmp_path):
    paper = costs.llama("paper", 2, hidden=16, heads=4, kv_heads=2, ffn=20, vocabulary=11)
    get_peft_model(make_model(np.float32, hidden_size=16), IN_FILES[method]).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert PlannedModel(paper, IN_FILES[method]).numbers_in_file() == sum(x.size for x in saved.values())


REPORTED = {
    "LoRA of rank 8 and LoRA of rank 2": LoraConfig(r=8, rank_pattern={"v_proj": 2}),
    "LoRA-FA of rank 8": LoraConfig(r=8, freeze_A=True),
    "DoRA of rank 4": LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "VeRA of rank 256": VeraConfig(),
    "Pfeiffer adapters of size 256": BottleneckConfig(placement="pfeiffer"),
    "a prefix of 20 virtual tokens": PrefixTuningConfig(),
    "a prefix of 20 virtual tokens, trained through an MLP of width 512": PrefixTuningConfig(
        prefix_projection=True, encoder_hidden_size=512
    ),
}


@pytest.mark.parametrize("title", REPORTED)
def test_the_report_of_each_method_names_it_and_its_rows_add_up(title):
    first, _, head, *lines = costs.report("llama-2-7b", REPORTED[title]).splitlines()
    assert first == f"llama-2-7b: 6,738,415,616 parameters, {title}"
    rows = lines[: next(i for i, line in enumerate(lines) if not line or line.startswith("also added"))]
    assert head.split()[0] == "module" and len(rows) > 0
    trained = sum(int(row.split()[-1].replace(",", "")) for row in rows)
    assert trained == costs.count("llama-2-7b", REPORTED[title]).trainable


def test_the_report_counts_only_the_layers_that_a_pattern_selects():
    text = costs.report("llama-2-7b", lora(8, r".*\.[0-3]\..*q_proj"))
    row = next(line for line in text.splitlines() if "q_proj" in line)
    assert row.split()[-3:] == ["4", "65,536", "262,144"]


def test_the_study_of_one_matrix_halves_its_factor_when_the_rank_doubles():
    rows = parameters.one_matrix().rows
    assert [row["factor"] for row in rows] == [2048, 1024, 512, 256, 128, 64, 32]
    assert all(row["full"] == 16_777_216 and row["share"] == 1 / row["factor"] for row in rows)


def test_the_study_of_whole_models_holds_each_model_twice_and_trains_under_four_percent():
    table = parameters.whole_models()
    assert [row["model"] for row in table.where(targets="all-linear")] == list(costs.MODELS)
    assert len(table.rows) == 2 * len(costs.MODELS)
    assert max(row["share"] for row in table.rows) < 0.04


# --------------------------------------------------------------------------------------------------------------------
# The peers


def peer_model(architecture):
    """Return the same model of transformers on the meta device, without allocated memory."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if architecture.name == "gpt-2":
        model_class, config = transformers.GPT2LMHeadModel, transformers.GPT2Config()
    else:
        model_class = transformers.LlamaForCausalLM
        config = transformers.LlamaConfig(
            num_hidden_layers=architecture.layers,
            hidden_size=architecture.hidden,
            num_attention_heads=architecture.heads,
            num_key_value_heads=architecture.kv_heads,
            intermediate_size=next(linear.out for linear in architecture.linears if "up_proj" in linear.name),
            vocab_size=architecture.vocabulary,
            tie_word_embeddings=architecture.tied,
        )
    with torch.device("meta"):
        return model_class(config)


@pytest.mark.oracle
@pytest.mark.parametrize("target_modules", ["all-linear", r".*\.(q_proj|v_proj|c_attn)"])
@pytest.mark.parametrize("name", [name for name in costs.MODELS if name != "gpt-3-175b"])
def test_lora_counts_are_those_of_peft(name, target_modules):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=8, target_modules=target_modules, task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt-2")
    model = peft.get_peft_model(peer_model(costs.MODELS[name]), config)
    counted = costs.count(name, lora(8, target_modules))
    assert (counted.trainable, counted.total) == model.get_nb_trainable_parameters()


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b"])
def test_prefix_counts_are_those_of_peft(name):
    peft = pytest.importorskip("peft")
    architecture = costs.MODELS[name]
    config = peft.PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM")
    trainable, _ = peft.get_peft_model(peer_model(architecture), config).get_nb_trainable_parameters()
    assert trainable == costs.prefix_parameters(20, architecture.layers, architecture.kv_heads, architecture.head_dim)
