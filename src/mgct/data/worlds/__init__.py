"""Procedural audio-video worlds: endless clips in which what is heard is what is seen.

`landscape` has the nine classes of the Landscape data set, `dance` ten genres after AIST++. They stand in for both
where neither can be had. Clip k of seed s is a pure function of (s, k), drawn in batches on any device, at any size and
rate.
"""

from __future__ import annotations

from mgct.data.worlds.base import World, WorldClips
from mgct.data.worlds.dance import Dance
from mgct.data.worlds.landscape import Landscape
from mgct.data.worlds.write import write_world
from mgct.errors import UserError

_WORLDS: dict[str, type[World]] = {"landscape": Landscape, "dance": Dance}

__all__ = ["World", "WorldClips", "get_world", "world_names", "write_world"]


def world_names() -> tuple[str, ...]:
    """Names that `get_world` knows."""
    return tuple(_WORLDS)


def get_world(name: str) -> World:
    """The procedural world called ``name``.

    Raises:
        UserError: no world has that name.
    """
    if name not in _WORLDS:
        raise UserError(f"no world is called {name!r}; choose one of {', '.join(_WORLDS)}")
    return _WORLDS[name]()
