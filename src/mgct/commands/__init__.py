"""One typed function per command of the command line; `mgct.cli` finds and parses them."""
