"""What serving costs: files of our networks beside those of their twins.

Bytes of each file and time of a batch in its own runtime, of the export of
stock operations and of the same network of stock Keras layers. All that this
backend writes, and is installed, is measured in turns. Prints Markdown.

    python benchmarks/serving.py
    python benchmarks/serving.py mlp-512 --batches 1 64
    KERAS_BACKEND=torch python benchmarks/serving.py
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import keras
import measure
import numpy as np
from networks import NETWORKS
from networks import data

from deel.lip.export._formats import FORMATS
from deel.lip.export._formats import missing

BACKEND = keras.backend.backend()


def formats_here():
    """The formats that this backend writes, and that can be run here."""
    return [
        form
        for form in FORMATS.values()
        if BACKEND in form.writers
        and not missing([*form.writers[BACKEND], form.runtime])
    ]


def size_of(folder):
    """Bytes of all files in a folder."""
    return sum(x.stat().st_size for x in folder.rglob("*") if x.is_file())


def served(form, model, x, folder):
    """Writes a model, and opens the file.

    Returns:
        Pair: the bytes, and a function from a batch to its scores.
    """
    folder.mkdir()
    path = folder / f"model{form.suffix}"
    form.write(model, path)
    run = form.open(str(path))
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(run(x), expected, rtol=1e-4, atol=1e-4)
    return size_of(folder), run


def measure_network(name, args):
    """Measures the files of a pair of networks.

    Returns:
        Dictionary by format: bytes, and for each size of a batch summaries of
        the times and their ratio.
    """
    network = NETWORKS[name]
    ours = network.ours(network.width, network.models)
    twin = network.stock(network.width)
    x, _ = data(network, max(args.batches))
    found, runs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for form in formats_here():
            size = {}
            models = {"ours": form.stock_model(ours), "stock": twin}
            for kind, model in models.items():
                place = Path(folder) / f"{form.name}-{kind}"
                size[kind], runs[form.name, kind] = served(
                    form, model, x, place
                )
            found[form.name] = {"size": size, "runtime": form.runtime}
        for count in args.batches:
            batch = x[:count]
            tasks = {
                key: measure.repeated(lambda run=run, batch=batch: run(batch))
                for key, run in runs.items()
            }
            times = measure.in_turns(tasks, args.rounds, args.seconds)
            for form in found:
                mine, theirs = times[form, "ours"], times[form, "stock"]
                found[form][count] = {
                    "ours": measure.summary(mine),
                    "stock": measure.summary(theirs),
                    "ratio": measure.ratio(mine, theirs),
                }
    return found


def markdown(found, batches):
    """The lines of a table: ours, the twin, and their ratio in parentheses."""
    columns = ["format", "runtime", "kB"]
    columns += [f"ms, batch of {count}" for count in batches]
    rows = [columns, ["---"] * len(columns)]
    for form, values in found.items():
        size = values["size"]
        row = [f"`{form}`", f"`{values['runtime']}`"]
        row += [f"{size['ours'] / 1e3:.0f}; {size['stock'] / 1e3:.0f}"]
        for count in batches:
            times = values[count]
            ours, stock = (times[kind]["median"] for kind in ("ours", "stock"))
            row += [f"{ours:.3g}; {stock:.3g} ({times['ratio']:.2f})"]
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "networks",
        nargs="*",
        metavar="NETWORK",
        help=f"some of {', '.join(NETWORKS)}; by default mnist-conv",
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[1, 256],
        metavar="N",
        help="images in a batch",
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="measurements of each file"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="length of a measurement"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    unknown = [name for name in args.networks if name not in NETWORKS]
    if unknown:
        parser.error(
            f"networks must be among {', '.join(NETWORKS)}. "
            f"Received: {', '.join(unknown)}"
        )
    return args


def main(argv=None):
    """Measures and prints."""
    args = parse_arguments(argv)
    results = {}
    for name in args.networks or ["mnist-conv"]:
        results[name] = measure_network(name, args)
        print(f"\n`{name}` on {BACKEND}: ours; its twin (ratio)\n")
        print("\n".join(markdown(results[name], args.batches)))
    measure.write_json(args.json, results)


if __name__ == "__main__":
    main()
