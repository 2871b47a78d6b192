"""The programs of the pages run, the notebooks too, and no name is left out."""

import inspect
import json
import re
from pathlib import Path

import keras
import patterns
import pytest
from test_surface import NAMES

pytestmark = pytest.mark.elsewhere

DOC = Path(__file__).parents[1] / "doc"
QUICK_START = DOC / "quickstart.md"
PAGES = sorted(
    path
    for path in DOC.rglob("*.md")
    if "_build" not in path.parts
    and "```python" in path.read_text()
    and path != QUICK_START
)
NOTEBOOKS = sorted((DOC / "notebooks").glob("*.ipynb"))

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="The pages show the default backend.",
)


def program_of(page):
    """The blocks of a page as one program, each line at its own number."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = "```"
        lines.append(line if inside and line != "```" else "")
    return "\n".join(lines)


def run(program, path):
    names = {"__name__": path.stem}
    exec(compile(program, str(path), "exec"), names)
    return names


@on_tensorflow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_programs_of_the_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = program_of(page)
    arguments = inspect.signature(keras.callbacks.BackupAndRestore).parameters
    if "double_checkpoint" in program and "double_checkpoint" not in arguments:
        pytest.skip("The page shows what this version of Keras lacks.")
    if "optimizers.Muon" in program and not hasattr(keras.optimizers, "Muon"):
        pytest.skip("The page shows what this version of Keras lacks.")
    run(program, page)


def test_programs_keep_their_line_numbers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\n```\n\n```\nno program\n```\n")
    assert program_of(page).splitlines()[3] == "x = 1"
    assert "no program" not in program_of(page)
    assert "text" not in program_of(page)


def test_quick_start_certifies_and_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    names = run(program_of(QUICK_START), QUICK_START)
    assert names["correct"].mean() > 0.96
    assert (names["correct"] & (names["radii"] > 0.3)).mean() > 0.78
    assert names["difference"] < 1e-5
    assert "proven within 0.1" in capsys.readouterr().out


@pytest.mark.parametrize("module", [name for name in NAMES if "." in name[5:]])
def test_every_public_module_has_a_page_of_the_reference(module):
    page = (DOC / "api" / f"{module}.md").read_text()
    assert f"\n{module}\n" in (DOC / "api" / "index.md").read_text()
    tables = re.findall(r"autosummary::\n(?:   :.*\n)+\n((?:   \w+\n)+)", page)
    listed = {name for table in tables for name in table.split()}
    listed |= set(re.findall(r"\.\. autodata:: (\w+)", page))
    # Activations and modules inside have pages of their own.
    elsewhere = set(NAMES["deel.lip.activations"].split()) | {"unconstrained"}
    if module == "deel.lip.activations":
        elsewhere = set()
    assert listed == set(NAMES[module].split()) - elsewhere
    # A page for each, which the table links to.
    assert page.count(":toctree: generated") == len(tables)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """Files of the shapes of MNIST and CIFAR-10: a pattern for each class."""
    folder = tmp_path_factory.mktemp("data")
    for name, shape in (("mnist", (28, 28)), ("cifar10", (32, 32, 3))):
        patterns.write(
            folder / f"{name}.npz", *patterns.images(shape, 200, 100)
        )
    return folder


def cells_of(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


@pytest.mark.slow
@on_tensorflow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(
    notebook, data_folder, tmp_path, monkeypatch
):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Fewer epochs; what they show is for `make notebooks` to say.
    monkeypatch.setenv("DEEL_LIP_SHORT", "1")
    monkeypatch.setenv("DEEL_LIP_DATA", str(data_folder))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": notebook.stem}
    for number, cell in enumerate(cells_of(notebook)):
        if cell["cell_type"] != "code":
            continue
        if "install" in cell["metadata"].get("tags", []):
            continue
        source = "".join(cell["source"])
        exec(compile(source, f"{notebook.name}[{number}]", "exec"), names)
    pyplot.close("all")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_opens_on_colab_and_installs_the_library(notebook):
    first, second, *_ = cells_of(notebook)
    badge = "".join(first["source"])
    setup = (DOC.parent / "setup.py").read_text()
    repository = re.search(r'^REPOSITORY = "https://(.*)"', setup, re.M)[1]
    branch = re.search(r'^BRANCH = "(.*)"', setup, re.M)[1]
    address = repository.replace("github.com", "research.google.com/github")
    folder = f"{address}/blob/{branch}/doc/notebooks"
    assert f"https://colab.{folder}/{notebook.name})" in badge
    assert badge.startswith("# ")
    assert second["metadata"]["tags"] == ["install"]
    install = "".join(second["source"])
    # Before the release and after it.
    assert 'pip install -q "deel-lip>=2" || ' in install
    assert f'"git+https://{repository}@{branch}"' in install


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_of_the_notebook_are_readable(notebook):
    for cell in cells_of(notebook):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", [])))
            assert "np.float64(" not in text
            # Names of layers that a summary has no place for.
            assert "…" not in text


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_shows_the_outputs_of_one_run(notebook):
    code = [c for c in cells_of(notebook) if c["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [x for x in outputs if x["output_type"] == "error"]
    assert [x for x in outputs if "image/png" in x.get("data", {})]
    assert notebook.stat().st_size < 500_000


def test_there_are_twelve_notebooks_and_all_are_on_the_site():
    index = (DOC / "notebooks" / "index.md").read_text()
    assert len(NOTEBOOKS) == 12
    for notebook in NOTEBOOKS:
        assert f"\n{notebook.stem}\n" in index


@pytest.mark.parametrize("folder", ["guide", "notebooks", "recipes"])
def test_each_entry_of_an_index_has_a_sentence_and_a_picture(folder):
    index = (DOC / folder / "index.md").read_text()
    cards = re.findall(
        r":::\{grid-item-card\} .+\n:link: (\w+)\n:link-type: doc\n"
        r":img-top: (\S+)\n(.+)\n:::",
        index,
    )
    listed = index.split("```{toctree}")[1].split("```")[0].split()
    assert [link for link, _, _ in cards] == listed[1:]
    for _, picture, sentence in cards:
        assert (DOC / folder / picture).exists()
        assert sentence.endswith((".", "?"))


def test_figures_of_both_themes_are_there():
    figures = [
        page.parent / name
        for page in DOC.rglob("*.md")
        if "_build" not in page.parts
        for name in re.findall(r"^```\{themed\} (\S+)", page.read_text(), re.M)
    ]
    assert figures
    for figure in figures:
        for theme in ("light", "dark"):
            assert figure.with_name(f"{figure.name}-{theme}.svg").exists()


def test_address_of_the_repository_is_in_one_place():
    setup = (DOC.parent / "setup.py").read_text()
    address = re.search(r'^REPOSITORY = "(.*)"', setup, re.M)[1]
    pages = [*DOC.rglob("*.md"), DOC / "conf.py", DOC.parent / "README.md"]
    assert not [page for page in pages if address in page.read_text()]
