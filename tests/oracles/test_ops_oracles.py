"""lora_np is what PyTorch, transformers and PEFT are: same names, same numbers, same gradients, same training.

"measured" beside a bound is the worst error seen when this was written (torch 2.13, transformers 5.23, peft 0.21.2);
`pytest tests/oracles/test_ops_oracles.py -rP` shows it again. The float64 bounds leave room for other machines' order of summation.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from oracle_models import (
    SHAPES,
    UNTIED,
    DoubleTorch,
    adapted_pair,
    assert_close,
    base_pair,
    gradients,
    largest_difference,
    modeling_llama,
    peft,
    random_batch,
    their_loss,
    torch,
    trainable_values,
    transformers,
)

import lora_np as ln
from lora_np import ops
from lora_np.nn.targets import select_targets
from lora_np.peft.placement import adaptable_layers

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]
F = torch.nn.functional
shapes = pytest.mark.parametrize("shape", SHAPES)

ALL_LINEAR = {"r": 3, "lora_alpha": 8, "target_modules": "all-linear"}
ADAPTERS = {
    "all linear, alpha > r": ALL_LINEAR,
    "all linear, alpha < r": {"r": 5, "lora_alpha": 2, "target_modules": "all-linear"},
    "q and v only": {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "rsLoRA": ALL_LINEAR | {"use_rslora": True},
    "a regular expression, upper layer only": {"r": 2, "lora_alpha": 5, "target_modules": r".*layers\.1\..*_proj"},
    "a regular expression, MLP only": {"r": 2, "lora_alpha": 5, "target_modules": r".*\.(gate|down)_proj"},
    "one layer by its full name": {"r": 2, "lora_alpha": 5, "target_modules": ["model.layers.0.self_attn.k_proj"]},
    "rank 1": {"r": 1, "lora_alpha": 16, "target_modules": ["o_proj", "up_proj"]},
}
adapters = pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS.keys())


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch):
    """See oracle_models: transformers' Llama without its three detours through float32."""
    monkeypatch.setattr(modeling_llama, "torch", DoubleTorch("torch"))


# --------------------------------------------------------------------------------------------------------------------
# Names


def shapes_of(model):
    """name → shape of every parameter, for either library."""
    return {name: tuple(getattr(p, "value", p).shape) for name, p in model.named_parameters()}


@shapes
def test_parameter_names_and_shapes_are_those_of_transformers(shape):
    ours, theirs = base_pair(SHAPES[shape])
    assert shapes_of(ours) == shapes_of(theirs), "a checkpoint of one would not fit the other"


@shapes
def test_state_dict_is_that_of_transformers_which_names_a_tied_head_twice(shape):
    ours, theirs = base_pair(SHAPES[shape])
    state = theirs.state_dict()
    if SHAPES[shape]["tie_word_embeddings"]:
        head = state.pop("lm_head.weight")
        assert head.data_ptr() == state["model.embed_tokens.weight"].data_ptr(), "tied means one array under two names"
    assert {n: x.shape for n, x in ours.state_dict().items()} == {n: tuple(x.shape) for n, x in state.items()}


@adapters
def test_adapter_names_and_shapes_are_those_of_peft(settings):
    ours, theirs = adapted_pair(UNTIED, settings)
    assert shapes_of(ours) == shapes_of(theirs), "an adapter of one would not load in the other"
    assert any(name.endswith(".lora_A.default.weight") for name in shapes_of(ours))


@adapters
def test_what_trains_is_what_peft_trains(settings):
    ours, theirs = adapted_pair(UNTIED, settings)
    assert trainable_values(ours).keys() == trainable_values(theirs).keys()


# --------------------------------------------------------------------------------------------------------------------
# Logits, loss and every gradient


def assert_same_loss(loss, their, bound):
    difference = abs(float(loss) - their.item())
    print(f"measured {difference:.1e} in loss; bound {bound:.0e}")
    assert difference <= bound, f"loss {loss} against {their.item()}: is it the mean over the counted tokens?"


