"""Prints what is proven of a saved model: `python -m deel.lip.certification`.

    python -m deel.lip.certification MODEL.keras --max 1.0
    python -m deel.lip.certification MODEL.keras --data TEST.npz --attack 200

The exit status is 0 if the bound is within `--max` (any bound is, without it)
and no attack broke a certificate; 1 if not; 2 if nothing could be proven.
"""

import argparse
import sys

import numpy as np

from deel.lip._command import add_data_arguments
from deel.lip._command import add_model_arguments
from deel.lip._command import certified_samples
from deel.lip._command import count
from deel.lip._command import exceeds_limit
from deel.lip._command import load_model
from deel.lip._command import print_constants
from deel.lip._command import proven_bounds
from deel.lip.certification import attack_distances


def main(argv=None):
    """Runs the command.

    Returns:
        Integer, the exit status.
    """
    args = _parse_arguments(argv)
    if args.attack and args.data is None:
        print("An attack needs --data with samples.", file=sys.stderr)
        return 2
    if args.local and args.data is None:
        print("Constants near samples need --data.", file=sys.stderr)
        return 2
    if args.attack and args.top_k is not None:
        print(
            "An attack looks for another best class: it goes without --top-k.",
            file=sys.stderr,
        )
        return 2
    try:
        model = load_model(args.model)
        bound, by_output, table = proven_bounds(model, args)
        _print_table(table)
        print()
        print_constants(model, bound, by_output, args)
        broken = 0
        if args.data is not None:
            broken = _certify(model, args)
    except (OSError, TypeError, ValueError) as error:
        print(f"Nothing is proven: {error}", file=sys.stderr)
        return 2
    if exceeds_limit(bound, by_output, args):
        return 1
    return int(broken > 0)


def _parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="python -m deel.lip.certification",
        description="Bounds the Lipschitz constant of a saved model, layer by "
        "layer, and certifies its predictions.",
    )
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument(
        "--attack",
        type=count,
        default=0,
        metavar="N",
        help="attack the first samples, within and beyond their certificates",
    )
    parser.add_argument(
        "--top-k",
        type=count,
        metavar="K",
        help="certify the set of the K best classes, not the best one",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="constants for each sample, of dense layers with ReLU at the end",
    )
    return parser.parse_args(argv)


def _saved(row):
    return "" if row.chain > 0.9995 else f", {row.chain:.3f} in the chain"


def _print_table(table):
    width = max([len("layer"), *(len(row.name) for row in table)])
    kind = max([len("type"), *(len(row.type) for row in table)])
    print(f"{'layer':{width}}  {'type':{kind}}  {'bound':>12}         method")
    for row in table:
        relation = "exact" if row.exact else "upper"
        print(
            f"{row.name:{width}}  {row.type:{kind}}  {row.value:12.6f}  "
            f"{relation}  {row.method}{_saved(row)}"
        )


def _certify(model, args):
    x, certificates = certified_samples(
        model, args, top_k=args.top_k, local=args.local
    )
    if not args.attack:
        return 0
    attacked = min(args.attack, len(x))
    radius = certificates.radius[:attacked]
    # The attack runs in float32, which certificates of real numbers say
    # nothing of.
    proven = radius
    if certificates.float32_radius is not None:
        proven = certificates.float32_radius[:attacked]
    distances = attack_distances(
        model,
        x[:attacked],
        certificates.prediction[:attacked],
        [radius, 1.5 * radius + 1e-3],
    )
    broken = int(np.sum((distances <= proven) & (proven > 0)))
    found = int(np.sum(np.isfinite(distances)))
    print(
        f"Attacks: {attacked} samples, {found} adversarial within 1.5 times "
        f"the radius, {broken} certificates broken of "
        f"{int(np.sum(proven > 0))} that hold in float32"
    )
    return broken


if __name__ == "__main__":
    sys.exit(main())
