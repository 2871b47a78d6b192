"""Looks for a counterexample to the bounds and certificates of the library.

    python tests/adversarial/fuzz.py --layers 2000 --models 200 --rounding 2000

Random layers and random networks, with random weights, are measured: by how
much they move two points apart, and by the norm of their Jacobian. Neither may
exceed the proven bound. Then networks are trained on images, their predictions
certified, and attacked inside of the certified balls. So are those of
`families.py`, which round as badly as possible. Certificates of both kinds are
attacked, those for float32 in float32, those for real numbers in float64.

The program prints how many cases it tried, and how many were violated. Its exit
status is 0 only if none was.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

from deel.lip import layers
from deel.lip._backend.differentiation import vector_jacobian
from deel.lip.certification import attack_distances
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.losses import MulticlassHKR
from deel.lip.model import Sequential

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "examples")]
common = importlib.import_module("common")
families = importlib.import_module("adversarial.families")
harness = importlib.import_module("harness")
searches = importlib.import_module("adversarial.searches")
random_layers = importlib.import_module("adversarial.random_layers")

# What float32 may add to a measured expansion, in relative terms.
ROUNDING = 2e-5


def largest_expansion(function, shapes, random, pairs=24):
    """The most that a function moved two points apart, and its slope there.

    Args:
        function: A layer or model, called on one tensor or on a list.
        shapes: List of shapes of the inputs, without the batch axis.
        random: NumPy generator.
        pairs: Integer, number of pairs of points.

    Returns:
        Float: the largest ratio of distances, or norm of the Jacobian.
    """

    def evaluate(points):
        arrays = [x.astype("float32") for x in points]
        results = function(
            arrays if len(arrays) > 1 else arrays[0], training=False
        )
        flat = [
            ops.convert_to_numpy(x).reshape(len(arrays[0]), -1)
            for x in keras.tree.flatten(results)
        ]
        return np.concatenate(flat, axis=1).astype("float64")

    scale = 10.0 ** random.uniform(-1, 1)
    start = [scale * random.standard_normal((pairs, *s)) for s in shapes]
    start = [x.astype("float32").astype("float64") for x in start]
    lengths = 10.0 ** random.uniform(-1, 1, pairs)
    moves = [random.standard_normal(x.shape) for x in start]
    moves = [m * lengths.reshape(-1, *[1] * (m.ndim - 1)) for m in moves]
    # The first pairs differ in a constant: the worst case of many kernels.
    for move in moves:
        move[: pairs // 4] = move[: pairs // 4].flat[0]
    end = [(x + m).astype("float32") for x, m in zip(start, moves, strict=True)]
    before, after = evaluate(start), evaluate(end)
    distance = np.sqrt(
        sum(
            np.sum((b - a) ** 2, axis=tuple(range(1, a.ndim)))
            for a, b in zip(start, end, strict=True)
        )
    )
    moved = np.linalg.norm(after - before, axis=1)
    # What rounding makes of large outputs is no expansion.
    noise = 1e-6 * (
        np.linalg.norm(before, axis=1) + np.linalg.norm(after, axis=1)
    )
    ratios = (moved - noise) / np.maximum(distance, 1e-30)
    return float(np.max(ratios))


def jacobian_norm(function, shapes, random):
    """Largest singular value of the Jacobian at a random point."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    point = random.standard_normal(sum(sizes)).astype("float32")

    def flat(x):
        stops = np.cumsum(sizes)
        arrays = [
            ops.reshape(x[:, stop - size : stop], (-1, *shape))
            for stop, size, shape in zip(stops, sizes, shapes, strict=True)
        ]
        results = function(
            arrays if len(arrays) > 1 else arrays[0], training=False
        )
        results = [
            ops.reshape(y, (x.shape[0], -1))
            for y in keras.tree.flatten(results)
        ]
        return ops.concatenate(results, axis=1)

    outputs = flat(ops.convert_to_tensor(point[None])).shape[1]
    # One row for each output: the samples of a batch do not meet.
    points = np.tile(point, (outputs, 1))
    jacobian = vector_jacobian(flat, points, np.eye(outputs, dtype="float32"))
    return float(np.linalg.norm(jacobian.astype("float64"), 2))


def fuzz_layers(count, seed=0):
    """Compares layers with their bounds; returns the descriptions of failures.

    Args:
        count: Integer, number of layers.
        seed: Integer.
    """

    def draw(random):
        layer, shape = random_layers.random_layer(random)
        return layer, [shape]

    return _compared(count, seed, draw)


def fuzz_models(count, seed=1):
    """Compares functional models with their bounds; see `fuzz_layers`."""

    def draw(random):
        model = random_layers.random_model(random)
        return model, [tuple(x.shape[1:]) for x in model.inputs]

    return _compared(count, seed, draw)


def _compared(count, seed, draw):
    failures = []
    for index in range(count):
        random = np.random.default_rng([seed, index])
        failures += _compare(*draw(random), random)
        _forget(index)
    return failures


