"""What the parts cost: normalisation by shape and method, convolutions and
dense layers in whole training steps, activations, pooling and losses, forward
and backward, each beside its stock equivalent.

    python benchmarks/parts.py
    KERAS_BACKEND=torch python benchmarks/parts.py normalisation pooling
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import keras
import measure
import numpy as np
from compiled import compiled
from compiled import with_gradient
from keras import ops

from deel.lip import layers
from deel.lip import losses
from deel.lip._numerics.norm_bounds import divide_by_norm
from deel.lip._numerics.polar import polar
from deel.lip._numerics.polar import project_on_tangent

# Matrices of dense layers and of 3x3 convolutions.
SHAPES = ((784, 32), (144, 16), (512, 512), (1152, 128), (4608, 512))


def normalisations(rng):
    """Ways to constrain a kernel, beside one product `W^T W`."""
    for rows, columns in SHAPES:
        w = rng.standard_normal((rows, columns)).astype("float32")
        q, _ = np.linalg.qr(w)
        # What an optimizer leaves: an orthogonal matrix that has moved.
        moved = q + 1e-3 * rng.standard_normal(w.shape)
        cases = {
            "one product": (lambda x: ops.matmul(ops.transpose(x), x), moved),
            "retraction": (lambda x: polar(x, 1e-3, 15), moved),
            "exact": (lambda x: polar(x, 1e-7, 15), moved),
            "from scratch": (lambda x: polar(x, 1e-7, 15), w),
            "norm only": (divide_by_norm, w),
            "tangent": (lambda x: project_on_tangent(x, x), moved),
        }
        yield (
            f"normalisation {rows}x{columns}",
            {
                name: (compiled(function), [value.astype("float32")])
                for name, (function, value) in cases.items()
            },
        )


def training_steps(title, shape, stock, ours, rng):
    """Training steps of single layers on one input, the stock one first."""
    x = rng.standard_normal(shape).astype("float32")
    cases = {}
    for name, layer in {**stock, **ours}.items():
        model = keras.Sequential([keras.Input(shape[1:]), layer])
        model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
        y = np.zeros((shape[0], *model.output_shape[1:]), "float32")
        cases[name] = (model.train_on_batch, [x, y])
    return title, cases


def convolutions(rng):
    """Constrained convolutions beside `Conv2D`, retraction included."""
    for batch, size, channels in ((128, 32, 64), (128, 8, 256)):
        shape = (batch, size, size, channels)
        yield training_steps(
            f"convolutions 3x3, training step {shape}",
            shape,
            {"Conv2D": keras.layers.Conv2D(channels, 3, padding="same")},
            {
                "SpectralConv2D": layers.SpectralConv2D(channels, 3),
                "bound='operator'": layers.SpectralConv2D(
                    channels, 3, bound="operator"
                ),
                "OrthogonalConv2D": layers.OrthogonalConv2D(channels, 3),
                "AOLConv2D": layers.AOLConv2D(channels, 3),
                "SLLConv2D": layers.SLLConv2D(channels, 3),
            },
            rng,
        )


def dense_layers(rng):
    """Ways to make a dense layer 1-Lipschitz, beside `Dense`."""
    methods = (
        "newton_schulz",
        "cholesky_qr",
        "cayley",
        "exponential",
        "block_reflector",
    )
    for inputs, units in ((512, 512), (784, 128)):
        yield training_steps(
            f"dense {inputs}x{units}, training step of 256",
            (256, inputs),
            {"Dense": keras.layers.Dense(units)},
            {
                "SpectralDense": layers.SpectralDense(units),
                **{m: layers.OrthogonalDense(units, method=m) for m in methods},
                "AOLDense": layers.AOLDense(units),
                "SLLDense": layers.SLLDense(units),
                "SandwichDense": layers.SandwichDense(units),
            },
            rng,
        )


def layer_cases(title, shape, stock, ours, rng):
    """Layers on one input, the stock one first; forward and backward."""
    x = rng.standard_normal(shape).astype("float32")
    cases = {}
    for name, layer in {**stock, **ours}.items():
        if isinstance(layer, keras.layers.Layer):
            layer.build(shape)
        cases[name] = (with_gradient(layer), [x])
    return title, cases


def activations(rng):
    """Sorting beside ReLU."""
    yield layer_cases(
        "activations (256, 28, 28, 16)",
        (256, 28, 28, 16),
        {"ReLU": keras.layers.ReLU()},
        {
            "GroupSort2": layers.GroupSort2(),
            "GroupSort(4)": layers.GroupSort(4),
            "FullSort": layers.FullSort(),
            "MaxMin": layers.MaxMin(),
            "Householder": layers.Householder(),
        },
        rng,
    )


def poolings(rng):
    """Scaled pooling beside average pooling."""
    yield layer_cases(
        "pooling (256, 28, 28, 16)",
        (256, 28, 28, 16),
        {"AveragePooling2D": keras.layers.AveragePooling2D(2)},
        {
            "ScaledAveragePooling2D": layers.ScaledAveragePooling2D(),
            "ScaledL2NormPooling2D": layers.ScaledL2NormPooling2D(),
            "InvertibleDownSampling": layers.InvertibleDownSampling(2),
        },
        rng,
    )


def loss_functions(rng):
    """Losses beside cross-entropy."""
    y = np.eye(10)[rng.integers(0, 10, 1024)].astype("float32")
    scores = rng.standard_normal((1024, 10)).astype("float32")
    functions = {
        "CategoricalCrossentropy": keras.losses.CategoricalCrossentropy(True),
        "MulticlassKR": losses.MulticlassKR(),
        "MulticlassHinge": losses.MulticlassHinge(),
        "MulticlassHKR": losses.MulticlassHKR(10.0),
        "MulticlassSoftHKR": losses.MulticlassLseHKR(10.0),
    }
    cases = {
        name: (with_gradient(lambda s, y, f=f: f(y, s)), [scores, y])
        for name, f in functions.items()
    }
    yield "losses (1024, 10)", cases


PARTS = {
    "normalisation": normalisations,
    "convolutions": convolutions,
    "dense": dense_layers,
    "activations": activations,
    "pooling": poolings,
    "losses": loss_functions,
}


def main(argv=None):
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"some of {', '.join(PARTS)}; by default all",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(
            f"parts must be among {', '.join(PARTS)}. "
            f"Received: {', '.join(unknown)}"
        )
    results = {}
    for part in args.parts or PARTS:
        for title, cases in PARTS[part](np.random.default_rng(0)):
            tasks = {}
            for name, (function, arrays) in cases.items():
                tensors = [ops.convert_to_tensor(x) for x in arrays]
                tasks[name] = measure.repeated(
                    lambda f=function, t=tensors: f(*t)
                )
            times = measure.in_turns(tasks, args.rounds, args.seconds)
            first = next(iter(times.values()))
            results[title] = {
                name: measure.summary(value)
                | {"ratio": measure.ratio(value, first)}
                for name, value in times.items()
            }
            rows = [
                (name, f"{found['median']:.3f}", f"{found['ratio']:.2f}")
                for name, found in results[title].items()
            ]
            measure.print_table(title, ["part", "ms", "ratio"], rows)
    measure.write_json(args.json, results)


if __name__ == "__main__":
    main()
