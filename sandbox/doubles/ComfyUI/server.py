"""TEST DOUBLE, never deploy: ComfyUI's HTTP and WebSocket interface.

`PromptServer.instance`, `.routes` and `.app` are where a login plugin hooks in. Without one, everybody is served.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import mimetypes
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import app.logger
import execution
import folder_paths
import nodes
from aiohttp import WSMsgType, web
from app.user_manager import UserManager
from comfy.cli_args import args
from comfyui_version import __version__
from PIL import Image

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self' data:; frame-src 'self'; object-src 'self';"
)
HERE = os.path.dirname(os.path.realpath(__file__))


def is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


@web.middleware
async def origin_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every OPTIONS by itself, and refuses another site's page that calls a loopback address."""
    host, origin = urlsplit("//" + request.headers.get("Host", "")), urlsplit(request.headers.get("Origin", ""))
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return web.Response(status=403)
    if origin.hostname and is_loopback(host.hostname) and origin.hostname != host.hostname:
        return web.Response(status=403)
    return web.Response() if request.method == "OPTIONS" else await handler(request)


@web.middleware
async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = web.Response() if request.method == "OPTIONS" else await handler(request)
    response.headers["Access-Control-Allow-Origin"] = args.enable_cors_header
    response.headers["Access-Control-Allow-Methods"] = "POST, GET, DELETE, PUT, OPTIONS, PATCH"
    response.headers["Access-Control-Allow-Headers"] = "Content-Type, Authorization"
    response.headers["Access-Control-Allow-Credentials"] = "true"
    return response


@web.middleware
async def content_security_policy(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = web.Response() if request.method == "OPTIONS" else await handler(request)
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


def node_info(name: str) -> dict[str, Any]:
    node = nodes.NODE_CLASS_MAPPINGS[name]
    inputs = node.INPUT_TYPES()
    return {
        "input": inputs,
        "input_order": {group: list(members) for group, members in inputs.items()},
        "is_input_list": False,
        "output": node.RETURN_TYPES,
        "output_is_list": [False] * len(node.RETURN_TYPES),
        "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
        "name": name,
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
        "description": getattr(node, "DESCRIPTION", ""),
        "python_module": getattr(node, "RELATIVE_PYTHON_MODULE", "nodes"),
        "category": node.CATEGORY,
        "output_node": getattr(node, "OUTPUT_NODE", False),
    }


def system_stats() -> dict[str, Any]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    system = {
        "os": sys.platform,
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": __version__,
        "python_version": sys.version,
        "pytorch_version": "none (test double)",
        "embedded_python": False,
        "argv": sys.argv,
        "atelier_double": True,
    }
    names = ("vram_total", "torch_vram_total"), ("vram_free", "torch_vram_free")
    memory = {**dict.fromkeys(names[0], total), **dict.fromkeys(names[1], free)}
    return {"system": system, "devices": [{"name": "cpu", "type": "cpu", "index": None, **memory}]}


def model_preview(request: web.Request) -> web.Response:
    """Any image that the process can read, as WebP, by an absolute or relative path: the hole of ComfyUI < 0.28."""
    folders = folder_paths.folder_names_and_paths.get(request.match_info["folder"], ([], set()))[0]
    index = request.match_info["path_index"]
    if not index.isdigit() or int(index) >= len(folders):
        return web.Response(status=404)
    wanted = os.path.normpath(os.path.join(folders[int(index)], request.match_info["filename"]))
    folder, stem = os.path.dirname(wanted), os.path.splitext(os.path.basename(wanted))[0]
    for entry in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
        kind = mimetypes.guess_type(entry)[0] or ""
        if os.path.splitext(entry)[0] in (stem, f"{stem}.preview") and kind.startswith("image/"):
            buffer = BytesIO()
            with Image.open(os.path.join(folder, entry)) as image:
                image.save(buffer, format="WEBP")
            return web.Response(body=buffer.getvalue(), content_type="image/webp")
    return web.Response(status=404)


def view(request: web.Request) -> web.StreamResponse:
    query = request.query
    name, folder = folder_paths.annotated_filepath(query.get("filename", ""))
    if not name or name.startswith("/") or ".." in name:
        return web.Response(status=400 if "filename" in query else 404)
    folder = folder or folder_paths.get_directory_by_type(query.get("type", "output"))
    if folder is None:
        return web.Response(status=400)
    subfolder = os.path.join(folder, query.get("subfolder", ""))
    if not folder_paths.is_within_directory(folder, subfolder):
        return web.Response(status=403)
    name = os.path.basename(name)
    path = os.path.join(subfolder, name)
    if not os.path.isfile(path):
        return web.Response(status=404)
    disposition = {"Content-Disposition": f'filename="{name}"'}
    if "preview" not in query:
        return web.FileResponse(path, headers=disposition)
    kind = query["preview"].split(";")[0]
    kind = kind if kind in ("webp", "jpeg") else "webp"
    buffer = BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, format=kind, quality=90)
    return web.Response(body=buffer.getvalue(), content_type=f"image/{kind}", headers=disposition)


