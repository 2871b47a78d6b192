"""A layer to test, and the decorator that runs a test on each."""

import dataclasses

import keras
import pytest


@dataclasses.dataclass
class Row:
    """A layer to test.

    Attributes:
        layer: The class of the layer.
        arguments: Its arguments.
        input_shape: Shape of an input, without the batch axis.
        output_shape: Shape of the output, without the batch axis.
        parameters: Pair, number of trainable and of other parameters.
        stock: For constrained layers, the Keras class that it exports to.
        constant: Lipschitz constant of the map from input to output.
        is_free: Whether what is trained is no kernel that could be used, but
            what one is made of.
        residual: Boolean, whether the input passes beside the kernel.
        degree: Integer, how often the kernel multiplies.
        further: Integer, the number of values that are trained beside kernel
            and bias.
    """

    layer: type
    arguments: dict
    input_shape: tuple
    output_shape: tuple
    parameters: tuple = (0, 0)
    stock: type | None = None
    constant: float | None = None
    is_free: bool = False
    residual: bool = False
    degree: int = 1
    further: int = 0

    def make(self):
        # Layers in arguments are copied, so that each test has its own.
        arguments = {
            key: type(value).from_config(value.get_config())
            if isinstance(value, keras.layers.Layer)
            else value
            for key, value in self.arguments.items()
        }
        return self.layer(**arguments)

    def built(self):
        """The layer, built for the shape of its input."""
        layer = self.make()
        layer.build((None, *self.input_shape))
        return layer

    @property
    def name(self):
        arguments = ",".join(
            f"{k}={getattr(v, 'name', v)}" for k, v in self.arguments.items()
        )
        return f"{self.layer.__name__}({arguments})"


def _can_run(row):
    """TensorFlow has no channels-first convolution on a CPU."""
    return not (
        keras.backend.backend() == "tensorflow"
        and row.stock is keras.layers.Conv2D
        and row.arguments.get("data_format") == "channels_first"
    )


def rows(*lists, slow=False, every_class=False):
    """Decorator: runs a test on each row of the lists, named after it.

    Args:
        *lists: Lists of rows.
        slow: Boolean, whether only the first row of each class is tested
            outside of `make test-slow`. On JAX it is the only one in any case.
        every_class: Boolean, whether JAX tests layers of one and of three
            dimensions too, whose code is that of two.
    """
    selected = [row for rows in lists for row in rows if _can_run(row)]
    parameters, classes = [], set()
    for row in selected:
        repeated = pytest.mark.slow if slow else pytest.mark.elsewhere
        marks = [repeated] if row.layer in classes else []
        if not every_class and row.layer.__name__.endswith(("1D", "3D")):
            marks.append(pytest.mark.elsewhere)
        classes.add(row.layer)
        parameters.append(pytest.param(row, id=row.name, marks=marks))
    return pytest.mark.parametrize("row", parameters)
