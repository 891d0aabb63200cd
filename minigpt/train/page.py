"""The page of a run in training: at its end, and with --report-every at evaluations, too."""

import time

from minigpt import cli
from minigpt.report.vega import NoLibrary, check_library

REFRESH_S = 10  # seconds after which a browser looks for a newer page, while the run goes on
PAGE_S = 5.0  # that a page takes, at most about, as long as none has shown it
FRACTION = 0.05  # of the run's seconds that all pages amid it together take, at most
END_FRACTION = 0.1  # of a wall-clock budget that the page at the end may take, unless one is there


class Pages:
    """Writes the pages of a run.

    Where its end goes by steps, their time does not count as training time. A wall-clock budget is
    one for the whole command: pages count, and time for the one at the end is kept back.

    Parameters
    ----------
    train_config : TrainConfig
    ranks : Alone or Ranks

    Attributes
    ----------
    spent_s : float
        On pages so far.
    last_s : float or None
        That the last one has taken.
    at_end : bool
        Whether there is one at the end.
    """

    def __init__(self, train_config, ranks):
        self.budget_s, self.spent_s, self.last_s = train_config.max_seconds, 0.0, None
        self.at_end = ranks.first(installed)

    @property
    def reserve_s(self):
        """Seconds of a wall-clock budget that are kept for the page at the end."""
        if not (self.budget_s and self.at_end):
            return 0.0
        if self.last_s is not None:
            return self.last_s
        return PAGE_S if END_FRACTION * self.budget_s >= PAGE_S else 0.0

    def fit(self, run):
        """Tell whether there is time for another page amid the run.

        The first is written wherever its time does not count.
        """
        if self.last_s is None and not self.budget_s:
            return True
        cost_s = PAGE_S if self.last_s is None else self.last_s
        if self.budget_s and cost_s > self.budget_s - run.reserve_s - run.state.seconds:
            return False
        return self.spent_s + cost_s <= FRACTION * run.state.seconds

    def renew(self, run):
        """Write the page after an evaluation, if --report-every asks for it and there is time.

        What goes wrong is noted, and training goes on. That of the last step is left to the end.
        """
        every = run.train_config.report_every
        due = every and run.state.step // run.train_config.eval_interval % every == 0
        if not due or run.state.over or not self.fit(run):
            return
        run.count_seconds(run.clock.lap())
        start = run.clock.seconds
        write_or_note(run, REFRESH_S)
        self.last_s = run.clock.peek() - start
        self.spent_s += self.last_s
        if self.budget_s:
            run.count_seconds(run.clock.lap())
        else:
            run.clock.leave_out()

    def late(self, run):
        """Tell whether a run that is over has no time for its page: none is kept, nor left."""
        clock = run.clock
        if not self.budget_s or self.last_s is not None or not run.state.over:
            return False
        return self.budget_s - clock.seconds - (time.perf_counter() - clock.last) < PAGE_S


def installed():
    """Tell whether there is the library for pages."""
    try:
        check_library()
    except NoLibrary:
        return False
    return True


def end_page(run):
    """Write the page of a run that has ended; return its path, or None where there is none."""
    if run.ranks.rank or not run.pages.at_end:
        return None
    if run.pages.late(run):
        command = cli.command("python -m minigpt.report", out_dir=run.folder)
        run.notes.append(f"no page: --max-seconds leaves no time for it; write it by {command}")
        return None
    return write_or_note(run, None)


def stop_page(run):
    """Write a page that --report-every has kept current once more: it is renewed no longer.

    Whoever calls this prints no notes of the run any more, so they are printed here.
    """
    if run.train_config.report_every:
        end_page(run)
        while run.notes:
            cli.note(run.notes.pop(0))


def write_or_note(run, refresh):
    """Write the page; return its path, or None and a note. Without the extra there is no note."""
    if run.ranks.rank:
        return None  # the first of several processes writes it
    from minigpt.report.run_page import write_run_page  # slow to import, and --help needs none

    try:
        return write_run_page(run.folder, refresh=refresh, data=run.data)[0]
    except NoLibrary:
        return None
    except Exception as error:  # a run never fails because of its page
        why = cli.one_line(error) or type(error).__name__
        run.notes.append(f"no page: {why}")
        return None