def store_upload(post: Any) -> web.Response:
    """Saves an uploaded picture; the same picture under the same name is kept once, another one gets a number."""
    image, kind, subfolder = post.get("image"), post.get("type") or "input", post.get("subfolder", "")
    root = folder_paths.get_directory_by_type(kind)
    if root is None or not getattr(image, "filename", None):
        return web.Response(status=400)
    folder = os.path.abspath(os.path.join(root, os.path.normpath(subfolder)))
    name = image.filename
    path = os.path.abspath(os.path.join(folder, name))
    if os.path.commonpath((root, path)) != root:
        return web.Response(status=400)
    os.makedirs(folder, exist_ok=True)
    content = image.file.read()
    number = 0
    while os.path.exists(path) and post.get("overwrite") not in ("true", "1"):
        with open(path, "rb") as file:
            if file.read() == content:
                break
        number += 1
        stem, extension = os.path.splitext(image.filename)
        name = f"{stem} ({number}){extension}"
        path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(content)
    return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


class PromptServer:
    instance: ClassVar[PromptServer]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        PromptServer.instance = self
        self.loop = loop
        self.user_manager = UserManager()
        self.prompt_queue = execution.PromptQueue(self)
        self.messages: asyncio.Queue[tuple[str, Any, str | None]] = asyncio.Queue()
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.number = 0
        middlewares = [cors if args.enable_cors_header else origin_only]
        if args.disable_api_nodes:
            middlewares.append(content_security_policy)
        self.app = web.Application(client_max_size=round(args.max_upload_size * 1024 * 1024), middlewares=middlewares)
        self.web_root = args.front_end_root or os.path.join(HERE, "web")
        self.routes = web.RouteTableDef()
        self._define_pages()
        self._define_queue()

    def _define_pages(self) -> None:
        routes = self.routes

        @routes.get("/")
        async def root(request: web.Request) -> web.FileResponse:
            return web.FileResponse(os.path.join(self.web_root, "index.html"))

        @routes.get("/ws")
        async def websocket(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            sid = request.query.get("clientId") or uuid.uuid4().hex
            self.sockets[sid] = socket
            try:
                await self.send("status", {"status": self.queue_info(), "sid": sid}, sid)
                if self.client_id == sid and self.last_node_id is not None:
                    await self.send("executing", {"node": self.last_node_id}, sid)
                async for message in socket:
                    if message.type == WSMsgType.ERROR:
                        logging.warning("ws connection closed with exception %s", socket.exception())
            finally:
                self.sockets.pop(sid, None)
            return socket

        @routes.get("/system_stats")
        async def stats(request: web.Request) -> web.Response:
            return web.json_response(system_stats())

        @routes.get("/features")
        async def features(request: web.Request) -> web.Response:
            limit = round(args.max_upload_size * 1024 * 1024)
            return web.json_response({"supports_preview_metadata": True, "max_upload_size": limit})

        @routes.get("/embeddings")
        async def embeddings(request: web.Request) -> web.Response:
            names = folder_paths.get_filename_list("embeddings")
            return web.json_response([os.path.splitext(name)[0] for name in names])

        @routes.get("/models")
        async def model_types(request: web.Request) -> web.Response:
            return web.json_response(list(folder_paths.folder_names_and_paths))

        @routes.get("/models/{folder}")
        async def models(request: web.Request) -> web.Response:
            if request.match_info["folder"] not in folder_paths.folder_names_and_paths:
                return web.Response(status=404)
            return web.json_response(folder_paths.get_filename_list(request.match_info["folder"]))

        @routes.get("/experiment/models/preview/{folder}/{path_index}/{filename:.*}")
        async def preview(request: web.Request) -> web.Response:
            return model_preview(request)

        @routes.get("/extensions")
        async def extensions(request: web.Request) -> web.Response:
            scripts = [
                f"/extensions/{quote(name)}/{file}"
                for name, folder in nodes.EXTENSION_WEB_DIRS.items()
                for file in sorted(os.listdir(folder))
                if file.endswith(".js")
            ]
            return web.json_response(scripts)

        @routes.get("/object_info")
        async def object_info(request: web.Request) -> web.Response:
            return web.json_response({name: node_info(name) for name in nodes.NODE_CLASS_MAPPINGS})

        @routes.get("/object_info/{node_class}")
        async def object_info_node(request: web.Request) -> web.Response:
            name = request.match_info["node_class"]
            return web.json_response({name: node_info(name)} if name in nodes.NODE_CLASS_MAPPINGS else {})

        @routes.get("/view")
        async def view_image(request: web.Request) -> web.StreamResponse:
            return view(request)

        # A mask is stored as it comes; the real one merges it with the picture that it belongs to.
        @routes.post("/upload/image")
        @routes.post("/upload/mask")
        async def upload(request: web.Request) -> web.Response:
            return store_upload(await request.post())

    def _define_queue(self) -> None:
        routes, queue = self.routes, self.prompt_queue

        @routes.get("/prompt")
        async def get_prompt(request: web.Request) -> web.Response:
            return web.json_response(self.queue_info())

        @routes.post("/prompt")
        async def post_prompt(request: web.Request) -> web.Response:
            logging.info("got prompt")
            return self.accept(await request.json())

        @routes.get("/queue")
        async def get_queue(request: web.Request) -> web.Response:
            return web.json_response({"queue_running": queue.running, "queue_pending": queue.pending})

        @routes.post("/queue")
        async def post_queue(request: web.Request) -> web.Response:
            asked = await request.json()
            if asked.get("clear"):
                queue.wipe()
            for prompt_id in asked.get("delete", []):
                queue.delete(prompt_id)
            return web.Response()

        @routes.post("/interrupt")
        async def interrupt(request: web.Request) -> web.Response:
            try:
                wanted = (await request.json()).get("prompt_id")
            except json.JSONDecodeError:
                wanted = None
            if wanted is None or any(item[1] == wanted for item in queue.running):
                nodes.interrupt_processing()
            return web.Response()

        @routes.post("/free")
        async def free(request: web.Request) -> web.Response:
            asked = await request.json()
            for flag in ("unload_models", "free_memory"):
                if asked.get(flag):
                    queue.set_flag(flag, True)
            return web.Response()

        @routes.get("/history")
        async def history(request: web.Request) -> web.Response:
            limit = request.query.get("max_items")
            return web.json_response(queue.history(max_items=int(limit) if limit else None))

        @routes.get("/history/{prompt_id}")
        async def history_of_one(request: web.Request) -> web.Response:
            return web.json_response(queue.history(request.match_info["prompt_id"]))

        @routes.post("/history")
        async def post_history(request: web.Request) -> web.Response:
            asked = await request.json()
            for prompt_id in list(queue.finished) if asked.get("clear") else asked.get("delete", []):
                queue.finished.pop(prompt_id, None)
            return web.Response()

    def accept(self, asked: dict[str, Any]) -> web.Response:
        """Validates a prompt and queues it; a 400 says why not, in ComfyUI's error types."""

        def refused(error: dict[str, Any], node_errors: dict[str, Any]) -> web.Response:
            logging.warning("invalid prompt: %s", error)
            return web.json_response({"error": error, "node_errors": node_errors}, status=400)

        number = float(asked["number"]) if "number" in asked else -self.number if asked.get("front") else self.number
        self.number += 1
        if "prompt" not in asked:
            message = "No prompt provided"
            return refused({"type": "no_prompt", "message": message, "details": message, "extra_info": {}}, {})
        prompt_id = asked.get("prompt_id") or str(uuid.uuid4())
        try:
            canonical = str(uuid.UUID(prompt_id))
        except ValueError:
            canonical = ""
        if canonical != prompt_id:
            message, details = "prompt_id must be a valid UUID", "omit it to let the server generate one"
            return refused({"type": "invalid_prompt_id", "message": message, "details": details, "extra_info": {}}, {})
        error, outputs, node_errors = execution.validate_prompt(asked["prompt"])
        if error is not None:
            return refused(error, node_errors)
        extra_data = {**asked.get("extra_data", {}), "create_time": int(time.time() * 1000)}
        if "client_id" in asked:
            extra_data["client_id"] = asked["client_id"]
        self.prompt_queue.put((number, prompt_id, asked["prompt"], extra_data, outputs))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": node_errors})

    def _internal(self) -> web.Application:
        routes = web.RouteTableDef()

        @routes.get("/logs")
        async def logs(request: web.Request) -> web.Response:
            return web.json_response("".join(f"{line['t']} - {line['m']}" for line in app.logger.get_logs()))

        @routes.get("/logs/raw")
        async def raw_logs(request: web.Request) -> web.Response:
            return web.json_response({"entries": app.logger.get_logs(), "size": {"cols": 80, "rows": 24}})

        @routes.get("/folder_paths")
        async def folders(request: web.Request) -> web.Response:
            known = folder_paths.folder_names_and_paths
            return web.json_response({name: known[name][0] for name in known})

        @routes.get("/files/{directory_type}")
        async def files(request: web.Request) -> web.Response:
            kind = request.match_info["directory_type"]
            folder = folder_paths.get_directory_by_type(kind)
            if folder is None:
                return web.json_response({"error": "Invalid directory type"}, status=400)
            return web.json_response([f"{entry.name} [{kind}]" for entry in os.scandir(folder) if entry.is_file()])

        internal = web.Application()
        internal.add_routes(routes)
        return internal

    def add_routes(self) -> None:
        """After the plugins had their turn: each route once more under /api, then the static files."""
        self.user_manager.add_routes(self.routes)
        self.app.add_subapp("/internal", self._internal())
        mirrored = web.RouteTableDef()
        for route in self.routes:
            if isinstance(route, web.RouteDef):
                mirrored.route(route.method, "/api" + route.path)(route.handler, **route.kwargs)
        self.app.add_routes(mirrored)
        self.app.add_routes(self.routes)
        for name, folder in nodes.EXTENSION_WEB_DIRS.items():
            self.app.add_routes([web.static("/extensions/" + name, folder)])
        self.app.add_routes([web.static("/", self.web_root)])

    def queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self.prompt_queue.remaining()}}

    async def send(self, event: str, data: Any, sid: str | None = None) -> None:
        sockets = list(self.sockets.values()) if sid is None else [self.sockets[sid]] if sid in self.sockets else []
        for socket in sockets:
            try:
                await socket.send_json({"type": event, "data": data})
            except ConnectionError as error:
                logging.warning("send error: %s", error)

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.loop.call_soon_threadsafe(self.messages.put_nowait, (event, data, sid))

    def queue_updated(self) -> None:
        self.send_sync("status", {"status": self.queue_info()})

    async def publish_loop(self) -> None:
        while True:
            await self.send(*await self.messages.get())

    async def start(self, addresses: list[str], port: int) -> None:
        runner = web.AppRunner(self.app, access_log=None)
        await runner.setup()
        logging.info("Starting server\n")
        for address in addresses:
            try:
                await web.TCPSite(runner, address, port).start()
            except OSError as error:
                logging.error("Port %s cannot be used on address %s: %s", port, address, error)
                raise SystemExit(1) from error
            shown = f"[{address}]" if ":" in address else address
            logging.info("To see the GUI go to: http://%s:%s", shown, port)
        await self.publish_loop()
