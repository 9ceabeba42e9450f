"""Give a saved model the coarse colours of its world for its start (docs/sampling.md), before its samples are measured.

python experiments/coarse_start.py RUN/model landscape
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from run import PLAN, without_paths

from mgct import AVPipeline, ClipSpec
from mgct.coarse_start import CoarseStart
from mgct.files import replace_folder
from mgct.metrics.sources import open_source
from mgct.types import dequantise


def coarse_start_of(world: str, clip: ClipSpec, num: int) -> CoarseStart:
    """The law of the coarse colours of ``num`` training clips of a world."""
    real = open_source(f"world:{world}:{num}", clip, "train")
    parts = (range(first, min(first + 64, num)) for first in range(0, num, 64))
    return CoarseStart.fit(dequantise(real.read(part)).video for part in parts)


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="its folder, which is written anew")
    parser.add_argument("world", choices=PLAN["worlds"])
    parser.add_argument("--num", type=int, default=2048, help="training clips that it is taken from")
    options = parser.parse_args()
    pipe: Any = AVPipeline.from_pretrained(options.model)
    pipe.register_modules(coarse_start=coarse_start_of(options.world, pipe.clip, options.num))
    kept = [
        path for path in options.model.iterdir() if path.suffix in {".md", ".json"} and path.name != "model_index.json"
    ]

    def write(draft: Path) -> None:
        pipe.save_pretrained(draft)
        without_paths(draft)
        for path in kept:
            (draft / path.name).write_bytes(path.read_bytes())

    replace_folder(options.model, write)


if __name__ == "__main__":
    main()
