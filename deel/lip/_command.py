"""What the commands share: a file of a model, its constants, data to certify.

The arguments have the same names, and the same meaning, in each of them.
"""

import argparse
import math
import re
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np

from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._walk import METHODS

# The names that a file of data may have for its samples and labels.
_SAMPLES = (("x_test", "y_test"), ("x", "y"))

# Bounds of constrained kernels exceed what the layers promise by rounding.
_TOLERANCE = 1e-4


def add_model_arguments(parser):
    """Adds the file of a model, and what its constant depends on."""
    parser.add_argument("model", help="file of a Keras model")
    parser.add_argument(
        "--max",
        type=float,
        metavar="L",
        help="the exit status says whether the bound is at most this, up to "
        "1e-4 of it for rounding of the weights",
    )
    parser.add_argument(
        "--by-output",
        action="store_true",
        help="--max limits the constant of each output by itself, which "
        "FrobeniusDense with disjoint neurons promises, and not that of the "
        "vector of outputs",
    )
    parser.add_argument(
        "--input-shape",
        type=_shape,
        metavar="H,W,C",
        help="shape of an input, for models of images of any size",
    )
    parser.add_argument(
        "--constant",
        type=_constant,
        action="append",
        default=[],
        metavar="LAYER=L",
        help="a constant that you know, for a layer of that name; repeatable",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="how constants of layers become that of the model (default: "
        f"{METHODS[0]})",
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="optimise the chain of dense layers, which takes seconds",
    )


def add_data_arguments(parser):
    """Adds a file of data, and what is certified of it."""
    parser.add_argument(
        "--data",
        metavar="FILE.npz",
        help="samples and labels to certify: arrays x_test and y_test, or x "
        "and y. Bytes (uint8) are pixels, and divided by 255",
    )
    parser.add_argument(
        "--limit",
        type=count,
        metavar="N",
        help="use the first samples only",
    )
    parser.add_argument(
        "--epsilons",
        type=radii,
        default=[0.0, 0.1, 0.25, 0.5, 1.0],
        metavar="E,E,...",
        help="radii of the certified accuracy",
    )
    parser.add_argument(
        "--rounding",
        choices=["exact", "float32", "estimated"],
        default="exact",
        help="what is certified: the network of real numbers, the one that "
        "runs in float32, or that with its rounding estimated (default: exact)",
    )


