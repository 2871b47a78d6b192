"""Writes a saved model for serving: `python -m deel.lip.export`.

    python -m deel.lip.export MODEL.keras OUT.onnx
    python -m deel.lip.export MODEL.keras OUT.tflite --data TEST.npz --max 1.0

What is written are stock layers and operations alone. It is run by its own
runtime where that is installed, and its scores are compared with those of the
model before the file appears.

The exit status is 0 if the file was written; 1 if the bound exceeds `--max`, or
the scores are others; 2 if something was wrong. No file is written then.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from deel.lip._command import add_data_arguments
from deel.lip._command import add_model_arguments
from deel.lip._command import certified_samples
from deel.lip._command import exceeds_limit
from deel.lip._command import load_model
from deel.lip._command import print_constants
from deel.lip._command import proven_bounds
from deel.lip.export._formats import FORMATS
from deel.lip.export._formats import format_of
from deel.lip.export._formats import how_to_install
from deel.lip.export._formats import missing

# Of the largest score. Devices that round factors to ten bits stay below it;
# what was converted to another function does not.
_TOLERANCE = 1e-2


def main(argv=None):
    """Runs the command.

    Returns:
        Integer, the exit status.
    """
    args = _parse_arguments(argv)
    try:
        form = format_of(args.out, args.format)
        form.check_written_here()
        _check_destination(args)
        model = load_model(args.model)
        exported = form.stock_model(model)
        # What is written is what is certified; but layers whose constants are
        # given may be operations of other names there.
        certified = model if args.constant else exported
        bound, by_output, _ = proven_bounds(certified, args)
        print_constants(model, bound, by_output, args)
        if exceeds_limit(bound, by_output, args):
            return 1
        x, certificates = _random_samples(model, args), None
        if args.data is not None:
            x, certificates = certified_samples(certified, args)
        # Beside the destination, so that moving what is whole is all that is
        # done there.
        with tempfile.TemporaryDirectory(
            prefix=".export-", dir=args.out.parent
        ) as folder:
            path = Path(folder) / args.out.name
            form.write(exported, path)
            print(
                f"\n{args.out}: format '{form.name}', "
                f"{_size(Path(folder)) / 1e3:.1f} kB"
            )
            if not _has_scores_of(model, form, path, x, certificates):
                return 1
            # OpenVINO writes two files.
            parts = list(Path(folder).iterdir())
            for part in parts:
                _check_free(args.out.parent / part.name, args)
            for part in parts:
                _move(part, args.out.parent / part.name)
    except (OSError, TypeError, ValueError) as error:
        print(f"Nothing is written: {error}", file=sys.stderr)
        return 2
    return 0


def _parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="python -m deel.lip.export",
        description="Writes a saved model for serving, as stock layers and "
        "operations alone, and prints its proven Lipschitz constant. Nothing "
        "is written if that exceeds --max.",
    )
    add_model_arguments(parser)
    ends = ", ".join(
        f"{x.suffix or 'none'}: {name}" for name, x in FORMATS.items()
    )
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help=f"the file or folder to write; its suffix is the format ({ends})",
    )
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help="the format, where the suffix does not say it",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what is there already",
    )
    add_data_arguments(parser)
    return parser.parse_args(argv)


def _check_destination(args):
    if not args.out.parent.is_dir():
        raise ValueError(
            f"Expected a folder that exists. Received: '{args.out.parent}'"
        )
    if args.out.exists() and args.out.samefile(args.model):
        raise ValueError(
            "Expected another file than that of the model, which can be "
            f"trained further. Received: '{args.out}'"
        )
    _check_free(args.out, args)


def _check_free(path, args):
    """Raises ValueError unless a path is free, or may be replaced."""
    if path.exists() and not args.overwrite:
        raise ValueError(
            "Expected a path where nothing is yet, or --overwrite. "
            f"Received: '{path}'"
        )
    if path.is_dir() and not (path / "saved_model.pb").exists():
        raise ValueError(
            "Expected a SavedModel to overwrite, and no other folder. "
            f"Received: '{path}'"
        )


def _random_samples(model, args):
    """Two samples for a model of one input of a known shape, or None."""
    if len(model.inputs) != 1:
        return None
    shape = args.input_shape or model.input_shape[1:]
    if None in shape:
        return None
    return np.random.default_rng(0).uniform(size=(2, *shape)).astype("float32")


def _size(path):
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _has_scores_of(model, form, path, x, certificates):
    """Runs what was written; False, and why, if its scores are others."""
    absent = missing([form.runtime])
    if x is None or absent:
        how = how_to_install(absent) if absent else "--input-shape"
        print(f"Not compared with the model: that needs `{how}`.")
        return True
    expected = model.predict(x, verbose=0)
    found = form.run(path, x)
    difference = np.max(np.abs(found - expected))
    print(
        f"Run by {form.runtime}: {len(x)} samples, scores within "
        f"{difference:.2g} of those of the model"
    )
    if certificates is not None:
        prediction = _classes(found)
        others = np.sum(prediction != certificates.prediction)
        accuracy = np.mean(prediction == certificates.label)
        print(
            f"Accuracy of what was written: {accuracy:.4f}, with {others} "
            "predictions other than the certified ones"
        )
    # Also false for what is no number.
    if difference <= _TOLERANCE * np.max(np.abs(expected)):
        return True
    print(
        f"Nothing is written: expected scores within {_TOLERANCE:g} of the "
        f"largest one. Received: difference={difference:.2g}",
        file=sys.stderr,
    )
    return False


def _classes(scores):
    """Classes as `certify` counts them."""
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).astype("int64")
    return np.argmax(scores, axis=1)


def _move(source, target):
    """Moves a file or folder to where one may be already."""
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    source.replace(target)


if __name__ == "__main__":
    sys.exit(main())
