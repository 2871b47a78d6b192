"""Bounds of models: how constants join along the paths of a graph."""

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import built
from small_networks import stack

from deel.lip import layers
from deel.lip.certification import lipschitz_bound


def test_constants_multiply_along_a_path():
    doubled = keras.layers.Rescaling(2.0)
    tripled = keras.layers.Rescaling(-3.0)
    assert lipschitz_bound(stack(doubled, tripled)) == 6.0


def branches(join, constants=(3.0, 4.0), two_inputs=False):
    inputs = [keras.Input((4,))]
    if two_inputs:
        inputs.append(keras.Input((4,)))
    tensors = [
        keras.layers.Rescaling(c)(inputs[i % len(inputs)])
        for i, c in enumerate(constants)
    ]
    return keras.Model(inputs if two_inputs else inputs[0], join(tensors))


@pytest.mark.parametrize(
    ("join", "one_input", "two_inputs"),
    [
        (keras.layers.Add, 7.0, 5.0),
        (keras.layers.Subtract, 7.0, 5.0),
        (keras.layers.Average, 3.5, 2.5),
        (keras.layers.Concatenate, 5.0, 4.0),
        (keras.layers.Maximum, 5.0, 4.0),
        (keras.layers.Minimum, 5.0, 4.0),
        (layers.LipResidual, 3.5, 2.5),
    ],
)
def test_branches_are_joined_as_their_layer_joins_them(
    join, one_input, two_inputs
):
    found = lipschitz_bound(branches(join()))
    assert_close(found, one_input, rtol=1e-5)
    found = lipschitz_bound(branches(join(), two_inputs=True))
    assert_close(found, two_inputs, rtol=1e-5)


def test_sum_that_broadcasts_counts_the_repetitions():
    x, y = keras.Input((4, 1)), keras.Input((1, 9))
    model = keras.Model([x, y], keras.layers.Add()([x, y]))
    # Nine copies of x, four of y.
    assert_close(lipschitz_bound(model), np.sqrt(9 + 4))


def test_several_outputs_are_one_vector():
    x = keras.Input((4,))
    outputs = [keras.layers.Rescaling(c)(x) for c in (3.0, 4.0)]
    assert lipschitz_bound(keras.Model(x, outputs)) == pytest.approx(5.0)


def test_shared_and_nested_layers_count_at_each_use():
    x = keras.Input((4,))
    doubled = keras.layers.Rescaling(2.0)
    nested = stack(doubled, keras.layers.Rescaling(3.0))
    y = keras.layers.Add()([doubled(doubled(x)), nested(x)])
    bound, table = lipschitz_bound(keras.Model(x, y), return_table=True)
    assert bound == pytest.approx(4.0 + 6.0)
    names = [row.name for row in table]
    # One row for each layer, wherever it is used.
    assert (
        names.count(doubled.name) + names.count(f"{nested.name}/{doubled.name}")
        == 1
    )
    assert len(table) == 3


def test_table_tells_exact_bounds_from_upper_ones():
    model = stack(
        keras.layers.Conv2D(2, 3),
        keras.layers.MaxPooling2D(3, 1),
        keras.layers.Flatten(),
        keras.layers.Dense(2, activation="tanh"),
        shape=(8, 8, 1),
    )
    _, table = lipschitz_bound(model, return_table=True)
    exact = {row.type: row.exact for row in table}
    assert exact == {
        "Conv2D": True,
        "MaxPooling2D": False,
        "Flatten": True,
        "Dense": False,
    }


def test_images_of_unknown_size_have_a_bound_that_a_size_makes_tighter():
    model = stack(
        keras.layers.Conv2D(2, 3, padding="same"), shape=(None, None, 1)
    )
    anywhere = lipschitz_bound(model)
    assert lipschitz_bound(model, input_shape=(4, 5, 1)) < anywhere
    large = lipschitz_bound(model, input_shape=(24, 24, 1))
    assert large < anywhere < 1.05 * large


def test_products_of_branches_are_refused():
    model = branches(keras.layers.Multiply())
    with pytest.raises(ValueError, match="multiplies its inputs"):
        lipschitz_bound(model)


class OwnCall(keras.Model):
    """A model whose graph is not known."""

    def call(self, x):
        return 2 * x


def test_bad_arguments_of_the_bound_are_errors():
    model = stack(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="p=1"):
        lipschitz_bound(model, p=1)
    with pytest.raises(ValueError, match="input_shape"):
        lipschitz_bound(model, input_shape=(5,))
    with pytest.raises(ValueError, match="input_shape"):
        lipschitz_bound(model, input_shape=(4, 4))
    with pytest.raises(ValueError, match="Keras model or layer"):
        lipschitz_bound(3)
    with pytest.raises(ValueError, match="unbuilt"):
        lipschitz_bound(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="unbuilt"):
        lipschitz_bound(keras.Sequential([keras.layers.Dense(2)]))
    own = built(OwnCall(), 3)
    with pytest.raises(ValueError, match="`call` of their own"):
        lipschitz_bound(own)


def test_operations_on_tensors_count_as_layers_do():
    x = keras.Input((4,))
    y = keras.layers.Rescaling(3.0)(x)
    assert lipschitz_bound(keras.Model(x, x + y)) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="products and quotients"):
        lipschitz_bound(keras.Model(x, x * y))


def test_nested_models_of_several_inputs_take_them_in_their_order():
    a, z = keras.Input((2,), name="a"), keras.Input((2,), name="z")
    tenfold = keras.layers.Rescaling(10.0)(z)
    inner = keras.Model([z, a], keras.layers.Add()([tenfold, a]))
    x = keras.Input((2,))
    large = keras.layers.Rescaling(100.0)(x)
    model = keras.Model(x, inner([large, x]))
    assert lipschitz_bound(model) == pytest.approx(1001.0)
    # Keras finds the inputs of a dictionary by their names.
    model = keras.Model(x, inner({"a": x, "z": large}))
    with pytest.raises(ValueError, match="a dictionary"):
        lipschitz_bound(model)


def test_layers_that_are_built_from_the_start_take_the_shape_of_an_input():
    layer = keras.layers.AveragePooling2D(2)
    if not layer.built:
        pytest.skip("The oldest Keras builds each layer for a shape.")
    assert lipschitz_bound(layer, input_shape=(8, 8, 2)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="Expected `input_shape`"):
        lipschitz_bound(layer)
    with pytest.raises(ValueError, match="input_shape="):
        lipschitz_bound(layer, input_shape=(8, 0, 2))


def test_names_of_constants_that_nothing_has_are_errors():
    model = stack(keras.layers.Rescaling(2.0, name="doubled"))
    assert lipschitz_bound(model, constants={"doubled": 3.0}) == 3.0
    with pytest.raises(ValueError, match=r"doubled.*Received: \['double'\]"):
        lipschitz_bound(model, constants={"double": 3.0})
