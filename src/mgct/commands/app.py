"""``mgct app``."""

from __future__ import annotations

import os
from pathlib import Path

from mgct.app import build_app
from mgct.app.server import check_access, serve


def app(
    model: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    device: str | None = None,
    most_clips: int = 8,
    most_seconds: float = 900.0,
) -> None:
    """Serve a web page to generate, compare and watch training with, on this machine alone unless --host says else.

    Args:
        model: a run folder, a saved model, a folder of them, or a model that comes with mgct: landscape, dance or
            landscape-micro; the first argument may stand without its name. If not given: what is in the folder runs,
            and those that come with mgct.
        host: address to bind to; another than loopback needs a password.
        port: number of the port.
        password: for the user `mgct`; better given in the environment variable MGCT_APP_PASSWORD.
        device: where the models run; the GPU if there is one.
        most_clips: clips of one request.
        most_seconds: longest time that a request may be expected to take.
    """
    import torch

    from mgct.app.models import RUNS, find_models, find_runs
    from mgct.app.records import Limits

    password = password or os.environ.get("MGCT_APP_PASSWORD") or None
    check_access(host, password)
    models, runs = find_models(model), find_runs(model or RUNS)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    limits = Limits(clips=most_clips, seconds=most_seconds)
    serve(lambda: build_app(models, runs, chosen, limits), print, host, port, password)
