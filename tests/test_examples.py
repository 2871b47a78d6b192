"""The example programs do what they say, on small data."""

import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import patterns
import pytest
from harness import assert_close
from harness import assert_equal
from harness import to_numpy
from small_networks import linear_classifier

from deel.lip.certification import certify
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense
from deel.lip.losses import HKR
from deel.lip.losses import KR
from deel.lip.losses import HingeMargin

# The examples import their shared module by its bare name, as scripts do.
EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
common = importlib.import_module("common")
attack_exported = importlib.import_module("attack_exported")
demo = importlib.import_module("demo")
keras_walkthrough = importlib.import_module("keras_walkthrough")
mnist_binary = importlib.import_module("mnist_binary")
mnist_multiclass = importlib.import_module("mnist_multiclass")
segmentation = importlib.import_module("segmentation")
sequences = importlib.import_module("sequences")
wgan = importlib.import_module("wgan")


@pytest.fixture(scope="module")
def mnist_like(tmp_path_factory):
    """A file of the shapes of MNIST: one noisy pattern for each class."""
    path = tmp_path_factory.mktemp("data") / "mnist_like.npz"
    patterns.write(path, *patterns.images((28, 28), 200, 50))
    return str(path)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """Exit status and output folder of a short run of the demo."""
    pytest.importorskip("sklearn")
    output = tmp_path_factory.mktemp("demo") / "results"
    options = {
        "--epochs": 2,
        "--attack-samples": 40,
        "--attack-steps": 5,
        "--attack-restarts": 2,
        "--output": output,
    }
    words = [str(word) for option in options.items() for word in option]
    return demo.main(words), output


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    "program",
    sorted(
        path.name
        for path in EXAMPLES.glob("*.py")
        if path.name != "common.py" and "__main__" in path.read_text()
    ),
)
def test_help_of_the_program_shows_no_default_where_there_is_none(
    program, monkeypatch, capsys
):
    # Here, for a process of its own would import the library once more.
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(EXAMPLES / program), run_name="__main__")
    printed = capsys.readouterr().out
    assert done.value.code == 0
    assert printed.startswith("usage: ")
    assert "(default: None)" not in printed


@pytest.mark.elsewhere
def test_a_program_starts_from_its_folder():
    done = subprocess.run(
        [sys.executable, "demo.py", "--help"],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert "Traceback" not in done.stderr


def test_input_gradient_is_that_of_each_image():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(4, 3)).astype("float32")
    model = linear_classifier(kernel, shape=(2, 2, 1))
    gradient = common.input_gradient(lambda x: keras.ops.sum(model(x), -1))
    x = random.uniform(size=(5, 2, 2, 1)).astype("float32")
    expected = np.tile(kernel.sum(-1).reshape(1, 2, 2, 1), (5, 1, 1, 1))
    assert_close(gradient(x), expected, rtol=1e-5)


@pytest.mark.elsewhere
def test_demo_succeeds_and_leaves_its_results(demo_run):
    status, output = demo_run
    assert status == 0
    assert (output / "model.keras").exists()
    assert (output / "results.json").exists()


@pytest.mark.elsewhere
def test_demo_draws_a_figure(demo_run):
    pytest.importorskip("matplotlib")
    _, output = demo_run
    assert (output / "robustness.png").stat().st_size > 10_000


@pytest.mark.elsewhere
def test_demo_breaks_no_certificate(demo_run):
    _, output = demo_run
    results = json.loads((output / "results.json").read_text())
    assert results["broken"] == 0
    assert results["attacked_samples"] == 40
    certified = np.array(results["attacked_certified"])
    assert np.all(certified <= np.array(results["under_attack"]))
    # Two epochs are enough to certify something.
    assert results["accuracy"] > 0.7
    assert certified[0] > 0.3


@pytest.mark.elsewhere
def test_demo_saves_a_model_with_the_results_it_prints(demo_run):
    _, output = demo_run
    results = json.loads((output / "results.json").read_text())
    assert results["difference"] <= demo.TOLERANCE
    model = keras.models.load_model(output / "model.keras")
    assert type(model) is keras.Sequential
    _, (x, y) = common.load_digits()
    certificates = certify(model, common.as_images(x), y, rounding="float32")
    assert certificates.accuracy == results["accuracy"]
    assert_equal(
        certificates.certified_accuracy(demo.RADII), results["certified"]
    )


