"""The notebooks run from top to bottom, use the public interface only, and are stored with small outputs."""

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_PNG_BYTES = 300_000

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def images(notebook):
    return [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]


def texts(notebook):
    """What each cell prints; a kernel on a busy machine sends it in pieces."""
    return ["".join(output.text for output in cell.outputs if output.output_type == "stream")
            for cell in notebook.cells if cell.cell_type == "code"]


def test_the_capacity_planning_notebook_is_there():
    assert "choose_tp" in [path.stem for path in NOTEBOOKS]


@each
def test_notebook_runs_and_prints_what_is_stored(path):
    stored = read(path)
    fresh = read(path)
    NotebookClient(fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert len(images(fresh)) == len(images(stored)) > 0
    assert texts(fresh) == texts(stored), (
        "the answers changed; look at them, then: jupyter nbconvert --to notebook --execute --inplace "
        f"{path.relative_to(FOLDER.parent)}")


@each
def test_stored_outputs_are_small_and_free_of_errors(path):
    notebook = read(path)
    assert sum(len(base64.b64decode(image)) for image in images(notebook)) < MAX_PNG_BYTES
    assert [output for output in outputs(notebook) if output.output_type == "error"] == []
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@each
def test_notebook_uses_the_public_interface_only(path):
    source = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert re.findall(r"(?:from|import) (tpplanner\.[\w.]+)", source) == []
    assert "import tpplanner" in source