def fuzz_rounding(count, rounding, seed=2):
    """Attacks certificates of classifiers that round badly.

    Args:
        count: Integer, how many certificates are attacked, at least.
        rounding: As of `certify`. Estimated rounding is what was certified
            before there were proofs, and should be found to be broken.
        seed: Integer.

    Returns:
        Pair: the number of certificates, and the descriptions of failures.
    """
    failures, found, index = [], 0, 0
    names = list(families.FAMILIES)
    while found < count:
        name, place = names[index % len(names)], 1000 * seed + index
        model, x = families.build(name, place)
        result = searches.search(model, x, rounding, place)
        found += result.certificates
        failures += [
            f"{name} of seed {place} for {rounding}: {each}"
            for each in result.broken
        ]
        _forget(index)
        index += 1
    return found, failures


def _compare(function, shapes, random):
    bound = lipschitz_bound(function)
    found = max(
        largest_expansion(function, shapes, random),
        jacobian_norm(function, shapes, random),
    )
    if found <= bound * (1 + ROUNDING) + 1e-30:
        return []
    return [f"{function.name}: {found} > {bound}: {function.get_config()}"]


def _forget(index):
    if index % 50 == 49:
        keras.utils.clear_session()


def train(x, y, epochs):
    """Trains a small 1-Lipschitz network on images."""
    model = Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.SpectralConv2D(16, 3, activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            layers.SpectralConv2D(
                32, 2, strides=2, activation=layers.GroupSort2()
            ),
            keras.layers.Flatten(),
            layers.SpectralDense(64, activation=layers.GroupSort2()),
            layers.FrobeniusDense(10, use_bias=False),
        ]
    )
    model.compile(
        keras.optimizers.Adam(2e-3),
        MulticlassHKR(alpha=50.0, min_margin=0.5),
        jit_compile=harness.JIT,
    )
    model.fit(
        x,
        keras.utils.to_categorical(y, 10),
        batch_size=128,
        epochs=epochs,
        verbose=2,
    )
    return model


def attack_certificates(model, x, seed=0, steps=20, restarts=2):
    """Attacks each sample in its certified ball, and a little beyond.

    Args:
        model: The model, which certifies its own predictions.
        x: Array of samples.
        seed: Integer.
        steps: Integer, see `attack_distances`.
        restarts: Integer, see `attack_distances`.

    Returns:
        Dictionary: numbers of samples, of adversarial samples that were found
        beyond the certificates, and of certificates broken; and the mean of
        the certified radius divided by `margin / (sqrt(2) L)`.
    """
    certificates = certify(model, x)
    radius = certificates.radius
    distances = attack_distances(
        model,
        x,
        certificates.prediction,
        [radius, 2 * radius + 1e-3],
        steps=steps,
        restarts=restarts,
        seed=seed,
    )
    usual = (certificates.margin - 2 * certificates.rounding) / (
        np.sqrt(2) * certificates.lipschitz_constant
    )
    sure = usual > 1e-3
    return {
        "samples": len(x),
        "beyond": int(np.sum(np.isfinite(distances))),
        "broken": int(np.sum((distances <= radius) & (radius > 0))),
        "smaller": int(np.sum(radius[sure] < usual[sure] * (1 - 1e-3))),
        "gain": float(np.mean(radius[sure] / usual[sure])),
        "closest": float(np.min(distances / np.maximum(radius, 1e-9))),
    }


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Looks for counterexamples to bounds and certificates.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    common.add_data_argument(parser)
    parser.add_argument("--layers", type=int, default=2000)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument(
        "--attacks", type=int, default=5000, help="test images to attack"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs of the attacked network"
    )
    parser.add_argument(
        "--rounding",
        type=int,
        default=2000,
        help="certificates to attack by rounding, of each kind",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the search.

    Returns:
        Integer, the exit status: not zero if anything was violated.
    """
    args = parse_arguments(argv)
    keras.utils.set_random_seed(args.seed)
    failures = []
    for name, fuzz in (("layers", fuzz_layers), ("models", fuzz_models)):
        count = getattr(args, name)
        start = time.perf_counter()
        found = fuzz(count, args.seed)
        seconds = time.perf_counter() - start
        print(
            f"{count} random {name}: {len(found)} violations ({seconds:.0f} s)",
            flush=True,
        )
        failures += found
    for kind in ("float32", "exact"):
        if not args.rounding:
            break
        start = time.perf_counter()
        count, found = fuzz_rounding(args.rounding, kind, args.seed)
        seconds = time.perf_counter() - start
        print(
            f"{count} certificates for rounding={kind}, attacked: {len(found)} "
            f"networks with broken ones ({seconds:.0f} s)",
            flush=True,
        )
        failures += found
    print("\n".join(failures))
    broken = 0
    if args.attacks:
        (x_train, y_train), (x_test, _) = args.data or common.download("mnist")
        model = train(common.as_images(x_train), y_train.ravel(), args.epochs)
        result = attack_certificates(
            model, common.as_images(x_test)[: args.attacks], args.seed
        )
        print(result)
        broken = result["broken"] + result["smaller"]
    return int(bool(failures) or broken > 0)


if __name__ == "__main__":
    sys.exit(main())