def test_demo_counts_an_attack_within_a_certificate_as_broken():
    evaluation = {
        "correct": np.array([True, True, False]),
        "certified": np.array([0.5, 0.5, 0.5]),
        "attacked": np.array([0.4, 0.6]),
    }
    assert demo.summarize(evaluation)["broken"] == 1


@pytest.mark.elsewhere
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_demo_builds_a_network_for_images_of_each_data_set(shape):
    model = demo.build_model(shape, 10)
    assert model.output_shape == (None, 10)
    assert model.count_params() < 2_000_000
    assert model.layers[-5].output.shape[1] == 4


def test_data_comes_from_a_local_file(mnist_like):
    args = demo.parse_arguments(["--data", mnist_like, "--limit", "30"])
    (x_train, y_train), (x_test, y_test) = common.load_data(args)
    assert x_train.shape == (30, 28, 28, 1)
    assert y_train.shape == (30,)
    assert x_test.shape == (50, 28, 28, 1)
    assert y_test.shape == (50,)
    assert x_train.dtype == "float32"
    assert 0.0 <= x_train.min() < 0.1
    assert 0.9 < x_train.max() <= 1.0


def _part_of_the_arrays(path):
    np.savez(path, x_train=np.zeros(3), y_train=np.zeros(3), x_test=np.zeros(3))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "argument --data: "),
        (lambda path: path.write_text("no archive"), "there is no .npz file"),
        (_part_of_the_arrays, "lacks y_test"),
    ],
    ids=["missing", "no archive", "without an array"],
)
def test_data_file_that_cannot_be_read_is_an_error_of_the_command_line(
    write, message, tmp_path, capsys
):
    write(tmp_path / "data.npz")
    with pytest.raises(SystemExit):
        demo.parse_arguments(["--data", str(tmp_path / "data.npz")])
    assert message in capsys.readouterr().err


@pytest.mark.elsewhere
def test_mnist_multiclass_has_the_known_number_of_parameters(
    mnist_like, capsys
):
    options = ["--data", mnist_like, "--epochs", "1", "--batch-size", "100"]
    assert mnist_multiclass.main(options) == 0
    printed = capsys.readouterr().out
    assert "Total params: 55,843" in printed
    assert "Parameters of the exported model: 27,920" in printed
    assert "val_accuracy: " in printed
    assert "val_MulticlassKR: " in printed


