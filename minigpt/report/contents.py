"""The sections of a page that are computed from a run: its metrics, its checkpoint, its data."""

from minigpt.report.cost import cost_section
from minigpt.report.gradients import gradients_section
from minigpt.report.passages import passages_section
from minigpt.report.run_data import open_run_data
from minigpt.report.samples import samples_section
from minigpt.report.tokens import tokens_section


def computed_sections(checkpoint, folder, lines):
    """Return the Sections, as many as there is something for, and those that say what is missing.

    It takes a few seconds at most, on a CPU, whatever the size of the model.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of the run, as of load_plain, on the host.
    folder : Path
        The run's: where relative names of data are looked for, too.
    lines : list of dict
        Of its metrics: those of metrics.read_run.
    """
    data, why = open_run_data(checkpoint, folder)
    found = (
        samples_section(lines),
        gradients_section(checkpoint, data),
        tokens_section(checkpoint, data),
        passages_section(checkpoint, data, why),
        cost_section(checkpoint, data, lines),
    )
    return [section for section in found if section is not None]
