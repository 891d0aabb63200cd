"""The READMEs against the code: what they quote, name and link to is there."""

import json
import re
from pathlib import Path

import pytest

from minigpt.ops import layernorm
from tests import reports

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path for folder in ("", "minigpt", "tests", "bench") for path in (ROOT / folder).glob("*.md")
]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
SOURCES = [
    path for folder in ("minigpt", "tests", "bench") for path in (ROOT / folder).rglob("*.py")
]

STARTERS = {  # flags of mpirun and of SLURM
    *("--host", "--map-by", "--mca", "--mpi"),
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--signal"),
}


@pytest.fixture(params=DOCUMENTS, ids=NAMES)
def document(request):
    return request.param


@pytest.fixture(scope="module")
def source():
    return "\n".join(path.read_text("utf-8") for path in SOURCES)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_headings_that_are_linked_to_exist():
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)#]+)#([^)]+)\)", path.read_text("utf-8")):
            headings = re.findall(r"^#+ (.+)$", (path.parent / target).read_text("utf-8"), re.M)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_files_that_are_named_exist(document):
    """A path is from the root, from minigpt/, or from the document's own folder."""
    named = set(
        re.findall(r"`([\w./]+/[\w.]+\.(?:py|cu|json|md|png))`", document.read_text("utf-8"))
    )
    homes = ROOT, ROOT / "minigpt", document.parent
    lost = [name for name in named if not any((home / name).exists() for home in homes)]
    assert [name for name in lost if "NAME" not in name] == []


def test_flags_that_are_named_exist(document, source):
    """Every flag is in the source as it is, or a field of a config with underscores."""
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", document.read_text("utf-8")))
    for flag in found - STARTERS:
        field = flag[2:].replace("-", "_")
        known = f'"{flag}"' in source or re.search(rf"^    {field}: .*\boption", source, re.M)
        assert known, flag


def test_the_readme_quotes_layernorm_as_it_is():
    quoted = re.search(r"```python\n(def layernorm.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = Path(layernorm.__file__).read_text("utf-8").splitlines()
    for line in quoted[1].splitlines():
        assert line in code


def test_figures_of_a_step_are_those_of_the_record():
    records = json.loads((ROOT / "bench/results/step.json").read_text("utf-8"))["records"]
    for name in ("README.md", "bench/README.md"):
        text = (ROOT / name).read_text("utf-8")
        for record in records:
            ms = 1e3 * record["time"]["median_s"]
            assert f"{ms:.1f} ms" in text or f"{ms:.0f} ms" in text, (name, record["candidate"])
            if name != "README.md" and record["candidate"] != "minigpt":
                assert f"({record['ratio_to_minigpt']['of_medians']:.2f} x)" in text


def test_figures_of_attention_and_sampling_are_those_of_the_records():
    text = (ROOT / "bench/README.md").read_text("utf-8")
    for record in json.loads((ROOT / "bench/results/attention.json").read_text())["records"]:
        if record["pass"] == "both":
            assert f"({record['ratio_to_sdpa']['of_medians']:.2f} x)" in text
    for file in ("sample.json", "sample-avx2.json"):
        for record in json.loads((ROOT / "bench/results" / file).read_text())["records"]:
            if file == "sample.json" or record["model"] == "nanogpt-baby":
                assert f" {record['tokens_per_s']:,.0f} " in text


def test_figures_of_fine_tuning_are_those_of_the_record():
    text = (ROOT / "bench/README.md").read_text("utf-8")
    text = text.partition("## Fine-tuning on a second text")[2].partition("\n## ")[0]
    text = text.replace("*", "")
    file = ROOT / "bench/results/finetune-loss.json"
    _, scratch, full, *adapters = json.loads(file.read_text("utf-8"))["records"]
    for r in (scratch, full, *adapters):
        figures = f"| {r['val_bpb']:.4f} | {r['val_loss']:.4f} | {1e3 * r['step_s']:.0f} ms ("
        figures += f"{r['step_s'] / full['step_s']:.2f} x) | {r['peak'] / 1e6:.0f} MB |"
        assert f"| {r['trained']:,} | {r['learning_rate']:g} |" in text and figures in text
    assert full["val_bpb"] < scratch["val_bpb"]


def test_the_table_of_what_people_reported_is_that_of_the_command():
    text = (ROOT / "tests" / "README.md").read_text("utf-8")
    assert "\n".join(reports.table()) in text


def test_everything_that_people_reported_is_tried():
    marks = [mark for path in SOURCES for mark in re.findall(r"report\((.+)\)", path.read_text())]
    tried = {case for mark in marks for case in re.findall(r'"(\w+)"', mark)}
    assert reports.CASES.keys() <= tried
