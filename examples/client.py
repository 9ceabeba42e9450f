"""Let a page served by `mgct app` make clips for this program.

mgct app landscape &
python examples/client.py http://127.0.0.1:7860 clips --sound thunder.wav
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from gradio_client import Client, handle_file


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description="Let a page served by `mgct app` make clips.")
    parser.add_argument("address", help="of the page")
    parser.add_argument("out", type=Path, help="folder for the clips")
    parser.add_argument("--sound", type=Path, help="also make a video for the sound of this file")
    options = parser.parse_args()

    password = os.environ.get("MGCT_APP_PASSWORD")
    client = Client(options.address, auth=("mgct", password) if password else None, verbose=False)
    models = client.predict(api_name="/models")
    name, facts = next(iter(models.items()))
    sampler = facts["samplers"][0]
    request = {"model": name, "sampler": sampler["name"], "steps": sampler["low"], "seed": 0}

    cost = client.predict(clips=2, model=name, sampler=sampler["name"], steps=sampler["low"], api_name="/cost")
    print(f"2 clips of {name} will take about {cost['seconds']:.1f} s")
    files, made = client.predict(clips=2, **request, api_name="/generate")
    if options.sound:
        more, facts = client.predict(
            upload=handle_file(options.sound), clips=1, **request, start_s=0, guided=False, api_name="/sound_to_video"
        )
        files, made = [*files, *more], [*made, *facts]
    options.out.mkdir(parents=True, exist_ok=True)
    for file, fact in zip(files, made, strict=True):
        path = shutil.copy(file, options.out / fact["file"])
        print(f"{path}: seed {fact['seed']}, clip {fact['clip']} {fact['title']}")


if __name__ == "__main__":
    main()
