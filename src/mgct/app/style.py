"""How the page looks."""

from __future__ import annotations

from typing import Any

CSS = """
.clips { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(min(190px, 100%), 1fr)); gap: 14px; }
.clip { min-width: 0 !important; padding: 10px; border-radius: 10px; background: var(--background-fill-secondary);
        border: 1px solid var(--border-color-primary); gap: 6px !important; }
.clip .block { min-width: 0 !important; }
.clip video { width: 100%; aspect-ratio: 1; image-rendering: pixelated; background: #000; }
.clip .controls { display: block !important; position: static; width: auto; margin: 6px 0 0; opacity: 1; }
.clip .controls .time, .clip .icon-button-wrapper { display: none; }
#video-upload .icon-button-wrapper button:not([aria-label="Clear"]) { display: none; }
.clip .controls .icon { flex: none; width: 22px; height: 22px; }
.clip .caption p { margin: 0; font-size: 13px; line-height: 1.35; }
.clip button { min-width: 0; white-space: normal; }
.clip .html-container { padding: 0 !important; }
img.sound, img.figure { display: block; width: 100%; }
img.preview { display: block; width: 100%; max-width: 760px; image-rendering: pixelated; border-radius: 6px;
              margin-top: 8px; }
.status .bar { height: 8px; border-radius: 4px; overflow: hidden; background: var(--border-color-primary); }
.status .bar div { height: 100%; background: var(--color-accent); }
.status .bad { color: #c2410c; font-weight: 600; }
.dark .status .bad { color: #fdba74; }
.status .quiet, .title p { color: var(--body-text-color); opacity: 0.8; }
.cost p { margin: 0; }
.title h1 { margin: 0.2em 0 0.1em; font-size: 1.5em; }
.title p { margin: 0; }
.side { min-width: 0 !important; }
.seed { align-items: flex-end; }
footer { display: none !important; }
@media (max-width: 640px) {
  .clips { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .clip { padding: 6px; }
  .side .clips { grid-template-columns: minmax(0, 1fr); }
}
"""


def theme() -> Any:
    """Gradio's theme: the system's own fonts, plain labels, text that can be read on light and on dark."""
    import gradio as gr

    fonts = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
    return gr.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"]).set(
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_title_padding="0",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_background_fill="*background_fill_primary",
        block_label_background_fill_dark="*background_fill_primary",
        block_label_text_color="*neutral_800",
        block_label_text_color_dark="*neutral_100",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