def assert_same_forward(ours, theirs, tokens, targets):
    """Logits and loss to 1e-10."""
    logits, their_logits = ours.forward(tokens)[0], theirs(input_ids=torch.from_numpy(tokens)).logits
    lesson = "another forward: every gradient after it is that of another function"
    assert_close({"logits": logits}, {"logits": their_logits.detach().numpy()}, 1e-10, lesson)
    assert_same_loss(ours.loss(tokens, targets)[0], their_loss(theirs, tokens, targets), 1e-10)


def assert_same_gradients(ours, theirs, tokens, targets, rng=None):
    """Every gradient to 1e-10 of its norm, and none where the other has none."""
    loss, cache = ours.loss(tokens, targets, rng=rng)
    ours.backward(cache)
    their = their_loss(theirs, tokens, targets)
    their.backward()
    assert_same_loss(loss, their, 1e-10)
    assert_close(gradients(ours), gradients(theirs), 1e-10, "a gradient is not what autograd finds")


@shapes
def test_full_fine_tuning_has_transformers_logits_and_loss(shape):
    assert_same_forward(*base_pair(SHAPES[shape]), *random_batch(seed=2))  # measured 8e-16


@shapes
def test_full_fine_tuning_has_transformers_gradients(shape):
    assert_same_gradients(*base_pair(SHAPES[shape]), *random_batch(seed=2))  # measured 2e-15


PARTS = [
    "embed_tokens",
    r"norm\.weight",
    "layernorm",
    r"layers\.1\.mlp",
    r"layers\.0\.self_attn\.[kv]_proj",
    "lm_head|model.norm",
]


def train_only(ours, theirs, part):
    """Only the parameters whose name the pattern finds, in both models."""
    for name, p in ours.named_parameters():
        p.trainable = re.search(part, name) is not None
    for name, p in theirs.named_parameters():
        p.requires_grad = re.search(part, name) is not None


@pytest.mark.parametrize("part", PARTS)
def test_training_only_a_part_stops_the_backward_early_and_changes_no_gradient(part):
    ours, theirs = base_pair(UNTIED)
    train_only(ours, theirs, part)
    assert_same_gradients(ours, theirs, *random_batch(seed=3))


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "embed_tokens", r"layers\.0.*(layernorm|lora_B)"])
def test_gradients_pass_through_an_adapter_that_is_partly_or_wholly_frozen(part):
    ours, theirs = adapted_pair(UNTIED, ALL_LINEAR | {"target_modules": ["q_proj", "v_proj", "down_proj"]})
    train_only(ours, theirs, part)
    assert_same_gradients(ours, theirs, *random_batch(seed=3))


@adapters
def test_lora_has_pefts_logits_and_loss(settings):
    assert_same_forward(*adapted_pair(UNTIED, settings), *random_batch(seed=4))  # measured 3e-15


@adapters
def test_lora_has_pefts_gradients(settings):
    assert_same_gradients(*adapted_pair(UNTIED, settings), *random_batch(seed=4))  # measured 3e-14


@shapes
def test_lora_has_pefts_gradients_on_every_shape_of_model(shape):
    assert_same_gradients(*adapted_pair(SHAPES[shape], ALL_LINEAR), *random_batch(seed=5))  # measured 1.2e-13


def test_lora_on_the_output_head_has_pefts_gradients():
    settings = ALL_LINEAR | {"target_modules": ["lm_head", "q_proj"]}
    assert_same_gradients(*adapted_pair(UNTIED, settings), *random_batch(seed=5))


def test_gradients_of_two_batches_add_up_as_in_autograd():
    ours, theirs = adapted_pair(UNTIED, ALL_LINEAR)
    assert_same_gradients(ours, theirs, *random_batch(seed=6))
    assert_same_gradients(ours, theirs, *random_batch(seed=7, batch=2, time=5))


def test_with_the_adapter_disabled_the_logits_are_pefts():
    ours, theirs = adapted_pair(UNTIED, ALL_LINEAR)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert_same_forward(ours, theirs, *random_batch(seed=8))


