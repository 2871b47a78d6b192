"""The networks that come with the library."""

import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import reloaded
from harness import to_numpy

from deel.lip import applications
from deel.lip.certification import lipschitz_bound

# The classifiers of images; the fields have a test of their own.
NAMES = [name for name in applications.__all__ if name != "DistanceField"]
BUILDERS = [getattr(applications, name) for name in NAMES]
SHAPE = (8, 8, 3)

# What proofs may add: 5e-4 for a convolution whose image is neither small
# enough for its singular values nor circular.
PROVEN_WITHIN = 5e-3

every_builder = pytest.mark.parametrize("builder", BUILDERS)


def _images(count):
    x = np.random.default_rng(0).standard_normal((count, *SHAPE))
    return x.astype("float32")


@pytest.fixture(scope="module", params=BUILDERS, ids=NAMES)
def moved(request):
    """A network with two scores of constant 3, its kernels far from the start.

    Each of its layers is trained in tests of its own.
    """
    model = request.param(
        "S", input_shape=SHAPE, classes=2, k_coef_lip=3.0, name="mine"
    )
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        step = rng.standard_normal(variable.shape).astype("float32")
        variable.assign(to_numpy(variable) + 0.3 * step)
    model.condense()
    return model


@pytest.mark.slow
def test_each_score_has_the_constant(moved):
    assert moved.name == "mine"
    assert moved.output_shape == (None, 2)
    bound = lipschitz_bound(moved, by_output=True)
    assert 0.01 < bound <= 3.0 * (1 + PROVEN_WITHIN)
    kernel = to_numpy(moved.vanilla_export().layers[-1].kernel)
    assert_close(np.linalg.norm(kernel, axis=0), 3.0, rtol=1e-5)


@pytest.mark.slow
def test_it_is_saved_and_exported(moved, tmp_path):
    x = _images(4)
    expected = moved.predict(x, verbose=0)
    loaded = reloaded(moved, tmp_path)
    assert_equal(loaded.predict(x, verbose=0), expected)
    exported = moved.vanilla_export()
    assert_close(exported.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.slow
@every_builder
def test_features_are_a_vector(builder):
    model = builder("S", input_shape=SHAPE, include_top=False)
    assert len(model.output_shape) == 2
    assert model.layers[-1].name != "scores"


@pytest.mark.elsewhere
@every_builder
def test_wrong_arguments_are_refused(builder):
    with pytest.raises(ValueError, match="size='XS'"):
        builder("XS")
    with pytest.raises(ValueError, match=r"input_shape=\(30, 32, 3\)"):
        builder("S", input_shape=(30, 32, 3))
    with pytest.raises(ValueError, match="multiples"):
        builder("S", input_shape=(None, None, 3))
    with pytest.raises(ValueError, match="classes=0"):
        builder("S", classes=0)


@pytest.mark.slow
@pytest.mark.parametrize("builder", BUILDERS[1:])
def test_scores_depend_on_the_image(builder):
    # At the start, after all layers; VGG is the one whose signal fades.
    x = 10.0 * _images(8)
    scores = builder("S", input_shape=SHAPE).predict(x, verbose=0)
    assert np.min(np.std(scores, axis=0)) > 0.01


@pytest.mark.parametrize("shape", [(2,), (4, 4, 1)])
def test_a_field_has_its_constant_and_keeps_the_norm_of_gradients(shape):
    model = applications.DistanceField("S", shape, k_coef_lip=3.0, name="mine")
    assert model.name == "mine"
    for variable in model.trainable_variables:
        step = np.random.default_rng(0).standard_normal(variable.shape)
        variable.assign(to_numpy(variable) + 0.3 * step)
    model.condense()
    # One score: nothing is lost to that of others.
    assert lipschitz_bound(model) <= 3.0 * (1 + 1e-4)
    for kernel in (to_numpy(x.wbar) for x in model.layers if x.weights):
        values = np.linalg.svd(kernel, compute_uv=False)
        assert_close(values, values[0], rtol=1e-3)


@pytest.mark.elsewhere
def test_wrong_arguments_of_a_field_are_refused():
    with pytest.raises(ValueError, match="size='XL'"):
        applications.DistanceField("XL")
    for shape in ((), (None, 2), (0,), 2):
        with pytest.raises(ValueError, match="input_shape="):
            applications.DistanceField(input_shape=shape)
    with pytest.raises(ValueError, match="k_coef_lip=0"):
        applications.DistanceField(k_coef_lip=0.0)
