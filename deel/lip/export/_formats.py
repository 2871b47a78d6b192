"""The formats that stock models are written in, and the runtime of each."""

import dataclasses
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from deel.lip._export import write_for_serving
from deel.lip._stock_only.conversion import stock_model

# Samples that a runtime gets at a time.
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Format:
    """A format, who writes it, and who runs it.

    Attributes:
        name: String, the name that `keras.Model.export` has for it; "keras" is
            what `keras.Model.save` writes.
        suffix: String, what its files end with; "" for a folder.
        writers: Dictionary of the backends that write it, with a tuple of the
            modules that each needs for that.
        runtime: String, the module that runs it.
        open: Function of a path as a string, which returns a function from a
            batch to its scores, both NumPy arrays.
        folds_sorts: Tuple of backends. What they write is run faster where
            convolutions sort, as `stock_model` says.
    """

    name: str
    suffix: str
    writers: dict
    runtime: str
    open: Callable
    folds_sorts: tuple = ()

    def check_written_here(self):
        """Raises ValueError if this backend, or what it needs, is missing."""
        backend = keras.backend.backend()
        if backend not in self.writers:
            raise ValueError(
                f"Expected a backend out of {list(self.writers)} for the "
                f"format '{self.name}', in the environment variable "
                f"KERAS_BACKEND. Received: backend={backend}"
            )
        needed = missing(self.writers[backend])
        if needed:
            raise ValueError(
                f"The format '{self.name}' needs what is not installed. "
                f"Install it with `{how_to_install(needed)}`. "
                f"Received: backend={backend}"
            )

    def stock_model(self, model):
        """The stock model to write for a model, which is to be certified."""
        return stock_model(model, keras.backend.backend() in self.folds_sorts)

    def write(self, model, path):
        """Writes a stock model for batches of any size.

        Args:
            model: A model that `stock_model` returned.
            path: Path of the file, or of the folder.

        Raises:
            ValueError: If Keras cannot write it.
        """
        try:
            if self.name == "keras":
                model.save(path)
                return
            options = {}
            if "verbose" in inspect.signature(model.export).parameters:
                options["verbose"] = False
            if self.name == "torch":
                options["dynamic_shapes"] = (_any_batch(),)
            write_for_serving(model, path, format=self.name, **options)
        # Each converter has errors of its own.
        except Exception as error:
            raise ValueError(
                f"Keras cannot write '{model.name}' in the format "
                f"'{self.name}': {error}"
            ) from error

    def run(self, path, x):
        """Runs a file in its own runtime.

        Args:
            path: Path of what was written.
            x: Array of samples.

        Returns:
            Array of scores.

        Raises:
            ValueError: If the runtime refuses the file.
        """
        batches = [x[i : i + _BATCH] for i in range(0, len(x), _BATCH)]
        try:
            served = self.open(str(path))
            return np.concatenate([served(batch) for batch in batches])
        # Each runtime has errors of its own.
        except Exception as error:
            raise ValueError(
                f"What Keras has written as '{self.name}' does not run in "
                f"{self.runtime}: {error}"
            ) from error


def missing(modules):
    """Those of the modules that are not installed."""
    return [x for x in modules if importlib.util.find_spec(x) is None]


def how_to_install(modules):
    """The command that installs modules, named as their packages are."""
    return "pip install " + " ".join(x.replace("_", "-") for x in modules)


def format_of(path, name=None):
    """The format of a name, or else of the end of a path.

    Raises:
        ValueError: If there is none, or the path has another end.
    """
    if name is None:
        found = [x for x in FORMATS.values() if x.suffix == Path(path).suffix]
    else:
        found = [FORMATS[name]]
    if not found or not str(path).endswith(found[0].suffix):
        ends = ", ".join(
            f"{x.suffix or 'nothing, for a folder'} ({x.name})"
            for x in (found or FORMATS.values())
        )
        raise ValueError(
            f"Expected a path that ends with {ends}. Received: {path}"
        )
    return found[0]


def _any_batch():
    """What says to PyTorch that the first axis has any length."""
    import torch

    return {0: torch.export.Dim.DYNAMIC}


def _open_keras(path):
    return keras.models.load_model(path, compile=False).predict_on_batch


def _open_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return lambda x: loaded.serve(x).numpy()


def _open_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def _open_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path).get_signature_runner()
    (name,) = runner.get_input_details()
    return lambda x: next(iter(runner(**{name: x}).values()))


def _open_openvino(path):
    import openvino

    # Where the processor has bfloat16, OpenVINO computes in it if not told.
    compiled = openvino.compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda x: compiled(x)[0]


def _open_torch(path):
    import torch

    module = torch.export.load(path).module()

    def served(x):
        with torch.no_grad():
            return ops.convert_to_numpy(module(ops.convert_to_tensor(x)))

    return served


_EVERYWHERE = {"tensorflow": (), "jax": (), "torch": ()}

FORMATS = {
    x.name: x
    for x in (
        Format("keras", ".keras", _EVERYWHERE, "keras", _open_keras),
        Format(
            "tf_saved_model",
            "",
            {
                "tensorflow": (),
                "jax": ("tensorflow",),
                "torch": ("tensorflow", "torch_xla"),
            },
            "tensorflow",
            _open_saved_model,
        ),
        Format(
            "onnx",
            ".onnx",
            {
                "tensorflow": ("onnx", "tf2onnx"),
                "jax": ("jax2onnx",),
                "torch": ("onnx", "onnxscript"),
            },
            "onnxruntime",
            _open_onnx,
            folds_sorts=("tensorflow", "torch"),
        ),
        Format(
            "litert",
            ".tflite",
            {"tensorflow": (), "torch": ("litert_torch",)},
            "ai_edge_litert",
            _open_litert,
        ),
        Format(
            "openvino",
            ".xml",
            {"tensorflow": ("openvino",), "torch": ("openvino",)},
            "openvino",
            _open_openvino,
            folds_sorts=("tensorflow",),
        ),
        Format("torch", ".pt2", {"torch": ()}, "torch", _open_torch),
    )
}
