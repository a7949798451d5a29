"""The claims that tests prove exactly, without a study. Their verdict is "yes" because the named tests pass."""

from __future__ import annotations

from collections.abc import Mapping

from ..studies.harness.findings import Claim
from ..studies.harness.table import Table

NEEDED = ()


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that tests prove. No table is needed. The column "check" says that the named tests prove the
    claim."""
    return [
        Claim(
            "The hand-derived gradients are right",
            "this project",
            "yes",
            "to 1e-12",
            "proved by the tests `tests/proofs/test_ops.py`, `tests/proofs/test_transformer.py`, "
            "`tests/oracles/test_ops_oracles.py`, `tests/proofs/test_mutants.py`",
            note="The gradients of each operation and of the whole model agree with complex-step derivatives to 1e-12. The "
            "gradients agree with PEFT's gradients to 1e-10. The tests reject wrong versions of each backward function.",
        ),
        Claim(
            "At the start the adapted model equals the base",
            "Hu et al. 2021, §4.1",
            "yes",
            "bit for bit",
            "proved by the test `test_at_init_the_adapted_model_equals_the_base_bit_for_bit`",
            note="B starts at zero, so the outputs of the adapted model and of the base are equal bit for bit, in float32 and "
            "in float64.",
        ),
        Claim(
            "With Adam and any p, q > 0, the settings α/(pq), A·p, lr_A·p, lr_B·q train the same model as α, A, lr_A, lr_B",
            "Schulman et al. 2025",
            "yes",
            "bit for bit",
            "proved by the test `test_adam_trains_the_same_model_when_factors_and_rates_are_scaled_by_powers_of_two`, notebook 09",
            note="The two trained models are equal bit for bit if p and q are powers of two. Adam's ε must be so small that "
            "√v̂ + ε equals √v̂ after rounding.",
        ),
        Claim(
            "The part of W that PiSSA leaves in the base has the smallest singular values of W",
            "Meng et al. 2024, §3",
            "yes",
            "to 1e-12",
            "proved by the tests `test_what_pissa_leaves_has_the_tail_of_the_singular_values` and "
            "`test_pissa_at_the_start_is_the_base_to_1e_12`",
            note="The singular values are measured in float64. At the start, the model with PiSSA equals the base to 1e-12.",
        ),
    ]
