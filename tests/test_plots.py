"""Figures show the numbers that they say they show."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from small_networks import linear_classifier

from deel.lip import plots
from deel.lip.activations import GroupSort2
from deel.lip.layers import SpectralDense

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    pyplot.close("all")


def image(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype("float32")


CALLS = {
    "singular_values": lambda ax: plots.singular_values(
        linear_classifier(np.eye(2), shape=(2,)), ax=ax
    ),
    "accuracy_against_radius": lambda ax: plots.accuracy_against_radius(
        [0.0, 1.0], [0.8, 0.2], [0.9, 0.4], ax=ax
    ),
    "margins": lambda ax: plots.margins(np.eye(3), np.arange(3), ax=ax),
    "level_sets": lambda ax: plots.level_sets(
        linear_classifier(np.ones((2, 1)), shape=(2,)),
        image(4, 2),
        resolution=5,
        ax=ax,
    ),
    "saliency": lambda ax: plots.saliency(
        linear_classifier(np.eye(4), shape=(2, 2, 1)), image(2, 2, 1), ax=ax
    ),
    "counterfactual": lambda ax: plots.counterfactual(
        linear_classifier(np.eye(4), shape=(2, 2, 1)), image(2, 2, 1), ax=ax
    ),
}


def test_every_plot_is_called_here():
    assert set(CALLS) == set(plots.__all__)


@pytest.mark.elsewhere
@pytest.mark.parametrize("name", list(CALLS))
def test_plot_draws_into_the_given_axes_and_returns_them(name):
    ax = pyplot.subplots()[1]
    assert CALLS[name](ax) is ax
    assert ax.has_data()


@pytest.mark.elsewhere
@pytest.mark.parametrize("name", list(CALLS))
def test_plot_without_axes_makes_a_figure(name):
    before = set(pyplot.get_fignums())
    ax = CALLS[name](None)
    assert len(set(pyplot.get_fignums()) - before) == 1
    assert ax.has_data()


@pytest.mark.elsewhere
@pytest.mark.parametrize("name", list(CALLS))
def test_without_matplotlib_the_error_names_it(name, monkeypatch):
    # None in `sys.modules` makes an import fail as if nothing was installed.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    with pytest.raises(ImportError, match="pip install matplotlib"):
        CALLS[name](None)


@pytest.mark.elsewhere
def test_plots_can_be_imported_without_matplotlib():
    # Keras imports matplotlib where it finds it, hence in a new process.
    program = (
        "import sys\nsys.modules['matplotlib'] = None\nimport deel.lip.plots\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_singular_values_are_those_of_each_layer_with_a_known_one():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            SpectralDense(4, activation=GroupSort2(), name="constrained"),
            keras.layers.Dropout(0.5, name="unknown"),
            keras.layers.Dense(4, name="free", use_bias=False),
        ]
    )
    model.layers[-1].set_weights([np.diag([4.0, 2.0, 1.0, 0.5])])
    ax = plots.singular_values(model)
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "constrained",
        "free",
    ]
    bars = [line.get_xdata() for line in ax.get_lines()]
    assert_close(bars[0], [1.0, 1.0], atol=1e-3)
    assert_close(bars[2], [0.5, 4.0])


def test_accuracy_of_the_attack_lies_above_the_certified_one():
    ax = plots.accuracy_against_radius([0.0, 1.0], [0.8, 0.2], [0.9, 0.4])
    by_label = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert_equal(by_label["certified (at least)"], [0.8, 0.2])
    assert_equal(by_label["under attack (at most)"], [0.9, 0.4])


def test_accuracies_of_another_length_than_the_radii_are_an_error():
    with pytest.raises(ValueError, match="`attacked` and `radii`"):
        plots.accuracy_against_radius([0.0, 1.0], [0.8, 0.2], [0.9])


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        # Leads 2, 1.5 and -3.
        ([[3.0, 1.0], [0.0, 1.5], [4.0, 1.0]], [0, 1, 1], [2, 1]),
        ([[3.0, 1.0], [0.0, 1.5]], [[1, 0], [0, 1]], [2, 0]),
        ([[2.0], [-1.0], [3.0]], [1, 0, 0], [2, 1]),
        ([[2.0], [-1.0]], [[1], [-1]], [2, 0]),
    ],
    ids=["classes", "one-hot", "binary-flat", "binary-signs"],
)
def test_margins_count_right_and_wrong_samples(scores, labels, expected):
    ax = plots.margins(scores, labels, bins=4)
    counts = [sum(bar.get_height() for bar in bars) for bars in ax.containers]
    assert counts == expected


def test_margins_are_leads_over_the_best_other_class():
    ax = plots.margins([[3.0, 1.0, 2.5], [0.0, 1.0, 9.0]], [0, 2], bins=2)
    edges = [bar.get_x() for bar in ax.containers[0]]
    # From a lead of 0.5 to one of 8.
    assert edges[0] == pytest.approx(0.5)
    assert edges[1] == pytest.approx(4.25)


@pytest.mark.elsewhere
def test_level_sets_show_where_the_class_changes():
    model = linear_classifier(np.array([[1.0], [0.0]]), shape=(2,))
    ax = plots.level_sets(model, resolution=21)
    zero = ax.collections[-1].get_paths()[0].vertices
    assert_close(zero[:, 0], 0.0, atol=1e-6)


def test_level_sets_accept_a_function():
    ax = plots.level_sets(lambda x: x[:, 0], resolution=5)
    assert ax.has_data()


def test_level_sets_of_several_scores_are_an_error():
    with pytest.raises(ValueError, match="single score"):
        plots.level_sets(linear_classifier(np.eye(2), shape=(2,)), resolution=5)


def test_saliency_is_the_gradient_of_the_target_against_the_other():
    kernel = np.random.default_rng(0).normal(size=(12, 3))
    model = linear_classifier(kernel, shape=(2, 2, 3))
    ax = plots.saliency(model, image(2, 2, 3), target=2, against=0)
    expected = (kernel[:, 2] - kernel[:, 0]).reshape(2, 2, 3).sum(-1)
    assert_close(ax.get_images()[0].get_array(), expected, rtol=1e-4)


def test_counterfactual_moves_the_image_by_the_distance():
    kernel = np.random.default_rng(0).normal(size=(16, 1))
    model = linear_classifier(kernel, shape=(4, 4, 1))
    x = np.full((4, 4, 1), 0.5, "float32")
    ax = plots.counterfactual(model, x, distance=0.3)
    shift = np.asarray(ax.get_images()[0].get_array()).ravel() - 0.5
    expected = 0.3 * kernel.ravel() / np.linalg.norm(kernel)
    assert_close(shift, expected, atol=1e-5)


def test_counterfactual_shows_pixels():
    model = linear_classifier(np.zeros((4, 1)), shape=(2, 2, 1))
    x = np.full((2, 2, 1), 100.0, "float32")
    ax = plots.counterfactual(model, x, as_pixels=lambda t: t / 200.0)
    assert_close(np.asarray(ax.get_images()[0].get_array()), 0.5)
