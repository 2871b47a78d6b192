"""The CIFAR-10 program trains, certifies and attacks, on small data."""

import importlib
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from small_networks import linear_classifier

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
program = importlib.import_module("cifar10_multiclass")
common = importlib.import_module("common")


def images(count):
    """One noisy colour for each class, and the class numbers."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 200, (10, 1, 1, 3))
    labels = np.arange(count) % 10
    noise = random.integers(0, 56, (count, 32, 32, 3))
    return (colours[labels] + noise).astype("uint8"), labels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Exit status, output folder and data of a short run."""
    folder = tmp_path_factory.mktemp("cifar10")
    (x_train, y_train), (x_test, y_test) = images(60), images(20)
    path = folder / "cifar10_like.npz"
    np.savez(
        path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test
    )
    options = {
        "--data": path,
        "--width": 0.02,
        "--epochs": 2,
        "--batch-size": 20,
        "--attack-steps": 3,
        "--verbose": 2,
        "--output": folder / "results",
    }
    words = [str(word) for option in options.items() for word in option]
    return program.main(words), folder / "results", x_test


def two_classes(distance):
    """A model, an image of class 0, and its distance to class 1."""
    normal = np.array([0.5, 0.5, -0.5, 0.5])
    x = np.zeros((1, 2, 2, 1), "float32")
    kernel = np.stack([normal, np.zeros(4)], axis=1)
    bias = np.array([distance, 0.0])
    return linear_classifier(kernel, bias, (2, 2, 1)), x


def test_program_succeeds_and_leaves_its_results(run):
    status, output, x = run
    assert status == 0
    results = json.loads((output / "results.json").read_text())
    assert results["difference"] <= program.TOLERANCE
    assert len(results["labels"]) == len(results["certificates"])
    assert results["history"]["learning_rate"] == pytest.approx([1e-1, 1e-3])
    assert np.all(np.isfinite(results["history"]["val_loss"]))
    model = keras.models.load_model(output / "model.keras")
    assert type(model) is not program.LossVariableModel
    assert model.predict(program.network_input(x), verbose=0).shape == (20, 10)


def test_full_network_has_the_known_number_of_parameters():
    model = program.build_model()
    trainable = sum(np.prod(w.shape) for w in model.trainable_weights)
    assert model.count_params() == 16_833_301
    assert trainable == 8_416_650
    shapes = [layer.output.shape[1:] for layer in model.layers]
    for shape in ((16, 16, 128), (8, 8, 256), (8, 8, 512)):
        assert shape in shapes


def test_certificate_is_half_the_lead_divided_by_the_constant():
    scores = np.array([[1.0, 5.0, 2.0], [-1.0, -4.0, -1.5]])
    assert_close(program.certificates(scores, 1.0), [1.5, 0.25])
    assert_close(program.certificates(scores, 0.5), [3.0, 0.5])


def test_batches_drop_what_is_left_over_and_are_centred():
    x, labels = images(50)
    y = keras.utils.to_categorical(labels, 10)
    data = program.AugmentedImages(x, y, batch_size=20)
    assert len(data) == 2
    batch, targets = data[1]
    assert batch.shape == (20, 32, 32, 3)
    assert batch.dtype == "float32"
    assert targets.shape == (20, 10)
    least, most = program.network_input(np.array([0, 255], "uint8"))
    assert least <= batch.min() < 0 < batch.max() <= most


def test_batches_without_augmentation_are_flipped_at_most():
    x, labels = images(20)
    y = keras.utils.to_categorical(labels, 10)
    data = program.AugmentedImages(x, y, batch_size=20, strength=0.0)
    batch, targets = data[0]
    assert_equal(targets, y[data.order])
    original = program.network_input(x[data.order])
    flipped = np.all(batch == original[:, :, ::-1], axis=(1, 2, 3))
    same = np.all(batch == original, axis=(1, 2, 3))
    assert np.all(flipped | same)
    assert np.any(flipped)
    assert np.any(same)


def test_augmentation_changes_images_in_each_epoch():
    x, labels = images(20)
    y = keras.utils.to_categorical(labels, 10)
    data = program.AugmentedImages(x, y, batch_size=20)
    first, order = data[0][0], data.order
    data.on_epoch_end()
    second = data[0][0]
    assert not np.array_equal(order, data.order)
    back = np.argsort(order), np.argsort(data.order)
    assert np.abs(first[back[0]] - second[back[1]]).max() > 1.0


def test_training_images_are_chosen_from_all_of_them():
    data = images(60), images(20)
    (x, y), (x_test, y_test) = program.prepare(data, train_size=30)
    assert x.shape == (30, 32, 32, 3)
    assert y.shape == (30, 10)
    assert x_test.shape == (20, 32, 32, 3)
    assert y_test.shape == (20, 10)
    assert x.max() > 1.0
    assert len(np.unique(np.argmax(y, axis=-1))) > 5


def test_first_correct_image_of_each_class_is_found():
    model, _ = two_classes(distance=0.0)
    normal = np.array([0.5, 0.5, -0.5, 0.5]).reshape(2, 2, 1)
    # Predicted 0, 1, 0, 1.
    x = np.stack([normal, -normal, 2 * normal, -3 * normal]).astype("float32")
    found, labels = program.one_of_each_class(model, x, np.array([1, 0, 0, 1]))
    assert_equal(labels, [0, 1])
    assert_equal(found, x[[2, 3]])


def test_saliency_is_the_gradient_of_the_chosen_score():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(12, 10)).astype("float32")
    model = linear_classifier(kernel, shape=(2, 2, 3))
    x = random.normal(size=(3, 2, 2, 3)).astype("float32")
    gradients = program.saliency(model, x, np.array([7, 0, 4]))
    expected = kernel[:, [7, 0, 4]].T.reshape(3, 2, 2, 3)
    assert_close(gradients, expected, rtol=1e-5)


def test_attack_comes_close_to_the_boundary_and_not_before_it():
    pytest.importorskip("foolbox")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the program attacks with TensorFlow")
    model, x = two_classes(distance=4.0)
    found, (distance,) = program.carlini_wagner(model, x, np.array([0]))
    assert 4.0 <= distance < 4.5
    assert np.argmax(model.predict(found, verbose=0)) == 1


def test_figures_show_pixels_of_the_original_range():
    x, _ = images(3)
    shown = program.as_pixels(program.network_input(x))
    assert_close(shown, x / 255.0, atol=1e-6)
    assert program.as_pixels(np.array([1e6, -1e6])).tolist() == [1.0, 0.0]
