"""A training program that may be killed at any moment and started again.

    python resumable.py WAY FOLDER OUTPUT

It announces each step on its standard output. Started again, it goes on from
what it finds in FOLDER; at the end, it writes its figures to OUTPUT.
"""

import json
import pathlib
import shutil
import sys

import h5py
import keras
import numpy as np

from deel.lip import layers
from deel.lip import losses
from deel.lip.model import LossVariableSequential
from deel.lip.model import Sequential

EPOCHS = 3
STEPS = 6
BATCH = 8


class Batches(keras.utils.PyDataset):
    """Batches whose order depends on the number of the epoch alone."""

    def __init__(self):
        super().__init__()
        random = np.random.default_rng(0)
        self.x = random.normal(size=(STEPS * BATCH, 5)).astype("float32")
        self.y = np.eye(3, dtype="float32")[np.argmax(self.x[:, :3], axis=-1)]
        self.epoch = 0

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        order = np.random.default_rng(self.epoch).permutation(len(self.x))
        chosen = order[index * BATCH : (index + 1) * BATCH]
        return self.x[chosen], self.y[chosen]


class Progress(keras.callbacks.Callback):
    """Tells the data the epoch, announces steps and keeps the losses."""

    def __init__(self, batches, path):
        super().__init__()
        self.batches = batches
        self.path = path
        self.losses = {}
        if path.exists():
            self.losses = json.loads(path.read_text())

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = self.batches.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        print(f"step {self.epoch * STEPS + batch}", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        self.losses[str(epoch)] = float(logs["loss"])
        # In place of the former file at once, so no kill leaves a half of it.
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.losses))
        fresh.replace(self.path)


def compiled_model(container=LossVariableSequential):
    keras.utils.set_random_seed(0)
    model = container(
        [
            keras.Input((5,)),
            layers.SpectralDense(8, activation=layers.GroupSort2()),
            layers.BatchCentering(),
            layers.FrobeniusDense(3, use_bias=False),
        ]
    )
    loss = losses.MulticlassHKR(10.0, 0.1)
    if container is LossVariableSequential:
        loss = losses.MulticlassHKRauto(10.0, 0.1, alpha_margin=0.5)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def newest(files, load):
    """Loads the newest file that is whole; its number and the result."""
    for path in sorted(files, reverse=True):
        try:
            return int(path.name.split(".")[0]), load(path)
        except (OSError, KeyError, ValueError):
            # Killed while it was written: the one before is whole.
            continue
    return 0, None


def _forget_half_of_a_first_backup(folder):
    """Where Keras has no backup before the broken one, it cannot begin."""
    if list(folder.glob("*.weights.h5.bkp")):
        return
    try:
        h5py.File(folder / "latest.weights.h5").close()
        json.loads((folder / "training_metadata.json").read_text())
    except (OSError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)


def backup(folder):
    """Nothing to load: the callback does so when training begins."""
    _forget_half_of_a_first_backup(folder / "backup")
    callback = keras.callbacks.BackupAndRestore(
        folder / "backup", double_checkpoint=True, delete_checkpoint=False
    )
    return compiled_model(), callback, 0


def whole(folder):
    """The newest whole model of `ModelCheckpoint`."""
    epoch, model = newest(folder.glob("*.keras"), keras.models.load_model)
    path = str(folder / "{epoch:04d}.keras")
    callback = keras.callbacks.ModelCheckpoint(path)
    return model or compiled_model(), callback, epoch


def weights(folder):
    """The newest weights of `ModelCheckpoint`, in a model made anew.

    Learned margins are no weights of a model, so this one has none.
    """
    model = compiled_model(Sequential)
    # Without its variables, the state of the optimizer would be left out.
    model.optimizer.build(model.trainable_variables)
    epoch, _ = newest(folder.glob("*.weights.h5"), model.load_weights)
    path = str(folder / "{epoch:04d}.weights.h5")
    callback = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    return model, callback, epoch


def orbax(folder):
    """The newest whole model that orbax wrote in the background."""
    steps = [p for p in folder.glob("orbax/*") if p.name.isdigit()]
    last = max(steps, key=lambda path: int(path.name), default=None)
    model = compiled_model() if last is None else keras.models.load_model(last)
    callback = keras.callbacks.OrbaxCheckpoint(folder / "orbax")
    return model, callback, 0 if last is None else int(last.name) + 1


WAYS = {"backup": backup, "whole": whole, "weights": weights, "orbax": orbax}


def main(way, folder, output):
    """Trains, from the start or from what is in the folder."""
    folder = pathlib.Path(folder)
    model, callback, epoch = WAYS[way](folder)
    batches = Batches()
    progress = Progress(batches, folder / "losses.json")
    model.fit(
        batches,
        epochs=EPOCHS,
        initial_epoch=epoch,
        shuffle=False,
        callbacks=[progress, callback],
        verbose=0,
    )
    figures = {
        "losses": [progress.losses[str(epoch)] for epoch in range(EPOCHS)],
        "evaluated": model.evaluate(batches, verbose=0),
    }
    margins = getattr(model.loss, "get_trainable_variables", list)()
    names = [v.name for v in (*model.variables, *margins)]
    # Names of these depend on whether the model was loaded.
    names += ["optimizer"] * len(model.optimizer.variables)
    variables = [*model.variables, *margins, *model.optimizer.variables]
    for number, variable in enumerate(variables):
        value = keras.ops.convert_to_numpy(keras.ops.copy(variable))
        figures[f"{number} {names[number]}"] = value
    with open(output, "wb") as file:
        np.savez(file, **figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
