"""Write a report's three files: report.json, report.html and README.md (the model card)."""

from __future__ import annotations

import os
from pathlib import Path

from hftl.errors import UserError
from hftl.results.report import card, page
from hftl.results.report.report import Report


def write(report: Report, folder: str | os.PathLike[str]) -> None:
    """Write report.json, report.html and README.md (the model card); each is replaced whole or left as it was.

    Raises:
        UserError: the folder cannot be written, e.g. because the disk is full.
    """
    folder = Path(folder)
    report.folder = report.folder or folder.as_posix()
    # The page and the card are made from what report.json holds, so that they cannot show what it must not.
    shown = Report.from_dict(report.as_dict())
    files = {"report.json": report.json(), "report.html": page.html(shown), "README.md": card.markdown(shown)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            part = folder / f".{name}.part"
            try:
                part.write_text(content, encoding="utf-8", newline="\n")
                part.replace(folder / name)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            f"Expected to write the report to {folder}, but: {why}. Make room there, or pass another --output_dir."
        ) from error
