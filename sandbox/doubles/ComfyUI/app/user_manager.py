"""TEST DOUBLE, never deploy: users' files and settings over HTTP.

Nothing here looks at who asks, and a name may end in `.js`: that is how a login that exempts such paths leaks them.
"""

from __future__ import annotations

import glob
import json
import mimetypes
import os
import shutil
from typing import Any
from urllib.parse import unquote

import folder_paths
from aiohttp import web


class UserManager:
    """Single-user form: everything belongs to `default`."""

    def __init__(self) -> None:
        self.root = os.path.join(folder_paths.get_user_directory(), "default")
        os.makedirs(folder_paths.get_user_directory(), exist_ok=True)

    def path(self, name: str) -> str:
        """The file called `name` below the user's directory, whose parent is made. 403 when it would lie outside."""
        path = os.path.abspath(os.path.join(self.root, unquote(name)))
        if os.path.commonpath((self.root, path)) != self.root:
            raise web.HTTPForbidden
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def existing(self, name: str) -> str:
        path = self.path(name)
        if not os.path.exists(path):
            raise web.HTTPNotFound
        return path

    def answer(self, request: web.Request, path: str) -> web.Response:
        relative = os.path.relpath(path, self.root)
        if request.query.get("full_info", "").lower() != "true":
            return web.json_response(relative)
        stat = os.stat(path)
        times = {"modified": int(stat.st_mtime * 1000), "created": int(stat.st_ctime * 1000)}
        return web.json_response({"path": relative, "size": stat.st_size, **times})

    def refuse_overwriting(self, request: web.Request, path: str) -> None:
        if request.query.get("overwrite") == "false" and os.path.exists(path):
            raise web.HTTPConflict(text="File already exists")

    def settings(self) -> dict[str, Any]:
        try:
            with open(self.path("comfy.settings.json"), encoding="utf-8") as file:
                return dict(json.load(file))
        except FileNotFoundError:
            return {}

    def save_settings(self, changes: dict[str, Any]) -> web.Response:
        merged = {**self.settings(), **changes}
        with open(self.path("comfy.settings.json"), "w", encoding="utf-8") as file:
            json.dump(merged, file, indent=4)
        return web.Response()

    def add_routes(self, routes: web.RouteTableDef) -> None:
        @routes.get("/users")
        async def users(request: web.Request) -> web.Response:
            return web.json_response({"storage": "server", "migrated": os.path.exists(self.root)})

        @routes.get("/userdata")
        async def listing(request: web.Request) -> web.Response:
            if not request.query.get("dir"):
                return web.Response(status=400, text="Directory not provided")
            folder = self.existing(request.query["dir"])
            recurse = request.query.get("recurse", "").lower() == "true"
            pattern = os.path.join(glob.escape(folder), *(["**"] if recurse else []), "*")
            files = [path for path in glob.glob(pattern, recursive=recurse) if os.path.isfile(path)]
            return web.json_response([os.path.relpath(path, folder) for path in files])

        @routes.get("/userdata/{file}")
        async def read(request: web.Request) -> web.FileResponse:
            path = self.existing(request.match_info["file"])
            kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
            if kind.startswith("text/") or kind.endswith(("javascript", "xml")):
                kind = "application/octet-stream"
            headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
            return web.FileResponse(path, headers={**headers, "Content-Type": kind})

        @routes.post("/userdata/{file}")
        async def write(request: web.Request) -> web.Response:
            path = self.path(request.match_info["file"])
            self.refuse_overwriting(request, path)
            body = await request.read()
            with open(path, "wb") as file:
                file.write(body)
            return self.answer(request, path)

        @routes.delete("/userdata/{file}")
        async def delete(request: web.Request) -> web.Response:
            os.remove(self.existing(request.match_info["file"]))
            return web.Response(status=204)

        @routes.post("/userdata/{file}/move/{dest}")
        async def move(request: web.Request) -> web.Response:
            source, target = self.existing(request.match_info["file"]), self.path(request.match_info["dest"])
            self.refuse_overwriting(request, target)
            shutil.move(source, target)
            return self.answer(request, target)

        @routes.get("/settings")
        async def all_settings(request: web.Request) -> web.Response:
            return web.json_response(self.settings())

        @routes.get("/settings/{id}")
        async def one_setting(request: web.Request) -> web.Response:
            return web.json_response(self.settings().get(request.match_info["id"]))

        @routes.post("/settings")
        async def change_settings(request: web.Request) -> web.Response:
            return self.save_settings(await request.json())

        @routes.post("/settings/{id}")
        async def change_setting(request: web.Request) -> web.Response:
            return self.save_settings({request.match_info["id"]: await request.json()})
