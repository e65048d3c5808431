"""TEST DOUBLE, never deploy: open questions about what is being generated."""

from __future__ import annotations

from typing import Any

from modules import shared
from pydantic import BaseModel


class ProgressRequest(BaseModel):
    id_task: str | None = None
    id_live_preview: int | None = -1
    live_preview: bool | None = True


def setup_progress_api(app: Any) -> None:
    app.add_api_route("/internal/pending-tasks", pending_tasks, methods=["GET"])
    app.add_api_route("/internal/progress", progress, methods=["POST"])


def pending_tasks() -> dict[str, Any]:
    return {"size": 0, "tasks": []}


def progress(request: ProgressRequest) -> dict[str, Any]:
    active = bool(shared.state.job_count)
    return {"active": active, "queued": False, "completed": not active, "progress": shared.state.progress()}
