"""The page of a run in training: at its end, and with --report-every at evaluations, too."""

from minigpt import cli
from minigpt.report.page import NoLibrary

REFRESH_S = 10  # seconds after which a browser looks for a newer page, while the run goes on


def renew_page(run):
    """Write the page after an evaluation, if it is one of those that --report-every asks for.

    What goes wrong is noted, and training goes on.
    """
    every = run.train_config.report_every
    if every and run.state.step // run.train_config.eval_interval % every == 0:
        write_or_note(run, REFRESH_S)
        run.count_seconds(run.clock.lap())


def end_page(run):
    """Write the page of a run that has ended; return its path, or None where there is none."""
    return write_or_note(run, None)


def stop_page(run):
    """Write a page that --report-every has kept current once more: it is renewed no longer."""
    if run.train_config.report_every:
        end_page(run)


def write_or_note(run, refresh):
    """Write the page; return its path, or None and a note. Without the extra there is no note."""
    if run.ranks.rank:
        return None  # the first of several processes writes it
    from minigpt.report.run_page import write_run_page  # slow to import, and --help needs none

    try:
        return write_run_page(run.folder, refresh=refresh)[0]
    except NoLibrary:
        return None
    except Exception as error:  # a run never fails because of its page
        why = cli.one_line(error) or type(error).__name__
        run.notes.append(f"no page: {why}")
        return None