@shapes
def test_one_token_and_one_row_are_no_special_case(shape):
    ours, theirs = adapted_pair(SHAPES[shape], {"r": 2, "lora_alpha": 5, "target_modules": ["v_proj", "down_proj"]})
    assert_same_gradients(ours, theirs, *random_batch(seed=9, batch=1, time=1, ignored=0))


def test_transformers_own_shift_of_the_labels_is_tokens_and_targets_one_apart():
    """transformers takes labels and shifts them; we take targets shifted already. It casts logits to float32 first."""
    ours, theirs = base_pair(UNTIED)
    text, _ = random_batch(seed=10, time=12)
    ids = torch.from_numpy(text)
    their = theirs(input_ids=ids, labels=ids).loss
    assert_same_loss(ours.loss(text[:, :-1], text[:, 1:])[0], their, 1e-6)  # measured 1.4e-7


def test_transformers_as_shipped_agrees_in_float32(monkeypatch):
    """Nothing patched here: what the float64 comparisons prove is true of the transformers that people use."""
    monkeypatch.setattr(modeling_llama, "torch", torch)
    ours, theirs = base_pair(UNTIED, dtype=np.float32)
    tokens, targets = random_batch(seed=11)
    loss, cache = ours.loss(tokens, targets)
    ours.backward(cache)
    their = their_loss(theirs, tokens, targets)
    their.backward()
    assert_same_loss(loss, their, 1e-5)  # measured 5e-7
    assert_close(gradients(ours), gradients(theirs), 1e-5, "float32 rounding does not explain this")  # measured 1.2e-6


# --------------------------------------------------------------------------------------------------------------------
# Dropout


class OurDropout(torch.nn.Module):
    """Dropout with the masks of `ops.dropout_forward`, drawn from one generator in the order of the calls."""

    def __init__(self, p, rng):
        super().__init__()
        self.p, self.rng = p, rng

    def forward(self, x):
        _, mask = ops.dropout_forward(np.ones(tuple(x.shape)), self.p, self.rng)
        return x * torch.from_numpy(mask != 0) / (1 - self.p)  # the scale is PyTorch's rule, not our mask's


@adapters
def test_with_the_same_dropout_masks_lora_has_pefts_gradients(settings):
    ours, theirs = adapted_pair(UNTIED, settings | {"lora_dropout": 0.4})
    rng = np.random.default_rng(12)
    for module in theirs.modules():
        if isinstance(getattr(module, "lora_dropout", None), torch.nn.ModuleDict):
            assert module.lora_dropout["default"].p == 0.4
            module.lora_dropout["default"] = OurDropout(0.4, rng)
    assert_same_gradients(ours, theirs, *random_batch(seed=13), rng=np.random.default_rng(12))  # measured 2e-14


def test_without_a_generator_dropout_is_off_as_in_pefts_eval_mode():
    ours, theirs = adapted_pair(UNTIED, ALL_LINEAR | {"lora_dropout": 0.4})
    assert_same_forward(ours, theirs.eval(), *random_batch(seed=13))


def test_dropout_keeps_as_many_and_scales_them_as_pytorch_does():
    x, p = np.ones((300, 300)), 0.3
    ours, _ = ops.dropout_forward(x, p, np.random.default_rng(14))
    theirs = F.dropout(torch.from_numpy(x), p).numpy()
    assert np.allclose(np.unique(ours), np.unique(theirs), rtol=1e-15), "a kept number is multiplied by 1/(1 − p)"
    deviation = np.sqrt(p * (1 - p) / x.size)
    assert abs((ours == 0).mean() - p) < 4 * deviation, "each number is dropped with probability p"


# --------------------------------------------------------------------------------------------------------------------
# Twenty steps

STEPS, ACCUMULATE, MAX_NORM, LR = 20, 2, 2.2, 3e-2
SCHEDULE = ln.WarmupCosine(STEPS, warmup=4, floor=0.1)


