"""The page: its tabs over one studio, and the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from mgct.app.api import add_api
from mgct.app.parts import Parts, session_of
from mgct.app.studio import Studio
from mgct.app.tabs.compare import compare_tab
from mgct.app.tabs.generate import generate_tab
from mgct.app.tabs.training import training_tab
from mgct.app.tabs.upload import upload_tab

TITLE = "MGCT: video with its sound"
WAITING = 32
"""Requests that may wait."""
CACHE_EVERY_S, CACHE_KEPT_S = 600, 6 * 3600
"""How often Gradio removes files that nothing needs any more, and from what age."""


def build_page(studio: Studio) -> Any:
    """The whole page, a ``gradio.Blocks`` with its queue."""
    studio.folders.append(Path(get_upload_folder()))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CACHE_EVERY_S, CACHE_KEPT_S)) as blocks:
        parts = Parts(studio, blocks)
        gr.Markdown(
            f"# {TITLE}\nShort clips, picture and sound together, made from nothing but noise. "
            "Choose how many, press **Generate**, and watch them form.",
            elem_classes="title",
        )
        with gr.Tabs():
            with gr.Tab("Generate", id="generate"):
                generate_tab(parts)
            with gr.Tab("Sound → video", id="sound"):
                upload_tab(parts, "sound")
            with gr.Tab("Video → sound", id="video"):
                upload_tab(parts, "video")
            with gr.Tab("Compare", id="compare"):
                compare_tab(parts)
            with gr.Tab("Training", id="training"):
                training_tab(parts)
        add_api(parts)

        def unload(request: gr.Request) -> None:
            studio.forget(session_of(request))

        blocks.unload(unload)
    return blocks.queue(max_size=WAITING, api_open=True)
