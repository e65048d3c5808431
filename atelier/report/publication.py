"""A report is published whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from atelier.history import PastReport
from atelier.report.access_page import as_access_page
from atelier.report.model import ACCESS_PAGE, REPORT_PAGE, Report, as_json
from atelier.report.page import as_page
from atelier.report.redaction import redact
from atelier.report.texts import as_junit, as_markdown


def publish(
    report: Report,
    directory: Path,
    secrets: Iterable[str],
    images: Path | None = None,
    past: Sequence[PastReport] = (),
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Path:
    """Write the report into `directory`/<UTC stamp>, whole or not at all, and point `latest` to it.

    secrets: never to appear in any of it. images: the folder that holds the report's images. past: comparable earlier
    runs, oldest first.
    """
    clean = Report.model_validate(redact(report.model_dump(by_alias=True), list(secrets)))
    directory.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=directory, prefix=".draft-"))
    try:
        (draft / "report.json").write_text(as_json(clean), encoding="utf-8")
        (draft / "report.md").write_text(as_markdown(clean, past), encoding="utf-8")
        (draft / "junit.xml").write_text(as_junit(clean), encoding="utf-8")
        (draft / REPORT_PAGE).write_text(as_page(clean, past, images), encoding="utf-8")
        if clean.matrices:
            (draft / ACCESS_PAGE).write_text(as_access_page(clean), encoding="utf-8")
        for image in clean.images if images else []:
            shutil.copyfile(images / image.file, draft / image.file)  # type: ignore[operator]
        draft.chmod(0o755)
        return _place(draft, directory, now())
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _place(draft: Path, directory: Path, moment: datetime) -> Path:
    while True:
        final = directory / moment.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        try:
            draft.rename(final)
        except OSError:
            if not final.exists():
                raise
            moment += timedelta(seconds=1)  # two runs within one second
            continue
        link = directory / f".latest-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        link.replace(directory / "latest")
        return final
