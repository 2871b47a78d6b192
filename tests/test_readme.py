"""The program on the first page runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.elsewhere

README = Path(__file__).parent.parent / "README.md"


def test_program_on_the_first_page_runs(capsys):
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names = {}
    exec(compile(program, str(README), "exec"), names)
    output = capsys.readouterr().out
    found = np.array(
        re.findall(r"(?:accuracy|proven within .*): (0\.\d+)$", output, re.M),
        float,
    )
    shown = re.findall(
        r"(?:accuracy|proven within .*): (0\.\d+)$", README.read_text(), re.M
    )
    assert found.shape == (3,)
    # What varies with the machine and the backend is the last two digits.
    np.testing.assert_allclose(found, np.array(shown, float), atol=0.05)
    assert found[0] > 0.96
