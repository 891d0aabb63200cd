"""The loss curve of a run: training and validation loss over the steps."""

from minigpt.files import PICTURE, read_metrics
from minigpt.report.picture import drawing, save

LABELS = {"train_loss": "training", "val_loss": "validation"}
EARLY, MARGIN = 0.1, 0.05  # fraction of the steps left out of the y limit, and room above the rest


def draw_losses(folder):
    """Draw loss.png from the metrics and return its path.

    Raises
    ------
    NoPicture
        Whatever fails.
    """
    with drawing() as Figure:
        figure = Figure(figsize=(7, 4), layout="constrained")
        plot_losses(figure, read_metrics(folder))
        save(figure, folder / PICTURE, dpi=120)
    return folder / PICTURE


def plot_losses(figure, lines):
    """Plot the losses of metrics, an iterable of dicts, into a figure."""
    axes, lines = figure.subplots(), list(lines)
    points = {key: [] for key in LABELS}
    for line in lines:
        for key, found in points.items():
            if line.get(key) is not None:
                found.append((line["step"], line[key]))
    later, bits = [], [line["val_bpb"] for line in lines if line.get("val_bpb") is not None]
    for key, label in LABELS.items():
        if key == "val_loss" and bits:
            label += f" ({bits[-1]:.3f} bits per byte at the end)"
        axes.plot(*zip(*points[key], strict=True), label=label, marker="o" * (key == "val_loss"))
        later += [loss for step, loss in points[key] if step > EARLY * points[key][-1][0]]
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_ylim(top=max(later) + MARGIN * (max(later) - min(later)))
    axes.grid(alpha=0.3)
    axes.legend()
