"""One training step of a tiny model, on a sentence of the reader's own: `minigpt data --step`.

The ops run as they are written, and a recorder keeps what each of their lines assigns; nothing is
computed a second time for show. From Python:

    from minigpt.report.step.record import record_step, stages_of

recorder    what the lines of the ops assign, while they run
record      a tiny model, both of its passes and the optimizer's step, recorded
stages      what is shown of it, op by op: formulas, matrices, where their cells come from
numbers     digits, the same in the terminal and in the page
terminal    the walk as text, 80 columns wide
page        the walk as a page, forward and backward side by side
command     `minigpt data`, with --step and without
"""