@pytest.mark.elsewhere
def test_mnist_binary_has_the_known_number_of_parameters(mnist_like, capsys):
    assert mnist_binary.main(["--data", mnist_like, "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "train: 40 images, 50.000 % of them 0" in printed
    assert "Total params: 51,330" in printed
    assert "Parameters of the exported model: 25,664" in printed
    assert "val_KR: " in printed


@pytest.mark.elsewhere
def test_segmentation_certifies_all_pixels_at_once(tmp_path, capsys):
    pytest.importorskip("sklearn")
    options = {
        "--scenes": 32,
        "--test-scenes": 2,
        "--epochs": 2,
        "--width": 8,
        "--depth": 1,
        "--output": tmp_path,
    }
    words = [str(word) for option in options.items() for word in option]
    assert segmentation.main(words) == 0
    printed = capsys.readouterr().out
    assert "All pixels" in printed
    assert "Pixels of digits" in printed
    results = json.loads((tmp_path / "results.json").read_text())
    jointly, alone = (
        np.array(results[name])
        for name in ("certified_accuracy", "certified_by_pixel")
    )
    assert np.all(jointly >= alone)
    assert results["accuracy"] >= jointly[0]
    assert type(keras.models.load_model(tmp_path / "model.keras")) is (
        keras.Sequential
    )


@pytest.mark.elsewhere
def test_sequences_are_certified_in_a_table(capsys):
    options = {
        "--samples": 200,
        "--steps": 12,
        "--units": 8,
        "--epochs": 2,
        "--attack-samples": 20,
        "--attack-steps": 5,
    }
    words = [str(word) for option in options.items() for word in option]
    assert sequences.main(words) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["network", "weights", "accuracy", "radius"]
    names = ["forgetting", "lasting", "convolution"]
    assert [row.split()[0] for row in rows] == names
    assert last == "Attacks within a certified radius: 0"


@pytest.mark.elsewhere
def test_segmentation_labels_the_pixels_of_digits():
    digits = np.zeros((1, 8, 8))
    digits[0, 2, 3] = 1.0
    x, y = segmentation.make_scenes(digits, np.array([7]), 3, 0)
    assert x.shape == (3, 32, 32, 1)
    # One pixel of ink in each quarter, and noise.
    assert_equal(y, np.where(x[..., 0] > 0.5, 8, segmentation.GROUND))
    assert np.sum(y > 0) == 12


@pytest.mark.slow
def test_wgan_proves_how_far_its_samples_are_from_real_ones(tmp_path, capsys):
    pytest.importorskip("sklearn")
    options = {
        "--epochs": 1,
        "--steps": 20,
        "--critics": 2,
        "--critic-epochs": 4,
        "--output": tmp_path,
    }
    words = [str(word) for option in options.items() for word in option]
    assert wgan.main(words) == 0
    assert "Real digits and" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    bounds = results["bounds"]
    for bound in bounds.values():
        assert len(bound["by_critic"]) == 2
        # What is divided by is proven, and what layers promise.
        assert_close(bound["lipschitz_constants"], 1.0, rtol=1e-4)
    found = {name: bound["distance"] for name, bound in bounds.items()}
    assert found["other real digits"] < 0.2 < found["before training"]
    assert found["generated"] < found["before training"]
    model = keras.models.load_model(tmp_path / "generator.keras")
    assert type(model) is keras.Sequential


def test_wgan_trains_the_generator_through_a_critic_that_stays():
    shape = (4, 4, 1)
    generator = wgan.build_generator(shape, units=8)
    critic = wgan.build_critic(shape, units=8)
    random = np.random.default_rng(0)
    x = random.uniform(size=(64, *shape)).astype("float32")
    # What the critic learns by itself is nothing: is it moved otherwise?
    args = wgan.parse_arguments(["--epochs", "1", "--steps", "20"])
    args.verbose, args.critic_lr, args.lr = 0, 0.0, 0.01
    kernels = [np.array(to_numpy(w)) for w in critic.trainable_weights]

    def score():
        made = wgan.generate(generator, 64, np.random.default_rng(1))
        return np.mean(critic.predict(made, verbose=0))

    before = score()
    losses = wgan.train(generator, critic, x, args, random)
    assert len(losses) == 1
    for kernel, former in zip(critic.trainable_weights, kernels, strict=True):
        # Steps of zero bring kernels nearer to the constraint.
        assert_close(kernel, former, atol=1e-4)
    assert score() > before + 0.02


def test_mnist_binary_losses_take_labels_of_either_rank(mnist_like):
    train, _ = common.read_npz(mnist_like)
    x, y = mnist_binary.prepare(*train)
    model = mnist_binary.build_model()

    def evaluated(labels):
        model.compile(
            loss=HKR(alpha=10.0, min_margin=2.0),
            metrics=[KR, HingeMargin(min_margin=2.0)],
        )
        return model.evaluate(x, labels, verbose=0, return_dict=True)

    column, flat = evaluated(y), evaluated(y.ravel())
    assert set(column) == {"loss", "KR", "HingeMargin"}
    for name, value in column.items():
        assert_close(flat[name], value, rtol=1e-5)


@pytest.fixture(scope="module")
def walkthrough_run(tmp_path_factory, mnist_like):
    """Exit status and output folder of a short run of the walkthrough."""
    output = tmp_path_factory.mktemp("walkthrough") / "results"
    options = ["--data", mnist_like, "--epochs", "1", "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_walkthrough, "DEEP", (8, 8))
        return keras_walkthrough.main(options), output


@pytest.mark.slow
def test_walkthrough_compares_all_models(walkthrough_run):
    status, output = walkthrough_run
    assert status == 0
    results = json.loads((output / "results.json").read_text())
    assert results["changed"] == 0.0
    assert list(results["recompiled"]) == ["1", "0.1", "0.01"]
    assert set(results["accuracy"]) == {"train", "test"}
    assert len(results["histories"]) == 7
    for history in results["histories"].values():
        assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}


@pytest.mark.slow
def test_walkthrough_draws_its_figures(walkthrough_run):
    pytest.importorskip("matplotlib")
    _, output = walkthrough_run
    for name in ("histories", "test_correct", "test_incorrect"):
        assert (output / f"{name}.png").stat().st_size > 5_000


@pytest.mark.slow
def test_walkthrough_writes_logs_for_tensorboard_where_it_can(walkthrough_run):
    _, output = walkthrough_run
    written = list((output / "logs").rglob("events*"))
    assert bool(written) == keras_walkthrough.has_tensorboard()


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("units", "last", "total", "trainable"),
    [
        ((128,), SpectralDense, 203_542, 101_770),
        ((128,), FrobeniusDense, 203_531, 101_770),
        ((512, 256, 128, 64), SpectralDense, 1_150_105, 575_050),
    ],
)
def test_walkthrough_models_have_the_known_number_of_parameters(
    units, last, total, trainable
):
    model = keras_walkthrough.build_model(units, last=last)
    assert model.count_params() == total
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == trainable


def test_walkthrough_splits_images_by_whether_the_model_is_right():
    x = np.arange(5.0).reshape(5, 1)
    model = linear_classifier(np.array([[-1.0, 1.0]]), np.array([1.5, -1.5]))
    # Class 1 from 1.5 on.
    y = keras.utils.to_categorical([0, 1, 1, 1, 0])
    parts = keras_walkthrough.correct_and_incorrect(model, x, y)
    x_correct, y_correct, x_wrong, y_wrong, correct, wrong = parts
    assert_equal(x_correct, [[0.0], [2.0], [3.0]])
    assert_equal(x_wrong, [[1.0], [4.0]])
    assert_equal(np.argmax(y_correct, -1), [0, 1, 1])
    assert_equal(np.argmax(correct, -1), [0, 1, 1])
    assert_equal(np.argmax(y_wrong, -1), [1, 0])
    assert_equal(np.argmax(wrong, -1), [0, 1])
    assert keras_walkthrough.accuracy(model, x, y) == pytest.approx(0.6)


def test_walkthrough_accuracy_is_the_metric_of_keras(mnist_like):
    data = common.read_npz(mnist_like)
    _, test = keras_walkthrough.prepare(data)
    model = keras_walkthrough.build_model()
    keras_walkthrough.compile_model(model, "mse", 0.1)
    _, metric = model.evaluate(*test, verbose=0)
    assert keras_walkthrough.accuracy(model, *test) == pytest.approx(metric)


def test_walkthrough_scales_flattens_and_selects(mnist_like):
    data = common.read_npz(mnist_like)
    train, test = keras_walkthrough.prepare(data, train_size=30)
    assert train[0].shape == (30, 784)
    assert train[1].shape == (30, 10)
    assert test[0].shape == (50, 784)
    assert 0.9 < train[0].max() <= 1.0


def test_foreign_attacks_are_compared_with_certificates(
    tmp_path, monkeypatch, capsys
):
    if keras.backend.backend() != "torch":
        pytest.skip("the packages attack torch modules")
    random = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), SpectralDense(10)]
    )
    model.save(tmp_path / "model.keras")
    x = random.uniform(size=(12, 4, 4))
    y = np.argmax(model.predict(x[..., None], verbose=0), axis=-1)
    path = tmp_path / "data.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)

    def nothing_found(module, images, labels, epsilon, steps):
        assert images.shape == (12, 1, 4, 4)
        return np.ones(len(labels), bool)

    def all_found(module, images, labels, epsilon, steps):
        return np.zeros(len(labels), bool)

    words = [str(tmp_path / "model.keras"), "--data", str(path)]
    words += ["--epsilon", "0.001"]
    for attack, status in ((nothing_found, 0), (all_found, 1)):
        monkeypatch.setattr(attack_exported, "ATTACKS", {"one": attack})
        assert attack_exported.main(words) == status
    printed = capsys.readouterr().out
    assert "Accuracy on 12 images: 1.0000" in printed
    assert "0 certificates broken" in printed


def test_attack_of_art_finds_what_there_is_and_nothing_else():
    pytest.importorskip("art")
    if keras.backend.backend() != "torch":
        pytest.skip("the package attacks torch modules")
    # Two scores that differ by `sqrt(2)` times the distance to a plane.
    direction = np.array([1.0, -1.0, 1.0, -1.0]) / 2
    model = linear_classifier(
        np.stack([direction, -direction], 1), shape=(2, 2, 1)
    )
    module = attack_exported.channels_first(model)
    distances = np.array([-0.4, -0.1, 0.1, 0.4])
    x = 0.5 + distances[:, None] * direction
    x = x.reshape(4, 1, 2, 2).astype("float32")
    y = np.array([1, 1, 0, 0])
    kept = attack_exported.projected_gradient(module, x, y, 0.2, 10)
    assert_equal(kept, [True, False, False, True])
