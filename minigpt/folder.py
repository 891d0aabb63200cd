"""The folder of a run: its files, and what becomes of them when a run is begun or resumed."""

import contextlib
import json
import os

from minigpt import UserError

METRICS, BEST, LAST, PICTURE = "metrics.jsonl", "best.safetensors", "last.safetensors", "loss.png"
FILES = (METRICS, BEST, LAST, PICTURE)


@contextlib.contextmanager
def writing(path):
    """Make a UserError of what goes wrong while `path` is written."""
    try:
        yield path
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_folder(folder, overwrite):
    """Raise a UserError if a new run cannot have the folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out-dir {folder} is a file; name a folder")
    if any((folder / name).exists() for name in FILES) and not overwrite:
        resume = "go on with it by --resume, " if (folder / LAST).exists() else ""
        raise UserError(
            f"--out-dir {folder} holds another run: {resume}lose it by --overwrite, or name "
            "another folder"
        )


def clear_folder(folder):
    """Make the folder of a new run, or empty it of an old one."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)


def cut_metrics(path, step):
    """Cut from a resumed run's metrics what came after `step`, and half-written lines."""
    lines = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept = []
    for line in lines.splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    with writing(path):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
