"""The attacks on this library: damaged and hostile input. They are quick by default, and run longer when asked to.

`make attack SECONDS=3600` sets LORA_NP_ATTACK_SECONDS, the seconds that the tests with random input use together.
"""

from __future__ import annotations

import os

import pytest

SECONDS = float(os.environ.get("LORA_NP_ATTACK_SECONDS", "0"))


@pytest.fixture
def attack_seconds() -> float:
    """How long a test with random input may run; 0 means that it runs its quick, fixed set."""
    return SECONDS
