"""Neighbours of Keras take the layers as they take those of Keras."""

import keras
import numpy as np
import pytest
from harness import assert_all_close
from harness import to_numpy

from deel.lip import layers
from deel.lip.losses import MulticlassHKR
from deel.lip.model import Sequential

CLASSES = 3


def _samples(count=60):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 6)).astype("float32")
    return x, np.argmax(x[:, :CLASSES], axis=-1)


def _model(k_coef_lip=1.0, alpha=10.0):
    model = Sequential(
        [
            keras.Input((6,)),
            layers.SpectralDense(8, activation=layers.GroupSort2()),
            layers.FrobeniusDense(CLASSES, use_bias=False),
        ],
        k_coef_lip=k_coef_lip,
    )
    model.compile(
        keras.optimizers.Adam(0.02), MulticlassHKR(alpha), metrics=["accuracy"]
    )
    return model


def _for_sklearn(X, y, k_coef_lip=1.0):
    assert y.shape[1] == CLASSES
    return _model(k_coef_lip)


def _classifier(**arguments):
    return keras.wrappers.SKLearnClassifier(
        _for_sklearn,
        model_kwargs=arguments,
        fit_kwargs={"epochs": 10, "batch_size": 10, "verbose": 0},
    )


needs_wrappers = pytest.mark.skipif(
    not hasattr(keras, "wrappers"),
    reason="This version of Keras has none for scikit-learn.",
)


@needs_wrappers
def test_scikit_learn_validates_the_model_by_its_own_folds():
    model_selection = pytest.importorskip("sklearn.model_selection")
    x, y = _samples(120)
    # A clone of the classifier was seen to forget its own `fit_kwargs`.
    scores = model_selection.cross_val_score(
        _classifier(),
        x,
        y,
        cv=2,
        params={"epochs": 10, "batch_size": 10, "verbose": 0},
    )
    assert scores.shape == (2,)
    assert np.all(scores > 0.5)


@needs_wrappers
def test_model_is_the_last_step_of_a_pipeline_of_scikit_learn():
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x, y = _samples()
    steps = pipeline.make_pipeline(
        preprocessing.StandardScaler(), _classifier(k_coef_lip=2.0)
    )
    steps.fit(x, y)
    model = steps[-1].model_
    assert type(model) is Sequential
    assert model.k_coef_lip == 2.0
    assert steps.score(x, y) > 0.6


# The tuner reads weights before there is an optimizer to take its state.
@pytest.mark.filterwarnings("ignore:Skipping variable loading:UserWarning")
def test_keras_tuner_searches_the_constant_and_the_weight_of_the_loss(tmp_path):
    tuner = pytest.importorskip("keras_tuner")
    x, y = _samples()
    labels = keras.utils.to_categorical(y)

    def build(trial):
        return _model(
            k_coef_lip=trial.Choice("k_coef_lip", [0.5, 4.0]),
            alpha=trial.Choice("alpha", [0.0, 20.0]),
        )

    search = tuner.GridSearch(
        build,
        objective="val_accuracy",
        directory=tmp_path,
        project_name="constant",
    )
    search.search(x, labels, validation_data=(x, labels), epochs=2, verbose=0)
    tried = {
        (t.hyperparameters.get("k_coef_lip"), t.hyperparameters.get("alpha"))
        for t in search.oracle.trials.values()
    }
    assert tried == {(0.5, 0.0), (0.5, 20.0), (4.0, 0.0), (4.0, 20.0)}
    (best,) = search.get_best_hyperparameters(1)
    # The models that it kept are read from their files.
    (model,) = search.get_best_models(1)
    assert model.k_coef_lip == best.get("k_coef_lip")
    assert model.loss.get_config()["alpha"] == best.get("alpha")


class _Batches(keras.utils.PyDataset):
    """The samples in order."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 10

    def __getitem__(self, index):
        chosen = slice(10 * index, 10 * index + 10)
        return self.x[chosen], self.y[chosen]


def _as_tf_data(x, y):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(10)


def _as_data_loader(x, y):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return torch.utils.data.DataLoader(data, batch_size=10)


def _as_generator(x, y):
    batches = _Batches(x, y)
    return (batches[index] for _ in range(2) for index in range(6))


@pytest.mark.parametrize(
    "loader", [_Batches, _as_tf_data, _as_data_loader, _as_generator]
)
def test_every_kind_of_input_trains_to_the_same_kernels(loader):
    x, labels = _samples()
    y = keras.utils.to_categorical(labels)
    keras.utils.set_random_seed(0)
    expected = _model()
    expected.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0)
    keras.utils.set_random_seed(0)
    model = _model()
    steps = 6 if loader is _as_generator else None
    data = loader(x, y)
    model.fit(data, epochs=2, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert_all_close(expected.get_weights(), model.get_weights(), atol=1e-6)
    assert to_numpy(model.optimizer.iterations) == 12
