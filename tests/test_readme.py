"""The program on the first page runs as it stands."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_program_on_the_first_page_runs(capsys):
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names = {}
    exec(compile(program, str(README), "exec"), names)
    assert names["model"].history.history["val_accuracy"][-1] > 0.85
    output = capsys.readouterr().out
    radii = np.array(output.split("radii: [")[1].split("]")[0].split(), float)
    assert radii.shape == (5,)
    assert np.all(radii > 0)
