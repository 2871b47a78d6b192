"""What is said in two places about the project is said alike."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.elsewhere

ROOT = Path(__file__).parents[1]
SCRIPT = (ROOT / ".ci/run").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
SETUP = (ROOT / "setup.py").read_text()

# What the library itself stands on, and what builds it.
FOUNDATIONS = {"build", "jax", "keras", "tensorflow", "torch"}


def _steps():
    return re.search(r"^steps=\((.*)\)$", SCRIPT, re.M)[1].split()


def _requirements(name):
    """The names in a list of requirements, without versions."""
    lines = (ROOT / f"requirements/{name}.txt").read_text().splitlines()
    return {
        re.match(r"[\w-]+", line)[0]
        for line in lines
        if not line.startswith("#")
    }


@pytest.fixture(scope="module")
def workflow():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


@pytest.fixture(scope="module")
def tox():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "tox.ini")
    return parser


def test_steps_of_ci_are_targets_of_the_makefile_but_for_the_wheel():
    targets = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split())
    assert [step for step in _steps() if step not in targets] == ["wheel"]
    assert "set -euo pipefail" in SCRIPT


def test_ci_refuses_a_step_that_it_does_not_know():
    found = subprocess.run(
        [ROOT / ".ci/run", "lint", "nonsense"], capture_output=True, text=True
    )
    assert found.returncode == 2
    assert not found.stdout
    assert " ".join(_steps()) in found.stderr
    assert found.stderr.endswith("Received: nonsense\n")


def test_jobs_of_the_workflow_are_the_steps_of_ci(workflow):
    job = workflow["jobs"]["steps"]
    matrix = job["strategy"]["matrix"]
    assert matrix["step"] == _steps()
    assert {row["step"] for row in matrix["include"]} <= set(_steps())
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run ${{ matrix.step }}"]


def test_quick_tests_run_on_every_python_that_setup_names(workflow):
    matrix = workflow["jobs"]["steps"]["strategy"]["matrix"]
    rows = [row for row in matrix["include"] if row["step"] == "test"]
    found = matrix["python"] + [row["python"] for row in rows]
    named = re.findall(r"Python :: (3\.\d+)", SETUP)
    assert sorted(found) == sorted(named)
    assert f'python_requires=">={named[0]}"' in SETUP


def test_oldest_versions_that_setup_allows_are_tested(workflow, tox):
    *_, command = workflow["jobs"]["oldest"]["steps"]
    assert "tox -e py310-tf216 " in command["run"]
    assert "py310-tf216" in tox["tox"]["envlist"].split()
    for name in ("tensorflow", "keras"):
        oldest = re.search(rf'"{name}>=([\d.]+)"', SETUP)[1]
        assert f"tf216: {name}=={oldest}.*" in tox["testenv"]["deps"]


def test_makefile_installs_lists_not_packages():
    commands = re.findall(r"pip install ((?:.*\\\n)*.*)", MAKEFILE)
    words = " ".join(commands).replace("\\\n", " ").split()
    lists = re.findall(r"-r requirements/(\S+)\.txt", " ".join(words))
    assert lists == ["test", "$*"]
    packages = {
        word.strip('"')
        for word in words
        if re.match(r'"?[a-z.]', word) and not word.startswith("requirements/")
    }
    extras = {f".[{x}]" for x in ("demo,test", "formats", "docs")}
    assert packages == {"keras", ".", *extras}


def test_tox_installs_lists_not_packages(tox):
    for section in tox.sections():
        lines = tox[section].get("deps", "").splitlines()
        for line in filter(None, lines):
            wanted = line.split(": ")[-1]
            if wanted.startswith("-r "):
                assert (ROOT / wanted[3:]).exists(), wanted
            else:
                assert wanted.split("=")[0] in FOUNDATIONS, wanted


def test_setup_reads_the_list_of_test_requirements():
    assert '*requirements("test")' in SETUP
    assert '*requirements("lint")' in SETUP
    only_there = _requirements("test") - {"matplotlib", "scikit-learn"}
    assert not [x for x in only_there if f'"{x}' in SETUP]
    # setup.py is run from what is in the archive.
    manifest = (ROOT / "MANIFEST.in").read_text()
    assert "recursive-include requirements *.txt" in manifest


def test_commits_are_checked_by_the_linter_of_the_tests():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    minor = re.search(r"ruff-pre-commit\n    rev: v(\d+\.\d+)", hooks)[1]
    assert f"ruff=={minor}.*" in (ROOT / "requirements/lint.txt").read_text()


def test_changelog_tells_the_kinds_of_changes_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    version = (ROOT / "deel/lip/VERSION").read_text().strip()
    latest = text.split("\n## ")[1]
    assert latest.startswith(version)
    kinds = re.findall(r"^### (\w+)", latest, re.M)
    order = ["Breaking", "Added", "Changed", "Fixed", "Removed"]
    assert kinds
    assert kinds == [kind for kind in order if kind in kinds]


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "README.md", "doc/how_it_works.md"]
)
def test_files_that_the_page_names_exist(page):
    folders = r"deel|doc|tests|examples|benchmarks|requirements|\.ci|\.github"
    named = re.findall(rf"`((?:{folders})/[^`\s]*)`", (ROOT / page).read_text())
    assert named
    assert not [path for path in named if not list(ROOT.glob(path))]
