"""Why a media file cannot be used."""

from __future__ import annotations

from typing import Literal

from mgct.errors import UserError

Reason = Literal["unreadable", "no video", "no audio", "too short", "unsupported", "silent", "static", "too slow"]
"""Why a file cannot be used."""


class MediaError(UserError):
    """A media file cannot be used.

    Args:
        reason: the kind of defect, one of `Reason`.
        detail: what was found, in one line.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)
