"""The page on an address: who may come in, what is served, what the browser may fetch."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mgct.app.disk import folder_bytes
from mgct.errors import UserError

SHORTEST_PASSWORD = 10
USER = "mgct"
LOOPBACK_NAMES = ("localhost",)
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'self'; form-action 'self'"
)
MOST_UPLOADED_BYTES = 2_000_000_000

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in LOOPBACK_NAMES


def check_access(host: str, password: str | None) -> None:
    """Refuse to let the whole network in without a password.

    Raises:
        UserError: no password, or a short one, on an address that is not loopback.
    """
    if is_loopback(host):
        return
    if not password:
        raise UserError(
            f"--host {host} lets others in: set a password in the environment variable MGCT_APP_PASSWORD (or with "
            f"--password), or leave --host away to serve this machine only"
        )
    if len(password) < SHORTEST_PASSWORD:
        raise UserError(f"the password has {len(password)} characters; take at least {SHORTEST_PASSWORD}")


class Guard:
    """ASGI middleware around Gradio.

    Every answer forbids the browser to fetch anything from another host, so the page works without a network and tells
    nobody about its visitors. Gradio's routes that fetch other addresses for a visitor are closed, and uploads stop
    while the folder for them is full.

    Args:
        app: what is guarded.
        folder: of uploads.
    """

    def __init__(self, app: Any, folder: Path) -> None:
        self.app, self.folder = app, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = str(scope["path"])
        if "/proxy=" in path or ("/file=http" in path and "://" in path):
            await _refuse(send, 403, "other addresses are not fetched")
            return
        if path.endswith("/upload") and scope["method"] == "POST" and folder_bytes(self.folder) > MOST_UPLOADED_BYTES:
            await _refuse(send, 507, "the server's folder for uploads is full; try again later")
            return

        async def guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"same-origin"),
                ]
            await send(message)

        await self.app(scope, receive, guarded)


async def _refuse(send: Send, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})


def launch_settings(
    folder: Path, host: str = "127.0.0.1", port: int = 7860, password: str | None = None
) -> dict[str, Any]:
    """Arguments of ``Blocks.launch``: address, password, limits of uploads, looks.

    Args:
        folder: Gradio's folder for files, ``GRADIO_TEMP_DIR``.
        host: address to bind to.
        port: number of the port.
        password: needed to come in, for the user ``mgct``; None: everybody may.

    Raises:
        UserError: as `check_access`.
    """
    from starlette.middleware import Middleware

    from mgct.app.records import Limits
    from mgct.app.style import CSS, theme

    check_access(host, password)

    def known(user: str, given: str) -> bool:
        return hmac.compare_digest(user, USER) & hmac.compare_digest(given.encode(), (password or "").encode())

    return {
        "server_name": host,
        "server_port": port,
        "auth": known if password else None,
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "show_error": False,
        "quiet": True,
        "_frontend": False,  # or Gradio first fetches its own page and gives up after 3 s, which a busy machine needs
        "max_file_size": Limits().upload.file_bytes,
        "blocked_paths": [],
        "app_kwargs": {"middleware": [Middleware(Guard, folder=folder)]},
        "theme": theme(),
        "css": CSS,
        "footer_links": [],
    }


def file_folder() -> Path:
    """A fresh folder for everything Gradio keeps, and Gradio told to use it; call before the page is built."""
    folder = Path(tempfile.mkdtemp(prefix="mgct-app-files-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return folder


def serve(
    build: Callable[[], Any],
    say: Callable[[str], None],
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
) -> None:
    """Build a page and serve it until Ctrl-C or SIGTERM; its files are removed in the end.

    Call it in the main thread, which is where Python hears of signals.

    Args:
        build: makes the page, as `mgct.app.build_app` does.
        say: told the address once the page is there.
        host: address to bind to.
        port: number of the port.
        password: see `launch_settings`.

    Raises:
        UserError: as `check_access`, or the address cannot be had.
    """
    from mgct.app.decode import warm_up

    check_access(host, password)
    if not 0 < port < 65536:
        raise UserError(f"--port must lie in 1 … 65535, got {port}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = file_folder()
    try:
        blocks = build()
        warm_up()
        try:
            blocks.launch(**launch_settings(folder, host, port, password), prevent_thread_lock=True)
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"cannot serve on {host}:{port}: the port is taken or the address is not this machine's; choose "
                f"another --port or --host"
            ) from error
        name = f"[{host}]" if ":" in host else host
        say(f"http://{name}:{port}/" + (f"   user {USER}, with the password" if password else "") + "   Ctrl-C ends it")
        try:
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            blocks.close(verbose=False)
            blocks.studio.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
