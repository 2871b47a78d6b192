"""No certificate is broken by rounding, for all that a search can find."""

import pytest
from adversarial.families import FAMILIES
from adversarial.families import SLOW
from adversarial.families import build
from adversarial.searches import Result
from adversarial.searches import search

QUICK = [name for name in FAMILIES if name not in SLOW]

# Families whose estimated certificates break on every backend.
ESTIMATES_BREAK = ["long_sum"]


def found(name, rounding, seeds, **kwargs):
    result = Result()
    for seed in seeds:
        model, x = build(name, seed)
        result += search(model, x, rounding, seed, **kwargs)
    return result


@pytest.mark.parametrize("name", QUICK)
def test_search_breaks_no_certificate(name):
    float32 = found(name, "float32", [0], count=1)
    exact = found(name, "exact", [0], count=1)
    assert float32.broken == []
    assert exact.broken == []
    # There is something to attack.
    assert exact.certificates > 0


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["float32", "exact"])
@pytest.mark.parametrize("name", FAMILIES)
def test_longer_search_breaks_no_certificate(name, rounding):
    result = found(name, rounding, range(1, 13), count=3, steps=16)
    assert result.broken == []
    assert result.certificates > 0


@pytest.mark.parametrize("name", ESTIMATES_BREAK)
def test_search_has_teeth_estimated_certificates_break(name):
    assert found(name, "estimated", range(3)).broken