def train_with_torch(theirs, batches, optimizer):
    """The training loop as a PyTorch user writes it; returns the losses."""
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULE)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        together = batches[step * ACCUMULATE : (step + 1) * ACCUMULATE]
        counts = [int((targets != ln.ops.IGNORE_INDEX).sum()) for _, targets in together]
        # the mean over all counted tokens, as transformers weighs since 4.46
        parts = [their_loss(theirs, *batch) * (n / sum(counts)) for batch, n in zip(together, counts, strict=True)]
        for part in parts:
            part.backward()
        torch.nn.utils.clip_grad_norm_(trainable, MAX_NORM)
        optimizer.step()
        scheduler.step()
        losses.append(sum(part.item() for part in parts))
    return losses


def assert_same_training(ours, theirs, optimizer, their_optimizer):
    """Twenty steps with accumulation, clipping and a schedule; then every trainable parameter to 1e-8."""
    start = {name: x.copy() for name, x in trainable_values(ours).items()}
    batches = [random_batch(seed) for seed in range(100, 100 + STEPS * ACCUMULATE)]
    settings = {"schedule": SCHEDULE, "max_grad_norm": MAX_NORM, "accumulate": ACCUMULATE, "progress": False}
    history = ln.train(ours, batches, optimizer, STEPS, **settings)
    losses = train_with_torch(theirs, batches, their_optimizer)
    norms = history.column("grad_norm")
    assert min(norms) < MAX_NORM < max(norms), f"clipping must act on some steps and not on others; norms {norms}"
    mine = trainable_values(ours)
    assert all(largest_difference(mine[name], start[name]) > 1e-3 for name in mine), "a parameter hardly moved"
    assert_close(mine, trainable_values(theirs), 1e-8, "the paths part: look at the first step", largest_difference)
    assert np.allclose(history.column("loss"), losses, rtol=0, atol=1e-8)


TRAINED = {
    "LoRA": lambda: adapted_pair(UNTIED, ALL_LINEAR, B_is_zero=True),  # from B = 0, as a real run starts
    "rsLoRA on q and v, tied": lambda: adapted_pair(SHAPES["tied"], ADAPTERS["q and v only"] | {"use_rslora": True}),
    "full fine-tuning": lambda: base_pair(UNTIED),
    "full fine-tuning, tied": lambda: base_pair(SHAPES["wide heads, tied"]),
}
trained = pytest.mark.parametrize("what", TRAINED)


@trained
def test_twenty_steps_of_adamw_stay_with_torch(what):
    ours, theirs = TRAINED[what]()
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    settings = {"lr": LR, "betas": (0.8, 0.95), "weight_decay": 0.2}
    assert_same_training(ours, theirs, ln.AdamW(**settings), torch.optim.AdamW(trainable, **settings))  # measured 3e-14


@trained
def test_twenty_steps_of_sgd_with_momentum_stay_with_torch(what):
    ours, theirs = TRAINED[what]()
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    settings = {"lr": LR, "momentum": 0.9, "weight_decay": 0.2}
    assert_same_training(ours, theirs, ln.SGD(**settings), torch.optim.SGD(trainable, **settings))  # measured 4e-14


def test_adamw_defaults_are_those_of_torch():
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).defaults
    ours = ln.AdamW(lr=1e-3)
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert getattr(ours, name) == theirs[name], name


def test_warm_up_and_cosine_are_those_of_transformers_without_its_idle_first_step():
    """transformers starts at a rate of 0, so its first step changes nothing; we start one step into the warm-up."""
    steps, warmup = 30, 7
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, steps).lr_lambdas[0]
    ours = ln.WarmupCosine(steps, warmup)
    expected = [theirs(step + 1 if step < warmup else step) for step in range(steps)]
    assert [ours(step) for step in range(steps)] == pytest.approx(expected, abs=1e-15)


# --------------------------------------------------------------------------------------------------------------------
# Merging


