"""The signals that end a command: Ctrl-C, a request to end, and a terminal that is gone."""

from signal import Signals

# By name, since Windows has no hang-up and is still to be told that nothing runs there.
ENDING = tuple(one for one in Signals if one.name in ("SIGHUP", "SIGINT", "SIGTERM"))
