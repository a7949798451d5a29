"""A proof that cannot fail proves nothing: each wrong version of a backward pass below is caught by the test that it names.

A mutant is one edit of a function's source. It is compiled and put in the place of the function's code, wherever that is
imported, for the length of one test; then the named test must fail.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from by_path import by_path
from mutants import Mutant, mutated

from lora_np import AdamW, ops
from lora_np.nn import Parameter
from lora_np.nn import layers as nn
from lora_np.peft import combination, merging, mixed, prefix
from lora_np.peft import model as peft_model
from lora_np.peft.adapted_linear import AdaptedLinear
from lora_np.peft.adapter import Bypass
from lora_np.peft.bottleneck import BottleneckAdapter, BottleneckMethod
from lora_np.peft.ia3 import IA3Adapter, IA3Method
from lora_np.peft.lora import layer as lora_layer
from lora_np.peft.lora import pissa
from lora_np.peft.lora.dora import DoraAdapter
from lora_np.peft.lora.layer import LoraAdapter
from lora_np.peft.lora.method import LoraMethod
from lora_np.peft.prefix import PrefixEncoder, PrefixMethod
from lora_np.peft.vera import VeraAdapter, VeraMethod
from lora_np.quantization import code_books
from lora_np.quantization import four_bits as quantization
from lora_np.serve.cache import BatchCache, BatchLayerCache
from lora_np.studies.low_rank import spectra, subspaces
from lora_np.training import optim
from lora_np.training.subspace import SparseProjection, SubspaceModel
from lora_np.transformer import head_loss
from lora_np.transformer.cache import LayerCache
from lora_np.transformer.decoder import Attention, Block
from lora_np.transformer.generation import Sampling, read_in_chunks
from lora_np.transformer.model import KeyValueCache

test_bottleneck = by_path("peft/test_bottleneck.py")
test_family = by_path("peft/test_family.py")
test_head_loss = by_path("transformer/test_head_loss.py")
test_lora = by_path("proofs/test_lora.py")
test_merging = by_path("peft/test_merging.py")
test_methods = by_path("peft/test_methods.py")
test_generate = by_path("transformer/test_generate.py")
test_mixed_batches = by_path("peft/test_mixed_batches.py")
test_ops = by_path("proofs/test_ops.py")
test_prefix = by_path("peft/test_prefix.py")
test_quantize = by_path("quantization/test_quantize.py")
test_serve_engine = by_path("serve/test_serve_engine.py")
test_spectra = by_path("studies/test_spectra.py")
test_subspace = by_path("training/test_subspace.py")
test_transformer = by_path("proofs/test_transformer.py")

EXACT = test_ops.test_backward_agrees_with_the_complex_step_to_1e_12
MODEL = test_transformer.test_the_whole_model_agrees_with_the_complex_step_to_1e_12
IN_BLOCKS = test_head_loss.test_loss_and_gradients_are_those_of_all_logits_at_once
MIXED_FAMILY = test_mixed_batches.test_gradients_of_dora_and_vera_in_a_mixed_batch_agree_with_the_complex_step
MIXED = test_mixed_batches.test_gradients_through_a_mixed_batch_agree_with_the_complex_step_to_1e_12
LORA = test_lora.test_lora_on_the_whole_model_agrees_with_the_complex_step_to_1e_12

ALL_METHODS = test_methods.test_its_gradients_agree_with_the_complex_step_to_1e_12

SUM = test_merging.test_cat_is_the_weighted_sum_exactly
CROSS = test_merging.test_linear_adds_factors_and_so_adds_the_cross_terms
ALONE = test_merging.test_one_adapter_alone_and_whole_is_itself_times_its_weight
TAIL = test_merging.test_the_error_of_svd_is_the_discarded_singular_tail
DARE = test_merging.test_dare_keeps_the_expectation_and_draws_for_each_number
TIES = test_merging.test_ties_takes_the_mean_of_those_that_agree_with_the_elected_sign
DORA = test_family.test_dora_with_its_true_norm_agrees_with_the_complex_step_to_1e_12
NORM = test_family.test_the_norm_of_v_is_found_without_v
MERGED_DORA = test_family.test_merged_dora_is_unmerged_dora_and_comes_back
LEFT = test_family.test_what_pissa_leaves_has_the_tail_of_the_singular_values
SAVED_PISSA = test_family.test_a_saved_pissa_is_a_lora_of_twice_the_rank_on_the_base_as_it_was
VERA_SHARED = test_family.test_vera_shares_its_factors_and_trains_r_plus_out_a_layer

REPORT = test_merging.test_the_report_is_the_error_of_the_change_that_the_layers_have

TRANSPOSE = test_subspace.test_the_backward_is_the_transpose_to_1e_12
SPARSE = {"kind": SparseProjection, "D": 1000, "d": 37}

PREFIX = test_prefix.test_a_prefix_agrees_with_the_complex_step_to_1e_12
PLAIN, PROJECTED = {"settings": test_prefix.PLAIN}, {"settings": test_prefix.PROJECTED}
NARROW = test_bottleneck.test_bottlenecks_agree_with_the_complex_step_to_1e_12
HOUSE = {"placement": "houlsby", "non_linearity": "gelu"}


def op(function: Callable, right: str, wrong: str, case: str) -> Mutant:
    return Mutant(function, right, wrong, EXACT, {"case": case})


def blocks(function, right, wrong, seed=1) -> Mutant:
    return Mutant(function, right, wrong, IN_BLOCKS, {"model": "untied", "ignored": 5, "seed": seed})


MUTANTS = {
    # LoRA
    "no scaling in the forward": op(ops.lora_forward, "h *= scaling", "pass", "lora"),
    "no scaling in dA and dx": op(ops.lora_backward, "dh *= scaling", "pass", "lora"),
    "scaling twice in dB": op(ops.lora_backward, "dB = dy_rows.T @ h", "dB = scaling * dy_rows.T @ h", "lora"),
    "dA and dx through B upside down": op(ops.lora_backward, "dh = dy_rows @ B", "dh = dy_rows @ B[::-1]", "lora"),
    "dB from the tokens in reverse": op(ops.lora_backward, "dB = dy_rows.T @ h", "dB = dy_rows.T @ h[::-1]", "lora"),
    "no dx through the bypass": op(ops.lora_linear_backward, "dx += dx_bypass", "pass", "lora_linear"),
    "no dx through the frozen path": op(ops.lora_linear_backward, "dx += dx_bypass", "dx = dx_bypass", "lora_linear"),
    "a fresh dropout mask in the backward": Mutant(
        Bypass.row_backward,
        "ops.dropout_backward(dx, mask)",
        "ops.dropout_backward(dx, mask[::-1])",
        LORA,
        {"settings": {"lora_dropout": 0.3}},
    ),
    "dropout without rescaling": Mutant(
        ops.dropout_forward,
        "mask *= 1 / (1 - p)",
        "pass",
        test_ops.test_dropout_keeps_the_expectation_and_draws_a_mask_for_each_number,
        {},
    ),
    "one dropout mask for each feature": Mutant(
        ops.dropout_forward,
        "rng.random(x.shape, dtype=np.float32)",
        "np.broadcast_to(rng.random(x.shape[-1:], dtype=np.float32), x.shape)",
        test_ops.test_dropout_keeps_the_expectation_and_draws_a_mask_for_each_number,
        {},
    ),
    "A's fan-in taken as r": Mutant(
        lora_layer.draw_factors,
        "1 / math.sqrt(fan_in)",
        "1 / math.sqrt(r)",
        test_lora.test_A_starts_uniform_with_the_fan_in_of_its_input_and_B_at_zero,
        {},
    ),
    "merging twice": Mutant(
        AdaptedLinear.merge, "if self.merged:", "if False:", test_lora.test_merging_twice_changes_nothing_more, {}
    ),
    # DoRA
    "the cross term of the norm forgotten": Mutant(ops.row_norm_forward, "P += C", "pass", NORM, {}),
    "the scaling forgotten in the norm": Mutant(ops.row_norm_forward, "P *= scaling", "pass", NORM, {}),
    "one length for all of W": Mutant(ops.row_norm_forward, '"oi,oi->o"', '"oi,oi->"', NORM, {}),
    "the norm of W alone": Mutant(ops.row_norm_forward, "+ scaling *", "+ 0 *", NORM, {}),
    "the scaling forgotten in the norm's gradient": op(
        ops.row_norm_backward, "(scaling * (dn / n))", "(dn / n)", "row_norm"
    ),
    "the norm's dA without W": op(ops.row_norm_backward, "dA = eB.T @ W", "dA = 0 * eB.T @ W", "row_norm"),
    "the norm's dA of W alone": op(ops.row_norm_backward, "dA += scaling *", "scaling *", "row_norm"),
    "dn with the other sign": op(ops.dora_backward, "-dm * g", "dm * g", "dora"),
    "dm without its norm": op(ops.dora_backward, "dm /= n", "pass", "dora"),
    "the bypass's dy not stretched": op(ops.dora_backward, "lora_backward(du,", "lora_backward(dy,", "dora"),
    "a true norm that is detached": Mutant(
        DoraAdapter.prepare, 'if self.config.dora_norm == "detached":', "if True:", DORA, {"settings": {}}
    ),
    "the norm's gradient for A alone": Mutant(
        DoraAdapter.row_backward, "dB += dB_norm", "pass", DORA, {"settings": {}}
    ),
    "a detached norm that is not": Mutant(
        DoraAdapter.prepare,
        'if self.config.dora_norm == "detached":',
        "if False:",
        test_family.test_detached_dora_agrees_with_the_complex_step_of_the_function_whose_norm_is_held,
        {"settings": {}},
    ),
    "the frozen path dropped as well": Mutant(
        DoraAdapter.row_backward, "du -= dz", "pass", DORA, {"settings": {"lora_dropout": 0.3}}
    ),
    "the base not stretched": Mutant(
        DoraAdapter.delta_weight,
        "* (W + self.scaled_product(m.dtype)) - W",
        "* self.scaled_product(m.dtype)",
        MERGED_DORA,
        {"settings": {}},
    ),
    "the magnitude beside W rather than V": Mutant(
        DoraAdapter.delta_weight,
        "(W + self.scaled_product(m.dtype))",
        "W + self.scaled_product(m.dtype)",
        MERGED_DORA,
        {"settings": {}},
    ),
    "subtracted where W was kept": Mutant(
        AdaptedLinear.unmerge,
        "W[...] = self.frozen_weight()",
        "W[...] = W - (W - self.frozen_weight())",
        MERGED_DORA,
        {"settings": {}},
    ),
    "merged one after the other": Mutant(
        AdaptedLinear.merge,
        "W += delta",
        "W += self.delta_weight(names[0])\n        for name in names[1:]:\n            W += self.delta_weight(name)",
        test_family.test_vera_and_dora_merge_into_the_same_weight,
        {},
    ),
    # PiSSA, LoRA-FA, LoRA+
    "a base that PiSSA did not reduce": Mutant(
        pissa.subtract_from_base,
        "W -= adapter.scaled_product(W.dtype)",
        "pass",
        test_family.test_pissa_at_the_start_is_the_base_to_1e_12,
        {"settings": {}},
    ),
    "rows as long as the sum of the whole and its principal part": Mutant(
        LoraMethod.draw,
        "* config.use_dora",
        "* 0",
        test_family.test_pissa_at_the_start_is_the_base_to_1e_12,
        {"settings": {"use_dora": True}},
    ),
    "singular values without the scaling": Mutant(
        pissa.principal_factors, "sigma[:r] / scaling", "sigma[:r]", LEFT, {}
    ),
    "the smallest singular vectors": Mutant(
        pissa.principal_factors, "Vt[:r], U[:, :r] * root", "Vt[-r:], U[:, -r:] * root", LEFT, {}
    ),
    "PiSSA saved as if it stood on the base": Mutant(
        pissa.PissaCorrection.convert_to_lora, "-self.B", "0 * self.B", SAVED_PISSA, {"settings": {}}
    ),
    "half the scaling at twice the rank": Mutant(
        pissa.converted_config, "factor * config.lora_alpha", "config.lora_alpha", SAVED_PISSA, {"settings": {}}
    ),
    "LoRA-FA that keeps x": Mutant(
        LoraAdapter.delta_forward,
        "self.lora_A.trainable",
        "True",
        test_family.test_lora_fa_keeps_n_r_numbers_in_place_of_n_in,
        {},
    ),
    "LoRA-FA that trains A": Mutant(
        LoraAdapter.set_trainable,
        " and name not in self.frozen",
        "",
        test_family.test_lora_fa_trains_b_alone_and_agrees_with_the_complex_step_to_1e_12,
        {},
    ),
    "the fast rate for A too": Mutant(
        AdamW.lr_of,
        'if f".{part}." in f".{name}."',
        'if "lora_" in name',
        test_family.test_lora_plus_is_a_learning_rate_of_its_own_for_b,
        {"make": AdamW},
    ),
    "weight decay at the slow rate": Mutant(
        AdamW._update,
        "1 - eta * self.weight_decay",
        "1 - self.lr * self.weight_decay",
        test_family.test_lora_plus_is_a_learning_rate_of_its_own_for_b,
        {"make": AdamW},
    ),
    # VeRA
    "d forgotten in dx": op(ops.vera_backward, "dk *= d", "pass", "vera"),
    "b forgotten on the way back": op(ops.vera_backward, "(dy_rows * b) @ B", "dy_rows @ B", "vera"),
    "db without d": op(ops.vera_backward, "(h * d), B)", "h, B)", "vera"),
    "dd with d": op(ops.vera_backward, "(dk * h)", "(dk * h * d)", "vera"),
    "the last columns of the shared A": Mutant(
        VeraAdapter.factors, "[:, : self.in_features]", "[:, -self.in_features :]", VERA_SHARED, {}
    ),
    "factors of its own for each layer": Mutant(
        VeraMethod.share_projections,
        "VeraAdapter(config, base, A, B,",
        "VeraAdapter(config, base, Parameter(A.value, False), B,",
        VERA_SHARED,
        {},
    ),
    # IA³
    "l forgotten on the way back to the activations": Mutant(
        IA3Adapter.backward,
        "return dz * l if need_dx",
        "return dz if need_dx",
        ALL_METHODS,
        {"setting": IA3Method.example},
    ),
    "dl without what l was multiplied with": Mutant(
        IA3Adapter._add_grad, "(dz * u)", "(dz * 1)", ALL_METHODS, {"setting": IA3Method.example}
    ),
    # several adapters made one
    "weights forgotten": Mutant(combination.concatenate_factors, "part.weight * ", "", SUM, {}),
    "the sources' scaling forgotten": Mutant(combination.concatenate_factors, "part.scaling * ", "", SUM, {}),
    "scaling forgotten in a sum of factors": Mutant(
        combination.combine, "part.weight * part.scaling for", "part.weight for", CROSS, {}
    ),
    "scaling forgotten in a sum of changes": Mutant(
        combination.combine, "part.scaling * (part.B @ part.A)", "part.B @ part.A", ALONE, {"kind": "ties_svd"}
    ),
    "no root of the weight": Mutant(combination.combine, "math.sqrt(abs(x)) for", "abs(x) for", CROSS, {}),
    "the sign of a weight forgotten": Mutant(
        combination.combine, "math.copysign(math.sqrt(abs(x)), x)", "math.sqrt(abs(x))", ALONE, {"kind": "linear"}
    ),
    "σ on neither side": Mutant(combination.truncate, "U[:, :r] * s[:r]", "U[:, :r]", TAIL, {"r": 2}),
    "the smallest directions": Mutant(
        combination.truncate, "Vt[:r], U[:, :r] * s[:r]", "Vt[-r:], U[:, -r:] * s[-r:]", TAIL, {"r": 2}
    ),
    "the smallest numbers kept": Mutant(
        combination.prune, "-np.abs(x)", "np.abs(x)", test_merging.test_magnitude_pruning_keeps_the_largest, {}
    ),
    "the largest signed numbers kept": Mutant(
        combination.prune, "-np.abs(x)", "-x", test_merging.test_magnitude_pruning_keeps_the_largest, {}
    ),
    "dare without rescaling": Mutant(combination.prune, " / how.density", "", DARE, {}),
    "dare drops what it should keep": Mutant(combination.prune, "< how.density", "> how.density", DARE, {}),
    "one mask for each row": Mutant(combination.prune, "rng.random(x.shape)", "rng.random(x.shape[-1:])", DARE, {}),
    "signs elected by frequency": Mutant(
        combination.weighted_sum, 'how.majority_sign_method == "total"', "False", TIES, {}
    ),
    "signs elected by total": Mutant(combination.weighted_sum, 'how.majority_sign_method == "total"', "True", TIES, {}),
    "the mean over all": Mutant(combination.weighted_sum, "np.maximum(agree.sum(axis=0), 1)", "len(x)", TIES, {}),
    "the sum of those that agree": Mutant(combination.weighted_sum, "/ np.maximum(agree.sum(axis=0), 1)", "", TIES, {}),
    "those that lost count too": Mutant(combination.weighted_sum, "x * agree", "x", TIES, {}),
    "a tie is a minus": Mutant(combination.weighted_sum, ">= 0, 1, -1", "> 0, 1, -1", TIES, {}),
    "weights vote": Mutant(combination.weighted_sum, "votes = x if", "votes = w * x if", TIES, {}),
    "a negative weight votes for": Mutant(
        combination.weighted_sum,
        "votes = x if",
        "votes = x * np.sign(w) if",
        test_merging.test_in_ties_a_negative_weight_votes_against,
        {},
    ),
    "elected before pruning": Mutant(
        combination.weighted_sum,
        "votes = x if",
        "votes = np.stack(tensors) if",
        test_merging.test_ties_prunes_before_it_elects,
        {},
    ),
    "rsLoRA taken over, as PEFT does": Mutant(
        combination.combined_config,
        "lora_alpha=r,",
        "lora_alpha=r, use_rslora=True,",
        REPORT,
        {"kind": "cat"},
    ),
    "a report on the sum without weights": Mutant(
        combination.measure_errors,
        "concatenate_factors(parts)",
        "concatenate_factors([p._replace(weight=1) for p in parts])",
        REPORT,
        {"kind": "svd"},
    ),
    "a report that sums norms": Mutant(
        combination.measure_errors,
        "math.hypot(*distances.values())",
        "sum(distances.values())",
        REPORT,
        {"kind": "svd"},
    ),
    "only the first of several merged": Mutant(
        AdaptedLinear.total_delta,
        "for delta in deltas:",
        "for delta in []:",
        test_merging.test_several_adapters_merge_at_once_and_come_out_again,
        {},
    ),
    "a safe merge that looks too late": Mutant(
        merging.merge,
        "for name, layer in layers.items() if safe else ():",
        "for layer in layers.values():\n        layer.merge(*names)\n    for name, layer in layers.items():",
        test_merging.test_a_safe_merge_refuses_what_is_not_finite_before_anything_has_changed,
        {"bad": float("nan")},
    ),
    # mixed batches and serving
    "one scaling for all groups": op(
        ops.grouped_lora_forward, "h *= scaling[:, None, None]", "h *= scaling[0]", "grouped_lora"
    ),
    "no scaling in a group's dA and dx": op(
        ops.grouped_lora_backward, "dh *= scaling[:, None, None]", "pass", "grouped_lora"
    ),
    "a bypass that takes the base's place": Mutant(
        mixed.Group.scatter_add,
        "y[self.rows] +=",
        "y[self.rows] =",
        test_mixed_batches.test_a_layer_equals_the_loop_over_rows_to_1e_4,
        {"kind": "uniform", "adapters": 16, "time": 1},
    ),
    "a segment's dx forgotten": Mutant(mixed.MixedRows.backward, "if need_dx:", "if False:", MIXED, {"dropout": 0.0}),
    "the dx of a row that is computed alone forgotten": Mutant(
        mixed.MixedRows.backward, "dx[rows] += dx_rows", "pass", MIXED_FAMILY, {"dropout": 0.0}
    ),
    "rows of the base without the part that PiSSA removed": Mutant(
        mixed.MixedRows.__init__,
        "self.others.append((layer.base_correction, plain))",
        "pass",
        test_mixed_batches.test_rows_of_the_base_beside_pissa_use_the_whole_weight,
        {},
    ),
    "penalties that count the prompt": Mutant(
        Sampling.penalised,
        "np.unique(np.array(new, np.int64), return_counts=True)",
        "np.unique([*prompt, *new], return_counts=True)",
        test_generate.test_the_penalties_count_the_tokens_of_the_answer_and_one_counts_the_prompt_too,
        {},
    ),
    "padding that is not zero": Mutant(
        mixed.Group.gather,
        "array_module(x).zeros(",
        "1 + array_module(x).zeros(",
        test_mixed_batches.test_gradients_of_a_token_a_row_are_those_of_one_segment_after_another,
        {},
    ),
    "a mixed batch without dropout": Mutant(
        mixed.MixedRows.backward,
        "ops.dropout_backward(bypass, mask)",
        "bypass",
        MIXED,
        {"dropout": 0.3},
    ),
    "a stack that knows adapters by name alone": Mutant(
        mixed.Stack.update,
        "if self.adapters[i : i + 1] != [adapter]:",
        "if i >= len(self.adapters):",
        test_mixed_batches.test_a_name_that_another_adapter_took_over_means_the_new_one,
        {},
    ),
    "a stack that leaves those who moved where they were": Mutant(
        mixed.Stack.update,
        "if self.adapters[i : i + 1] != [adapter]:",
        "if i >= len(self.adapters):",
        test_mixed_batches.test_what_comes_and_goes_between_steps_finds_its_own_factors,
        {},
    ),
    "a mask that is one column short": Mutant(
        BatchCache.next_step,
        "np.arange(columns) >= columns - 1 - positions",
        "np.arange(columns) > columns - 1 - positions",
        test_serve_engine.test_rows_added_to_and_removed_from_the_cache_give_the_logits_of_each_row_alone,
        {},
    ),
    "a row left behind when another takes its place": Mutant(
        BatchLayerCache.remove_row,
        "room[row, :, self.start : self.end] = room[self.rows, :, self.start : self.end]",
        "pass",
        test_serve_engine.test_rows_added_to_and_removed_from_the_cache_give_the_logits_of_each_row_alone,
        {},
    ),
    # the layers
    "dW transposed": op(ops.linear_backward, "rows(dy).T @ rows(x)", "rows(x).T @ rows(dy)", "linear with a square W"),
    "dx through the transposed weight": op(ops.linear_backward, "rows(dy) @ W", "rows(dy) @ W[::-1]", "linear"),
    "the bias averaged": op(ops.linear_backward, "rows(dy).sum(axis=0)", "rows(dy).mean(axis=0)", "linear with bias"),
    "an id that repeats counts once": op(
        ops.embedding_backward, "xp.add.at(dE.view(real), ids, dy.view(real))", "dE[ids] += dy", "embedding"
    ),
    "the root mean square held constant": op(ops.rms_norm_backward, "g -= x * dot", "pass", "rms_norm"),
    "the norm's mean forgotten": op(ops.rms_norm_backward, "rho**3 / x.shape[-1]", "rho**3", "rms_norm"),
    "the rotation not turned back": op(ops.rotary_backward, "-sin", "sin", "rotary"),
    "softmax as if it were elementwise": op(ops.softmax_backward, "p * (dp - dot)", "p * dp * (1 - p)", "softmax"),
    "attention's softmax sum forgotten": op(
        ops.attention_backward,
        "dz -= (o_do[..., queries].reshape(norm.shape) * norm).swapaxes(-1, -2)",
        "pass",
        "attention",
    ),
    "a block's dk overwrites the others'": op(
        ops.attention_backward, "dk[:, :, keys] +=", "dk[:, :, keys] =", "attention in blocks"
    ),
    "a block's dv overwrites the others'": op(
        ops.attention_backward, "dv[:, :, keys] +=", "dv[:, :, keys] =", "attention in blocks"
    ),
    "dq without 1/√d": op(ops.attention_backward, "dq *= scale", "pass", "attention"),
    "a mask that ignores the past": Mutant(
        ops.attention_forward,
        "by_query[:, :, -rows:]",
        "by_query[:, :, :rows]",
        test_ops.test_attention_with_a_past_equals_the_tail_of_attention_without,
        {},
    ),
    "a window of one token more": Mutant(
        ops.attention._outside_window,
        "distance >= window",
        "distance > window",
        test_ops.test_a_window_shows_the_last_tokens_only_and_counts_no_padding,
        {},
    ),
    "a window that counts padding": Mutant(
        ops.attention._outside_window,
        "if mask is None else",
        "if True else",
        test_ops.test_a_window_shows_the_last_tokens_only_and_counts_no_padding,
        {},
    ),
    "a soft cap without its slope": op(
        ops.attention_backward,
        "dz *= tanh_slope(tanh)",
        "pass",
        "attention with a window, a mask, a soft cap and a scale",
    ),
    "layer_norm's mean held constant": op(
        ops.layer_norm_backward, "g -= g.sum(axis=-1, keepdims=True) / d", "pass", "layer_norm"
    ),
    "layer_norm's variance held constant": op(ops.layer_norm_backward, "g -= centred * dot", "pass", "layer_norm"),
    "geglu's gate and up exchanged": op(
        ops.geglu_backward,
        "return dgate, dup",
        "return dup, dgate",
        "geglu",
    ),
    "the cap's slope squared away": op(ops.softcap.tanh_slope, "t * t", "t * 1", "softcap"),
    "silu's slope as σ": op(ops.silu_backward, "dy * _silu_slope(x, s)", "dy * s", "silu"),
    "gate and up exchanged": op(ops.swiglu_backward, "return dgate, dup", "return dup, dgate", "swiglu"),
    "the mean over tokens forgotten": op(
        ops.cross_entropy_backward, "weight = share * dloss", "weight = (share > 0) * dloss", "cross_entropy"
    ),
    "the mean over all tokens, ignored ones too": op(
        ops.cross_entropy_backward,
        "weight = share * dloss",
        "weight = (share > 0) * dloss / len(share)",
        "cross_entropy",
    ),
    "the right answer not subtracted": op(
        ops.cross_entropy_backward, "dz[xp.arange(safe.shape[0]), safe] -= weight", "pass", "cross_entropy"
    ),
    "a gradient that overwrites up too early": Mutant(
        ops.swiglu_backward,
        "slope *= up[part]\n        s *= x\n        array_module(x).multiply(s, dy[part], out=dup[part])",
        "s *= x\n        array_module(x).multiply(s, dy[part], out=dup[part])\n        slope *= up[part]",
        test_ops.test_a_gated_activation_in_parts_and_in_place_computes_the_same,
        {"activation": "swiglu"},
    ),
    # the head and the loss in blocks
    "a block's dx scaled by the block's tokens": blocks(
        head_loss._blocks, "share[rows], need_dx", "share[rows] * 2, need_dx"
    ),
    "dloss forgotten in blocks": blocks(head_loss.loss_in_blocks_backward, "dx *= dloss", "pass"),
    "dloss forgotten where the logits are computed again": blocks(
        head_loss._blocks, "share *= dloss", "pass", seed=None
    ),
    "the first block's targets in all blocks": blocks(head_loss._blocks, "safe[rows], share", "safe[: len(z)], share"),
    "logits that are no gradient": blocks(ops.loss.cross_entropy_in_place, "if gradient:", "if False:"),
    # the model
    "= for +=": Mutant(
        Parameter.add_grad,
        "self.grad += grad",
        "self.grad = grad",
        test_transformer.test_gradients_accumulate_until_zero_grad,
        {},
    ),
    "a tied head that forgets its own gradient": Mutant(
        Parameter.add_grad, "self.grad += grad", "self.grad = grad", MODEL, {"tied": True}
    ),
    "the residual's gradient lost": Mutant(Block.backward, "dy += dy_mlp", "dy = dy_mlp", MODEL, {"tied": False}),
    "values left out of dx": Mutant(Attention.project_backward, "dx += dx_v", "pass", MODEL, {"tied": False}),
    "keys not turned back": Mutant(
        Attention.backward, "ops.rotary_backward(dk, rotary_cache)", "dk", MODEL, {"tied": False}
    ),
    "a gradient for a frozen parameter": Mutant(
        nn.RMSNorm.backward,
        "need_dw=self.weight.trainable",
        "need_dw=True",
        test_transformer.test_any_single_trainable_parameter_gets_the_gradient_that_it_gets_among_all,
        {"tied": False},
    ),
    "dx stopped one block too early": Mutant(
        Block.backward,
        "below_mlp = need_dx or self.self_attn.trainable or self.input_layernorm.trainable",
        "below_mlp = need_dx",
        test_transformer.test_any_single_trainable_parameter_gets_the_gradient_that_it_gets_among_all,
        {"tied": False},
    ),
    "dx computed for nobody": Mutant(
        Attention.backward,
        "inner = need_dx or",
        "need_dx = True; inner = need_dx or",
        test_transformer.test_no_dx_is_computed_below_the_lowest_trainable_parameter,
        {},
    ),
    # prefix tuning
    "the prefix's gradient of one row alone": Mutant(LayerCache.add_grad, ".sum(axis=0)", "[0]", PREFIX, PLAIN),
    "the prefix's keys and values exchanged": Mutant(
        KeyValueCache.take_grad, "for x in layer.grad]", "for x in layer.grad[::-1]]", PREFIX, PLAIN
    ),
    "layers in reverse": Mutant(
        KeyValueCache.take_grad, "for layer in self.layers for x", "for layer in self.layers[::-1] for x", PREFIX, PLAIN
    ),
    "all keys first and then all values": Mutant(
        KeyValueCache.begin,
        "(2 * i, 2 * i + 1)",
        "(i, i + len(self.layers))",
        test_prefix.test_a_prefix_that_is_what_tokens_computed_answers_as_those_tokens,
        {},
    ),
    "dk of the last tokens for the prefix": Mutant(
        LayerCache.add_grad, "x[:, :, : self.prefix_length]", "x[:, :, -self.prefix_length :]", PREFIX, PLAIN
    ),
    "the prefix turned back by a rotation": Mutant(
        Attention.backward,
        "past.add_grad(dk, dv)",
        "past.add_grad(ops.rotary_backward(dk, tuple(ops.rotary_tables(ops.attention.array_module(dk).arange("
        "dk.shape[2]), self.head_dim, 10000.0, dk.dtype))), dv)",
        PREFIX,
        PLAIN,
    ),
    "tanh's slope as 1 − a": Mutant(PrefixEncoder.backward, "(1 - a * a)", "(1 - a)", PREFIX, PROJECTED),
    "no tanh in the backward": Mutant(PrefixEncoder.backward, "da * (1 - a * a)", "da", PREFIX, PROJECTED),
    "a gradient taken twice": Mutant(
        KeyValueCache.take_grad,
        "layer.grad = None",
        "pass",
        test_prefix.test_two_backwards_of_one_past_add_up,
        {},
    ),
    "a position for padding": Mutant(
        read_in_chunks,
        "None if mask is None or not skip_padding else",
        "None if True else",
        test_prefix.test_a_padded_row_has_the_logits_that_it_has_alone,
        {},
    ),
    "a prefix that counts as padding": Mutant(
        prefix.extend_mask_over_prefix,
        "xp.ones(",
        "xp.zeros(",
        test_prefix.test_masked_padding_changes_no_token_to_its_left,
        {},
    ),
    "the prefix drawn as a Linear is": Mutant(
        PrefixMethod.add,
        "else rng.standard_normal((v, width)), heads)",
        "else rng.uniform(-1, 1, (v, width)), heads)",
        test_prefix.test_it_starts_as_pytorch_starts_an_embedding_and_a_linear,
        {},
    ),
    # bottlenecks
    "no skip around the bottleneck": Mutant(
        BottleneckAdapter.output_forward,
        "z += y",
        "pass",
        test_bottleneck.test_at_init_the_adapted_model_equals_the_base_bit_for_bit,
        {},
    ),
    "no gradient through the skip": Mutant(BottleneckAdapter.output_backward, "dy += dz", "pass", NARROW, HOUSE),
    "the skip alone": Mutant(BottleneckAdapter.output_backward, "dy += dz", "dy = dz", NARROW, HOUSE),
    "dz taken for our own": Mutant(
        BottleneckAdapter.output_backward, "dy += dz", "dy = dz.__iadd__(dy)", NARROW, HOUSE
    ),
    "no activation in the backward": Mutant(
        BottleneckAdapter.output_backward, "slope(da, activation_cache)", "da", NARROW, HOUSE
    ),
    "up starts as down does": Mutant(
        BottleneckMethod.draw,
        'not config.init_weights or side == "down"',
        "True",
        test_bottleneck.test_at_init_the_adapted_model_equals_the_base_bit_for_bit,
        {},
    ),
    "a bias without a gradient": Mutant(nn.Linear.backward, "self.bias.add_grad(db)", "pass", NARROW, HOUSE),
    "gelu's slope without the chain rule": op(ops.gelu_backward, " * du", "", "gelu"),
    "gelu's cubic term differentiated as linear": op(ops.gelu_backward, "1 + 3 * GELU", "1 + GELU", "gelu"),
    "gelu as if its gate were constant": op(ops.gelu_backward, " + 0.5 * x * (1 - t * t) * du", "", "gelu"),
    # four bits
    "the second code in the high nibble": Mutant(
        quantization.quantize_4bit,
        "codes[::2] * 16 + codes[1::2]",
        "codes[::2] + codes[1::2] * 16",
        test_quantize.test_the_first_of_two_codes_is_in_the_high_nibble_and_an_odd_end_is_filled_with_zero,
        {},
    ),
    "the upper code on a midpoint": Mutant(
        code_books.nearest_codes,
        'side="left"',
        'side="right"',
        test_quantize.test_a_value_on_a_midpoint_gets_the_lower_code,
        {},
    ),
    "an absmax for each row": Mutant(
        quantization.quantize_4bit,
        "check_settings(block_size, quant_type)",
        "block_size = min(block_size, W.shape[-1])",
        test_quantize.test_blocks_run_through_the_flattened_matrix_and_not_along_its_rows,
        {},
    ),
    "divided where bitsandbytes multiplies": Mutant(
        quantization.quantize_4bit,
        "(blocks * (1 / xp.maximum(absmax, TINY))[:, None])",
        "(blocks / xp.maximum(absmax, TINY)[:, None])",
        test_quantize.test_full_blocks_are_multiplied_by_the_reciprocal_and_the_rest_is_divided,
        {},
    ),
    "double quantisation without the mean": Mutant(
        quantization._quantize_absmax,
        'absmax.mean(dtype="float64").astype("float32")',
        "0 * absmax.mean()",
        test_quantize.test_double_quantisation_stores_absmax_about_its_mean_by_the_nearest_of_256_values,
        {},
    ),
    "the mean not added again": Mutant(
        quantization._dequantize_absmax,
        "x += absmax.offset",
        "pass",
        test_quantize.test_dequantising_looks_up_the_code_and_multiplies_by_absmax,
        {"quant_type": "nf4", "double_quant": True},
    ),
    "the absmax of another block": Mutant(
        quantization.dequantize_4bit,
        "absmax[2 * i // block_size :]",
        "absmax[i // block_size :]",
        test_quantize.test_dequantising_looks_up_the_code_and_multiplies_by_absmax,
        {"quant_type": "nf4", "double_quant": False},
    ),
    "updates rounded to 16 bits each time": Mutant(
        optim._full,
        "p.value.dtype == p.compute_dtype",
        "True",
        test_quantize.test_updates_too_small_for_16_bits_add_up,
        {"adapter_dtype": "float16", "optimizer": AdamW(lr=1e-6)},
    ),
    # Subspaces
    "the signs forgotten in the transpose": Mutant(
        SparseProjection.backward, "self.entry * dtheta", "abs(self.entry) * dtheta", TRANSPOSE, SPARSE
    ),
    "a group's mean for its sum": Mutant(
        SparseProjection.backward, ".astype(", ".__truediv__(3).astype(", TRANSPOSE, SPARSE
    ),
    "columns that are longer than 1": Mutant(
        SparseProjection.__init__,
        "np.sqrt(size)",
        "np.cbrt(size)",
        test_subspace.test_the_columns_of_p_are_orthonormal,
        SPARSE,
    ),
    "dloss forgotten": Mutant(
        SubspaceModel.backward,
        "backward(cache, dloss)",
        "backward(cache)",
        test_subspace.test_two_workers_give_the_gradient_of_one,
        {},
    ),
    "φ over the larger number": Mutant(
        subspaces.similarity,
        "np.minimum",
        "np.maximum",
        test_spectra.test_phi_is_the_papers_formula_for_every_i_and_j,
        {},
    ),
    "energy of σ, not of σ²": Mutant(
        spectra.rank_for_energy,
        "** 2)",
        "** 1)",
        test_spectra.test_the_rank_for_90_percent_of_the_energy_counts_squares,
        {},
    ),
    "a base that nothing froze": Mutant(
        peft_model.get_peft_model,
        "model.freeze()",
        "pass",
        test_lora.test_the_frozen_weights_do_not_change_by_one_bit_in_training,
        {},
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name, monkeypatch, request):
    mutant = MUTANTS[name]
    fixtures = [p for p in inspect.signature(mutant.caught_by).parameters if p not in mutant.arguments]
    arguments = mutant.arguments | {fixture: request.getfixturevalue(fixture) for fixture in fixtures}
    mutant.caught_by(**arguments)  # passes on the right code …
    monkeypatch.setattr(mutant.function, "__code__", mutated(mutant.function, mutant.right, mutant.wrong))
    with pytest.raises(AssertionError):  # … and fails on the wrong one
        mutant.caught_by(**mutant.arguments | {fixture: request.getfixturevalue(fixture) for fixture in fixtures})