@adapters
def test_merge_adapter_gives_pefts_weights_and_unmerge_takes_them_back(settings):
    ours, theirs = adapted_pair(UNTIED, settings)
    before = {name: p.value.copy() for name, p in ours.named_parameters()}
    ours.merge_adapter()
    theirs.merge_adapter()
    assert_close(
        {name: p.value for name, p in ours.named_parameters()},
        {name: p.detach().numpy() for name, p in theirs.named_parameters()},
        1e-10,  # measured 9e-16
        "ΔW is s·B A, added once, to the adapted layers only",
    )
    assert any((p.value != before[name]).any() for name, p in ours.named_parameters()), "merging changed nothing"
    ours.unmerge_adapter()
    assert_close({name: p.value for name, p in ours.named_parameters()}, before, 1e-10, "W + ΔW − ΔW is W")


@adapters
def test_merge_and_unload_gives_pefts_plain_model(settings):
    ours, theirs = adapted_pair(UNTIED, settings)
    plain, their_plain = ours.merge_and_unload(), theirs.merge_and_unload()
    assert type(plain) is ln.Transformer
    their_state = {name: x.numpy() for name, x in their_plain.state_dict().items()}
    assert_close(plain.state_dict(), their_state, 1e-10, "ΔW is s·B A, under the base's own names")
    assert_same_forward(plain, their_plain, *random_batch(seed=15))


# --------------------------------------------------------------------------------------------------------------------
# Initialisation


def factors(model, letter):
    """Every A (or B) of a fresh adapter, by layer, for either library."""
    return {name: x for name, x in trainable_values(model).items() if f".lora_{letter}." in name}


def fresh_pair(init):
    """Adapters as each library makes them, nothing shared, with some 25 000 numbers in A and in B."""
    settings = {"r": 32, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": init}
    torch.manual_seed(0)
    ours, theirs = base_pair(UNTIED | {"num_hidden_layers": 4})
    return ln.get_peft_model(ours, ln.LoraConfig(**settings)), peft.get_peft_model(theirs, peft.LoraConfig(**settings))


def kolmogorov_smirnov(x, y):
    """The largest gap between two samples' distribution functions; by chance over 1.95 once in a thousand times."""
    x, y = np.sort(x), np.sort(y)
    both = np.concatenate([x, y])
    gap = np.abs(np.searchsorted(x, both, "right") / x.size - np.searchsorted(y, both, "right") / y.size).max()
    return gap * np.sqrt(x.size * y.size / (x.size + y.size))


def assert_same_distribution(mine, others, scale):
    """Two sets of factors, each number times `scale(factor)`, look like one distribution."""
    assert mine.keys() == others.keys()
    x, y = (np.concatenate([(scale(a) * a).ravel() for a in factors.values()]) for factors in (mine, others))
    print(f"Kolmogorov–Smirnov {kolmogorov_smirnov(x, y):.2f} on {x.size} numbers, std {x.std():.4f} and {y.std():.4f}")
    assert kolmogorov_smirnov(x, y) < 1.95, f"std {x.std():.4f} against {y.std():.4f}: is the fan-in of A `in`, not r?"
    return x, y


def test_a_starts_uniform_in_one_over_root_in_and_b_at_zero_as_in_peft():
    ours, theirs = fresh_pair(True)
    for sample in assert_same_distribution(factors(ours, "A"), factors(theirs, "A"), lambda A: np.sqrt(A.shape[1])):
        assert 0.999 < np.abs(sample).max() <= 1 + 1e-6, "the bound is 1/√in; PEFT's numbers are rounded to float32"
    assert not any(B.any() for model in (ours, theirs) for B in factors(model, "B").values())


def test_gaussian_a_has_standard_deviation_one_over_r_as_in_peft():
    ours, theirs = fresh_pair("gaussian")
    for sample in assert_same_distribution(factors(ours, "A"), factors(theirs, "A"), lambda A: A.shape[0]):
        assert sample.std() == pytest.approx(1, abs=0.02)
    assert not any(B.any() for model in (ours, theirs) for B in factors(model, "B").values())


def test_without_lora_init_b_starts_uniform_in_one_over_root_r_as_in_peft():
    ours, theirs = fresh_pair(False)
    assert_same_distribution(factors(ours, "A"), factors(theirs, "A"), lambda A: np.sqrt(A.shape[1]))
    for sample in assert_same_distribution(factors(ours, "B"), factors(theirs, "B"), lambda B: np.sqrt(B.shape[1])):
        assert 0.999 < np.abs(sample).max() <= 1 + 1e-6, "the bound is 1/√r; PEFT's numbers are rounded to float32"


# --------------------------------------------------------------------------------------------------------------------
# Targets and counts

TARGETS = {
    "a list": ["q_proj", "v_proj"],
    "a list with one entry": ["o_proj"],
    "longer suffixes": ["self_attn.k_proj", "mlp.up_proj"],
    "a full name beside a suffix": ["model.layers.1.mlp.gate_proj", "q_proj"],
    "the head by name": ["lm_head", "down_proj"],
    "a regular expression": r".*\.layers\.[01]\.self_attn\.(q|o)_proj",
    "a regular expression for one layer": r"model\.layers\.1\..*proj",
    "a regular expression that finds the head": r".*(lm_head|up_proj)",
    "all linear layers": "all-linear",
}
target_modules = pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS.keys())


