"""Random layers, networks and certificates keep their bounds."""

import pytest
from adversarial import fuzz


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(x, marks=pytest.mark.elsewhere) for x in (3, 4))]
)
def test_fuzzed_layers_stay_within_their_bounds(seed):
    assert fuzz.fuzz_layers(8, seed) == []


def test_fuzzed_models_stay_within_their_bounds():
    assert fuzz.fuzz_models(3) == []


@pytest.mark.parametrize(
    "rounding",
    ["float32", pytest.param("exact", marks=pytest.mark.elsewhere)],
)
def test_fuzzed_certificates_are_not_broken_by_rounding(rounding):
    count, failures = fuzz.fuzz_rounding(3, rounding)
    assert count >= 3
    assert failures == []
