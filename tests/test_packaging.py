"""What pip shows and requires, under both names; what an empty one says."""

import os
import re
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.elsewhere

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", params=["deel-lip", "deel-lip-core"])
def metadata(request, tmp_path_factory):
    """PKG-INFO of the package of that name, from setup.py."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("egg")
    environment = dict(os.environ)
    environment["DEEL_LIP_CORE"] = str(int(request.param == "deel-lip-core"))
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.egg-info/PKG-INFO")
    found = Parser().parsestr(path.read_text(encoding="utf-8"))
    found["requires"] = path.with_name("requires.txt").read_text()
    assert found["Name"].replace("_", "-") == request.param
    return found


def _requires(metadata, extra=""):
    """Names without versions, of `requires.txt` or of one of its sections."""
    sections = re.split(
        r"^\[(.*)\]$", "[]\n" + metadata["requires"], flags=re.M
    )
    lines = dict(zip(sections[1::2], sections[2::2], strict=True))[extra]
    return {re.match(r"[\w-]+", line)[0] for line in lines.split()}


def test_only_the_first_name_requires_tensorflow(metadata):
    core = metadata["Name"].endswith("core")
    backend = set() if core else {"tensorflow"}
    assert _requires(metadata) == {"keras", "numpy"} | backend


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_each_backend_is_an_extra(metadata, backend):
    assert _requires(metadata, backend) == {backend}


def test_metadata_says_whose_it_is_and_where(metadata):
    assert metadata["Author"]
    assert metadata["Keywords"]
    urls = dict(x.split(", ") for x in metadata.get_all("Project-URL"))
    assert {"Documentation", "Source", "Changelog", "Issues"} <= set(urls)
    assert all(url.startswith(urls["Source"]) for url in urls.values())


def test_links_of_the_long_description_are_absolute(metadata):
    text = metadata.get_payload() or metadata["Description"]
    assert "# deel.lip" in text
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) > 10
    assert not [x for x in targets if not x.startswith("https://")]
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert images
    assert all("raw.githubusercontent.com" in image for image in images)


def test_links_of_the_readme_lead_to_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert targets
    assert not [x for x in targets if not (ROOT / x.split("#")[0]).exists()]


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_backend_that_is_not_installed_is_named_in_one_sentence(
    backend, tmp_path
):
    # Stands in for Keras, whose import fails like this without its backend.
    (tmp_path / "keras.py").write_text(f"import {backend}\n")
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules[{backend!r}] = None\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", "import deel.lip"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(
        f"ImportError: Keras is set to the backend `{backend}`"
    )
    assert f'"deel-lip-core[{backend}]"' in last
    assert "keras.py" not in done.stderr
