"""Runs the notebooks, or those named, and stores what they show.

    python doc/run_notebooks.py [demo0 demo3 ...]

`DEEL_LIP_DATA` may name a folder with `mnist.npz` and `cifar10.npz`, for
machines that cannot download. What differs from run to run without being a
result, such as times of execution, is not stored.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"


def run(path):
    """Executes one notebook in place."""
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=3600, record_timing=False, coalesce_streams=True
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Chatter of TensorFlow about the machine.
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr"
            ]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    seconds = time.perf_counter() - start
    size = path.stat().st_size / 1000
    print(f"{path.name}: {seconds:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("PYTHONPATH", str(FOLDER.parents[1]))
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        run(FOLDER / f"{name}.ipynb")
