"""Prints what is proven of a saved model: `python -m deel.lip.certification`.

    python -m deel.lip.certification MODEL.keras --max 1.0
    python -m deel.lip.certification MODEL.keras --data TEST.npz --attack 200

The exit status is 0 if the bound is within `--max` (any bound is, without it)
and no attack broke a certificate; 1 if not; 2 if nothing could be proven.
"""

import argparse
import math
import sys
import zipfile

import keras
import numpy as np

from deel.lip.certification import attack_distances
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound

# The names that a file of data may have for its samples and labels.
_SAMPLES = (("x_test", "y_test"), ("x", "y"))

# Bounds of constrained kernels exceed what the layers promise by rounding.
_TOLERANCE = 1e-4


def main(argv=None):
    """Runs the command.

    Returns:
        Integer, the exit status.
    """
    args = _parse_arguments(argv)
    if args.attack and args.data is None:
        print("An attack needs --data with samples.", file=sys.stderr)
        return 2
    try:
        model = keras.models.load_model(args.model, compile=False)
        bound, table = lipschitz_bound(
            model,
            input_shape=args.input_shape,
            constants=dict(args.constant),
            return_table=True,
        )
        by_output = lipschitz_bound(
            model,
            input_shape=args.input_shape,
            constants=dict(args.constant),
            by_output=True,
        )
        _print_table(table)
        _print_constants(model, bound, by_output, args)
        broken = 0
        if args.data is not None:
            broken = _certify(model, args)
    except (OSError, TypeError, ValueError) as error:
        print(f"Nothing is proven: {error}", file=sys.stderr)
        return 2
    limited = by_output if args.by_output else bound
    # Also false for a limit that is no number.
    if args.max is not None and not limited <= args.max * (1 + _TOLERANCE):
        print(f"The bound exceeds --max {args.max:g}.", file=sys.stderr)
        if limited != by_output and by_output <= args.max * (1 + _TOLERANCE):
            print(
                f"That of each output by itself, {by_output:.6g}, does not: "
                "see --by-output.",
                file=sys.stderr,
            )
        return 1
    return int(broken > 0)


def _parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="python -m deel.lip.certification",
        description="Bounds the Lipschitz constant of a saved model, layer by "
        "layer, and certifies its predictions.",
    )
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
        "--data",
        metavar="FILE.npz",
        help="samples and labels to certify: arrays x_test and y_test, or x "
        "and y. Bytes (uint8) are pixels, and divided by 255",
    )
    parser.add_argument(
        "--limit",
        type=_count,
        metavar="N",
        help="use the first samples only",
    )
    parser.add_argument(
        "--epsilons",
        type=_numbers,
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
    parser.add_argument(
        "--attack",
        type=_count,
        default=0,
        metavar="N",
        help="attack the first samples, within and beyond their certificates",
    )
    return parser.parse_args(argv)


def _count(text):
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"expected zero or more, not {text}")
    return count


def _numbers(text):
    return [float(word) for word in text.split(",")]


def _shape(text):
    return tuple(int(word) for word in text.split(","))


def _constant(text):
    name, separator, value = text.rpartition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected LAYER=L, not '{text}'")
    return name, float(value)


def _print_table(table):
    width = max([len("layer"), *(len(row.name) for row in table)])
    kind = max([len("type"), *(len(row.type) for row in table)])
    print(f"{'layer':{width}}  {'type':{kind}}  {'bound':>12}         method")
    for row in table:
        relation = "exact" if row.exact else "upper"
        print(
            f"{row.name:{width}}  {row.type:{kind}}  {row.value:12.6f}  "
            f"{relation}  {row.method}"
        )


def _print_constants(model, bound, by_output, args):
    print(f"\nProven Lipschitz constant of '{model.name}'")
    limited = "" if args.max is None else f", limited to {args.max:g}"
    of_vector, of_each = ("", limited) if args.by_output else (limited, "")
    print(f"{bound:12.6f}  of the vector of outputs{of_vector}")
    print(f"{by_output:12.6f}  of each output by itself{of_each}")
    shape = model.output_shape
    if isinstance(shape, tuple) and len(shape) == 2 and shape[1] != 1:
        lead = min(math.sqrt(2) * bound, 2 * by_output)
        print(
            f"{lead:12.6f}  at most, of the lead of one output over another: "
            "it counts for certificates"
        )


def _certify(model, args):
    x, y = _read(args.data, model.input_shape)
    x, y = x[: args.limit], y[: args.limit]
    constants = dict(args.constant)
    certificates = certify(
        model, x, y, constants=constants, rounding=args.rounding
    )
    print(f"\n{certificates}")
    print("  radius  certified")
    shares = certificates.certified_accuracy(args.epsilons)
    for epsilon, share in zip(args.epsilons, shares, strict=True):
        print(f"{epsilon:8.3f}{share:11.4f}")
    if not args.attack:
        return 0
    count = min(args.attack, len(x))
    radius = certificates.radius[:count]
    # The attack runs in float32, which certificates of real numbers say
    # nothing of.
    proven = radius
    if certificates.float32_radius is not None:
        proven = certificates.float32_radius[:count]
    distances = attack_distances(
        model,
        x[:count],
        certificates.prediction[:count],
        [radius, 1.5 * radius + 1e-3],
    )
    broken = int(np.sum((distances <= proven) & (proven > 0)))
    found = int(np.sum(np.isfinite(distances)))
    print(
        f"Attacks: {count} samples, {found} adversarial within 1.5 times the "
        f"radius, {broken} certificates broken of {int(np.sum(proven > 0))} "
        "that hold in float32"
    )
    return broken


def _read(path, input_shape):
    if not zipfile.is_zipfile(path):
        raise ValueError(f"There is no file '{path}', or it is no .npz file")
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
    if x.dtype == np.uint8:
        print("Pixels are divided by 255.")
        x = x / 255.0
    # Gray images may come without an axis for their only channel.
    if x.ndim + 1 == len(input_shape) and input_shape[-1] == 1:
        x = x[..., np.newaxis]
    return x.astype("float32"), y


if __name__ == "__main__":
    sys.exit(main())