def count(text):
    """A whole number that is not negative, from the command line."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected zero or more, not {text}")
    return number


def radii(text):
    """Numbers that are not negative, from the command line."""
    numbers = [float(word) for word in text.split(",")]
    if not all(number >= 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"expected zero or more, not {text}")
    return numbers


def _shape(text):
    return tuple(int(word) for word in text.split(","))


def _constant(text):
    name, separator, value = text.rpartition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected LAYER=L, not '{text}'")
    return name, float(value)


def load_model(path):
    """Loads a model without its loss.

    Raises:
        ValueError: If there is no such file, it is none of Keras, or it holds
            a class that is not known.
    """
    if not Path(path).is_file():
        what = "a folder" if Path(path).is_dir() else "no such file"
        raise ValueError(
            f"Expected the file of a Keras model. Received: '{path}', {what}"
        )
    is_hdf5 = str(path).endswith((".h5", ".hdf5"))
    if not is_hdf5 and not zipfile.is_zipfile(path):
        raise ValueError(
            "Expected a file of Keras: what is served in another format is "
            f"certified from the .keras file it was made of. Received: '{path}'"
        )
    try:
        return keras.models.load_model(path, compile=False)
    except KeyError as error:
        raise ValueError(
            f"Expected a file of Keras. Received: '{path}' ({error.args[0]})"
        ) from error
    except TypeError as error:
        # Keras names the class behind the whole config of the model.
        unknown = re.search(r"Could not locate class '(\w+)'", str(error))
        if unknown is None:
            raise
        raise ValueError(
            "Expected layers of Keras and of this library. A class of your own "
            "is known where its module was imported: load the file in a "
            f"program that does. Received: class '{unknown[1]}' in '{path}'"
        ) from error


def proven_bounds(model, args):
    """Returns the bound of all outputs, that of each, and a table of layers."""
    given = {
        "input_shape": args.input_shape,
        "constants": dict(args.constant),
        "method": args.method,
        "refine": args.refine,
    }
    bound, table = lipschitz_bound(model, return_table=True, **given)
    return bound, lipschitz_bound(model, by_output=True, **given), table


def print_constants(model, bound, by_output, args):
    """Prints what `proven_bounds` has found."""
    print(f"Proven Lipschitz constant of '{model.name}'")
    limited = "" if args.max is None else f", limited to {args.max:g}"
    of_vector, of_each = ("", limited) if args.by_output else (limited, "")
    print(f"{bound:12.6f}  of the vector of outputs{of_vector}")
    print(f"{by_output:12.6f}  of each output by itself{of_each}")
    shape = model.output_shape
    if isinstance(shape, tuple) and len(shape) == 2 and shape[1] != 1:
        lead = min(math.sqrt(2) * bound, 2 * by_output)
        print(f"{lead:12.6f}  at most, of the lead of one output over another")


def exceeds_limit(bound, by_output, args):
    """Whether the bound exceeds `--max`; says so if it does."""
    if args.max is None:
        return False
    limit = args.max * (1 + _TOLERANCE)
    limited = by_output if args.by_output else bound
    # Also false for a limit that is no number.
    if limited <= limit:
        return False
    print(f"The bound exceeds --max {args.max:g}.", file=sys.stderr)
    if limited != by_output and by_output <= limit:
        print(
            f"That of each output by itself, {by_output:.6g}, does not: "
            "see --by-output.",
            file=sys.stderr,
        )
    return True


def certified_samples(model, args, **settings):
    """Certifies the samples of `--data`, and prints the certified accuracy.

    Args:
        model: A model.
        args: The arguments of the command.
        **settings: What else `certify` takes.

    Returns:
        Pair: the samples and their `Certificates`.
    """
    x, y = read_samples(args.data, model.input_shape)
    x, y = x[: args.limit], y[: args.limit]
    certificates = certify(
        model,
        x,
        y,
        constants=dict(args.constant),
        rounding=args.rounding,
        method=args.method,
        refine=args.refine,
        **settings,
    )
    print(f"\n{certificates}")
    print("  radius  certified")
    shares = certificates.certified_accuracy(args.epsilons)
    for epsilon, share in zip(args.epsilons, shares, strict=True):
        print(f"{epsilon:8.3f}{share:11.4f}")
    return x, certificates


def read_samples(path, input_shape):
    """Reads samples and labels from a file of NumPy.

    Args:
        path: String or path, the file.
        input_shape: Tuple, the shape of the inputs of the model.

    Raises:
        ValueError: If there is no such file, or it lacks the arrays.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file '{path}'")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"Expected an .npz file. Received: '{path}'")
    with np.load(path) as file:
        for names in _SAMPLES:
            if all(name in file.files for name in names):
                x, y = (file[name] for name in names)
                break
        else:
            raise ValueError(
                f"Expected arrays x_test and y_test, or x and y, in '{path}'. "
                f"Received: {file.files}"
            )
    if x.ndim == 0 or y.ndim == 0:
        raise ValueError(
            "Expected arrays of samples and labels. Received: shapes "
            f"{x.shape} and {y.shape} in '{path}'"
        )
    if x.dtype == np.uint8:
        print("Pixels are divided by 255.")
        x = x / 255.0
    # Gray images may come without an axis for their only channel.
    if x.ndim + 1 == len(input_shape) and input_shape[-1] == 1:
        x = x[..., np.newaxis]
    return x.astype("float32"), y
