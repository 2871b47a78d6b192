"""Batch layers that share a factory know the product of their constants."""

import json

import harness
import keras
import numpy as np
import pytest
from test_normalization import BATCHES
from test_normalization import observe
from test_normalization import variances

from deel.lip.layers import BatchLipNorm
from deel.lip.layers import SharedLipFactory


def _shared(factory):
    """Two layers with one factory, one of them nested, and one without."""
    inputs = keras.Input((4, 3))
    nested = keras.Sequential([BatchLipNorm(factory=factory)])
    x = nested(BatchLipNorm(factory=factory)(inputs))
    other = BatchLipNorm(factory=SharedLipFactory(), eps=1000.0)
    return keras.Model(inputs, [x, other(inputs)])


def _sharing(model):
    first, nested, other = model.layers[1:]
    return first, nested.layers[0], other


def test_product_of_the_factory_is_the_constant_of_the_layers():
    factory = SharedLipFactory()
    assert float(factory.get_current_product_value()) == 1.0
    model = _shared(factory)
    assert float(factory.get_current_product_value(training=True)) == 1.0
    for batch in BATCHES:
        model(batch, training=True)
    first, second, other = _sharing(model)
    # Unlike what it was trained on, so that its factor matters.
    second.variance.assign([0.25, 0.5, 0.1])
    chain = keras.Sequential([keras.Input((4, 3)), first, second])
    norm = harness.operator_norm(chain, (4, 3))
    product = float(factory.get_current_product_value(training=False))
    assert product == pytest.approx(norm, rel=1e-4)
    assert float(other.scaling_factor()) == 1.0
    # A second registration counts once.
    factory.register(first)
    assert float(factory.get_current_product_value()) == product


def test_training_product_is_that_of_the_last_batch():
    factory = SharedLipFactory()
    layer = BatchLipNorm(factory=factory)
    observe(layer)
    expected = 1 / np.sqrt(np.max(variances(BATCHES[-1:])))
    found = float(factory.get_current_product_value(training=True))
    assert found == pytest.approx(expected, rel=1e-5)
    stored = float(factory.get_current_product_value(training=False))
    assert stored != pytest.approx(expected, rel=1e-3)


def test_layers_that_share_a_factory_share_one_after_loading(tmp_path):
    factory = SharedLipFactory()
    model = _shared(factory)
    for batch in BATCHES:
        model(batch, training=True)
    model.save(tmp_path / "model.keras")
    for _ in range(2):
        loaded = keras.models.load_model(tmp_path / "model.keras")
        first, second, other = _sharing(loaded)
        assert first.factory is second.factory
        assert first.factory is not factory
        assert other.factory is not first.factory
        for training in (True, False):
            assert float(
                first.factory.get_current_product_value(training)
            ) == float(factory.get_current_product_value(training))


def test_config_of_a_layer_with_a_factory_is_plain():
    layer = BatchLipNorm(factory=SharedLipFactory())
    config = layer.get_config()
    assert harness.is_plain(config)
    rebuilt = BatchLipNorm.from_config(json.loads(json.dumps(config)))
    assert isinstance(rebuilt.factory, SharedLipFactory)
    assert rebuilt.factory is not layer.factory
    for value in ("factory", 3):
        with pytest.raises(ValueError, match=f"Received: factory={value}"):
            BatchLipNorm(factory=value)
    with pytest.raises(ValueError, match="Received: eps=0"):
        BatchLipNorm(eps=0)
