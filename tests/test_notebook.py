"""A notebook: training with its progress bar, text, gradients and attention, cell by cell."""

import importlib.util
import os
from pathlib import Path

import pytest

from tests.tools.training import TEXT

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, to run a notebook")
pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel, to run a notebook")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
CELLS = (
    "import minigpt",
    "model = minigpt.fit('my.txt', n_layer=1, n_head=2, n_embd=8, block_size=8, max_iters=40,\n"
    "                    eval_interval=20, threads=2)\n"
    "model",
    "text = model.generate('Line', max_new_tokens=20)\n"
    "for piece in model.stream('Line', max_new_tokens=20):\n"
    "    print(piece, end='')\n"
    "text",
    "loss, grads = model.loss_and_gradients('Line 1', 'ine 12')\n"
    "grads['h'][0]['attn']['c_attn']['w'].shape",
    "model.attention('Line 1').weights.shape",
    "import threading\n"
    "thread = threading.Thread(target=lambda: minigpt.fit('my.txt', max_iters=2, n_layer=1,\n"
    "                                                     n_embd=8, n_head=2, block_size=8))\n"
    "thread.start()\n"
    "thread.join()",
    "minigpt.fit('my.txt', out_dir='run', max_iters=2, n_layer=1, n_embd=8, n_head=2,\n"
    "            block_size=8, progress=False)\n"
    "minigpt.load('run')",
)


def text_of(outputs, stream):
    """Return what a cell has written to a stream."""
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == stream)


def value_of(outputs):
    """Return what a cell shows of its last line."""
    (value,) = (o.data["text/plain"] for o in outputs if o.output_type == "execute_result")
    return value


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of the cells."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "my.txt").write_text(TEXT, encoding="utf-8")
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources=resources
    )
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    client.execute(env={**os.environ, "PYTHONPATH": path})
    return [cell.outputs for cell in notebook.cells]


def test_no_cell_fails_or_warns(outputs):
    for cell in outputs:
        assert all(o.output_type != "error" for o in cell)
        assert "Warning" not in text_of(cell, "stderr") + text_of(cell, "stdout")
    for cell in (outputs[0], *outputs[2:5], outputs[6]):
        assert text_of(cell, "stderr") == ""


def test_training_shows_a_progress_bar_and_a_line_per_evaluation(outputs):
    bar = text_of(outputs[1], "stderr")
    if importlib.util.find_spec("ipywidgets") is None:
        assert "%|" in bar and "step 40 of 40" in bar and "loss" in bar
    else:
        assert bar == ""
    lines = text_of(outputs[1], "stdout").splitlines()
    assert [line.split()[1] for line in lines] == ["20", "40"]
    assert value_of(outputs[1]).startswith("<minigpt.Model: a GPT of ")


def test_cells_show_what_they_have_made(outputs):
    written = text_of(outputs[2], "stdout")
    assert len(written) == 20 and value_of(outputs[2]) == repr(written)
    assert value_of(outputs[3]) == "(8, 24)"
    assert value_of(outputs[4]) == "(1, 2, 6, 6)"
    assert value_of(outputs[6]).startswith("<minigpt.Model: a GPT of ")
