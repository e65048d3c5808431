"""The copies that cross file systems, made and verified while the services still run; what they write meanwhile the switch takes."""

from relocation.files import Files
from relocation.job import Job, RelocationError
from relocation.merge import Done, FullError, Merge, Records
from relocation.plan import Planned, lacking, plan, record_folders, space
from weights.progress import Progress


def copy(job: Job, files: Files, progress: Progress) -> dict[str, Done]:
    """Copy what has to be copied, and find out of what is in both places whether it is the same. By source."""
    planned = plan(job, files)
    if planned.obstacles:
        raise RelocationError("\n".join(planned.obstacles))
    records = Records(record_folders(job))
    merges = [
        Merge(job, move, files, records, progress)
        for move, told in zip(job.moves, planned.moves, strict=True)
        if told.how in ("copy", "merge")
    ]
    for merge in merges:
        if merge.joined:
            merge.settle()
    crossing = [merge for merge in merges if not merge.joined]
    bring(job, crossing, files, progress)
    for merge in crossing:
        merge.sync()
    return {merge.move.source: merge.done for merge in merges}


def bring(job: Job, merges: list[Merge], files: Files, progress: Progress) -> None:
    """Have every name of the sources in the targets. Before a byte is copied all of them must fit."""
    for merge in merges:
        merge.clear_outdated()
        merge.make_directories()
        merge.settle()
        progress.add(merge.move.source, merge.to_copy())
    refuse_where_full(job, merges, files)
    for merge in merges:
        progress.state(merge.move.source, "copying")
        try:
            merge.put()
        except FullError:
            refuse_where_full(job, merges, files)
            raise RelocationError(
                f"{merge.move.target}: no room left, or a quota is used up; what was copied stays and counts: "
                "free some, then run again"
            ) from None
        progress.state(merge.move.source, "ready")


def refuse_where_full(job: Job, merges: list[Merge], files: Files) -> None:
    """Say what is missing where not all fits."""
    needs = []
    for merge in merges:
        move = merge.move
        mount = files.mount_point(move.target)
        needs.append(
            Planned(move.kind, move.source, move.target, "copy", copy_bytes=merge.to_copy(), target_mount=mount)
        )
    missing = [lacking(one) for one in space(needs, job.reserve, files) if one.missing]
    if missing:
        raise RelocationError("\n".join(missing))