@target_modules
@shapes
def test_target_modules_means_the_layers_that_peft_chooses(shape, targets):
    ours, theirs = base_pair(SHAPES[shape])
    chosen = peft.get_peft_model(theirs, peft.LoraConfig(target_modules=targets)).base_model.targeted_module_names
    assert sorted(select_targets(list(adaptable_layers(ours)), targets)) == sorted(chosen)
    wrapped = ln.get_peft_model(ours, ln.LoraConfig(target_modules=targets)).lora_layers()
    assert len(wrapped) == len(chosen)


@pytest.mark.parametrize("targets", [["proj"], ["query"], r"q_proj.*", r"layers\.0\..*", r"model\.layers", "nothing"])
def test_what_matches_no_layer_is_refused_by_both(targets):
    ours, theirs = base_pair(UNTIED)
    with pytest.raises(ValueError):
        peft.get_peft_model(theirs, peft.LoraConfig(target_modules=targets))
    with pytest.raises(ValueError, match="q_proj, k_proj, v_proj"):
        ln.get_peft_model(ours, ln.LoraConfig(target_modules=targets))


def test_one_misspelt_entry_passes_in_peft_and_is_refused_here():
    ours, theirs = base_pair(UNTIED)
    peft.get_peft_model(theirs, peft.LoraConfig(target_modules=["q_proj", "v_porj"]))
    with pytest.raises(ValueError, match="v_porj"):
        ln.get_peft_model(ours, ln.LoraConfig(target_modules=["q_proj", "v_porj"]))


@adapters
@shapes
def test_print_trainable_parameters_prints_pefts_line(shape, settings, capsys):
    ours, theirs = adapted_pair(SHAPES[shape], settings)
    theirs.print_trainable_parameters()
    expected = capsys.readouterr().out
    ours.print_trainable_parameters()
    assert capsys.readouterr().out == expected


LLAMAS = [name for name, architecture in ln.costs.MODELS.items() if architecture.block == "model.layers.{}"]


def on_paper(architecture):
    """transformers' model of a published size, on the meta device: all shapes, no numbers."""
    linears = {linear.name: linear for linear in architecture.linears}
    config = transformers.LlamaConfig(
        vocab_size=architecture.vocabulary,
        hidden_size=architecture.hidden,
        intermediate_size=linears["mlp.gate_proj"].out,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        tie_word_embeddings=architecture.tied,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("name", LLAMAS)
def test_a_published_model_is_counted_as_peft_does(name, capsys):
    with torch.device("meta"):
        theirs = peft.get_peft_model(
            on_paper(ln.costs.MODELS[name]), peft.LoraConfig(r=16, target_modules="all-linear")
        )
    capsys.readouterr()
    theirs.print_trainable_parameters()
    assert f"{ln.costs.count(name, ln.LoraConfig(r=16, target_modules='all-linear'))}\n" == capsys.readouterr().out


def test_gpt_2_is_counted_as_peft_does(capsys):
    with torch.device("meta"):
        base = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        theirs = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True))
    capsys.readouterr()
    theirs.print_trainable_parameters()
    assert f"{ln.costs.count('gpt-2', ln.LoraConfig(r=8, target_modules=['c_attn']))}\n" == capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------------
