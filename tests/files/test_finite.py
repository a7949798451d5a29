"""Tests of the check for NaN and infinity in arrays that are read from files."""

from __future__ import annotations

import numpy as np
import pytest

from lora_np.files import check_finite


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_anywhere_is_refused_by_the_arrays_name(dtype, bad):
    for at in (0, 7, 14):
        x = np.ones((3, 5), dtype)
        x.flat[at] = bad
        with pytest.raises(ValueError, match="W contains NaN or infinity"):
            check_finite("W", x)


@pytest.mark.parametrize("x", [np.full(3, 6e4, np.float16), np.full(3, -3e38, np.float32), np.zeros(0), np.arange(3)])
def test_finite_numbers_pass(x):
    check_finite("W", x)
