"""Data: real media, shards of clips, and procedural worlds."""