# Files


@shapes
def test_transformers_reads_what_save_model_wrote(shape, tmp_path):
    ours, _ = base_pair(SHAPES[shape])
    ln.save_model(ours, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64)
    assert_same_forward(ours, theirs, *random_batch(seed=16))


@shapes
def test_load_model_reads_what_transformers_wrote(shape, tmp_path):
    _, theirs = base_pair(SHAPES[shape])
    theirs.save_pretrained(tmp_path)
    assert_same_forward(ln.load_model(tmp_path, dtype=np.float64), theirs, *random_batch(seed=16))


ELSEWHERE = {"rope_type": "yarn", "factor": 8.0}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])  # as transformers 4 wrote it, and as 5 does
def test_a_rotary_scaling_that_is_not_here_is_refused_rather_than_ignored(key):
    scaling = ELSEWHERE | {"original_max_position_embeddings": 16, "rope_theta": 500.0}
    with pytest.raises(ValueError, match="rope"):
        ln.TransformerConfig.from_dict(UNTIED | {key: scaling})


# --------------------------------------------------------------------------------------------------------------------
# The operations, one by one

RNG = np.random.default_rng(17)
IDS = RNG.integers(0, 5, (2, 7))  # with repeats, so that a row of the embedding collects several gradients
LABELS = np.where(RNG.random((3, 4)) < 0.3, ops.IGNORE_INDEX, RNG.integers(0, 6, (3, 4)))
POSITIONS, HEAD_DIM, THETA = np.arange(3, 8), 6, 100.0


def normal(*shape):
    return RNG.standard_normal(shape)


FROZEN = normal(4, 5)


def our_rotary(x):
    return ops.rotary_forward(x, *ops.rotary_tables(POSITIONS, HEAD_DIM, THETA, x.dtype))


def their_rotary(x):
    config = transformers.LlamaConfig(head_dim=HEAD_DIM, rope_theta=THETA, hidden_size=24, num_attention_heads=4)
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(x, torch.from_numpy(POSITIONS)[None])
    return modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)[0]


def their_attention_with_a_past(q, k, v):
    t, s = q.shape[-2], k.shape[-2]
    seen = torch.ones(t, s, dtype=torch.bool).tril(diagonal=s - t)  # query i sees keys 0 … s − t + i
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)


def without_bias(dy, cache):
    return ops.linear_backward(dy, cache)[:2]


# op → our forward, our backward, PyTorch's function, inputs
OPS = {
    "linear": (ops.linear_forward, without_bias, F.linear, [normal(2, 3, 5), normal(4, 5)]),
    "linear with bias": (ops.linear_forward, ops.linear_backward, F.linear, [normal(2, 3, 5), normal(4, 5), normal(4)]),
    "lora": (
        lambda x, A, B: ops.lora_forward(x, A, B, scaling=7 / 2),
        ops.lora_backward,
        lambda x, A, B: F.linear(x, 7 / 2 * B @ A),
        [normal(2, 3, 5), normal(2, 5), normal(4, 2)],
    ),
    "lora_linear": (
        lambda x, A, B: ops.lora_linear_forward(x, FROZEN.astype(x.dtype), A, B, scaling=7 / 2),
        ops.lora_linear_backward,
        lambda x, A, B: F.linear(x, torch.from_numpy(FROZEN).to(x.dtype) + 7 / 2 * B @ A),
        [normal(2, 3, 5), normal(2, 5), normal(4, 2)],
    ),
    "grouped_lora": (
        lambda x, A, B: ops.grouped_lora_forward(x, A, B, np.array([7 / 2, 0.3, 2.0], x.dtype)),
        ops.grouped_lora_backward,
        lambda x, A, B: torch.stack([F.linear(x[i], s * B[i] @ A[i]) for i, s in enumerate((7 / 2, 0.3, 2.0))]),
        [normal(3, 4, 5), normal(3, 2, 5), normal(3, 6, 2)],
    ),
    "embedding": (
        lambda E: ops.embedding_forward(IDS, E),
        ops.embedding_backward,
        lambda E: F.embedding(torch.from_numpy(IDS), E),
        [normal(5, 3)],
    ),
    "rms_norm": (
        lambda x, w: ops.rms_norm_forward(x, w, eps=0.1),
        ops.rms_norm_backward,
        lambda x, w: F.rms_norm(x, w.shape, w, eps=0.1),
        [normal(2, 3, 5), normal(5)],
    ),
    "rotary": (our_rotary, ops.rotary_backward, their_rotary, [normal(2, 4, 5, HEAD_DIM)]),
    "softmax": (ops.softmax_forward, ops.softmax_backward, lambda x: F.softmax(x, dim=-1), [normal(3, 5)]),
    "attention": (
        ops.attention_forward,
        ops.attention_backward,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        [normal(2, 6, 4, 3), normal(2, 2, 4, 3), normal(2, 2, 4, 3)],  # 3 query heads a key/value head
    ),
    "attention with a past": (
        ops.attention_forward,
        ops.attention_backward,
        their_attention_with_a_past,
        [normal(2, 4, 3, 5), normal(2, 2, 7, 5), normal(2, 2, 7, 5)],
    ),
    "silu": (ops.silu_forward, ops.silu_backward, F.silu, [normal(3, 5)]),
    "silu far out": (ops.silu_forward, ops.silu_backward, F.silu, [np.array([-900.0, -90, -20, 0, 20, 90, 900])]),
    "gelu": (ops.gelu_forward, ops.gelu_backward, lambda x: F.gelu(x, approximate="tanh"), [normal(3, 5)]),
    "swiglu": (ops.swiglu_forward, ops.swiglu_backward, lambda g, u: F.silu(g) * u, [normal(3, 5), normal(3, 5)]),
    "cross_entropy": (
        lambda z: ops.cross_entropy_forward(z, LABELS),
        ops.cross_entropy_backward,
        lambda z: F.cross_entropy(z.flatten(0, 1), torch.from_numpy(LABELS).flatten()),
        [normal(3, 4, 6)],
    ),
    "cross_entropy of large logits": (
        lambda z: ops.cross_entropy_forward(z, LABELS),
        ops.cross_entropy_backward,
        lambda z: F.cross_entropy(z.flatten(0, 1), torch.from_numpy(LABELS).flatten()),
        [1e4 * normal(3, 4, 6)],
    ),
}
OP_BOUNDS = {np.float64: 1e-12, np.float32: 1e-6}  # measured 4e-16 and 2e-7


@pytest.mark.parametrize("dtype", OP_BOUNDS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("op", OPS)
def test_op_and_its_gradients_are_those_of_pytorch(op, dtype, monkeypatch):
    if dtype == np.float32:
        monkeypatch.setattr(modeling_llama, "torch", torch)
    forward, backward, function, arrays = OPS[op]
    arrays = [x.astype(dtype) for x in arrays]
    tensors = [torch.from_numpy(x.copy()).requires_grad_() for x in arrays]
    y, cache = forward(*arrays)
    their_y = function(*tensors)
    dy = np.asarray(RNG.standard_normal(y.shape)).astype(dtype)
    their_y.backward(torch.from_numpy(dy))
    grads = backward(dy, cache)
    mine = dict(enumerate(grads if isinstance(grads, tuple) else (grads,)))
    assert_close({"y": np.asarray(y)}, {"y": their_y.detach().numpy()}, OP_BOUNDS[dtype], f"{op}: another forward")
    assert_close(mine, dict(enumerate(t.grad.numpy() for t in tensors)), OP_BOUNDS[dtype], f"{op}: another gradient")
