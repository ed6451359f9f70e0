"""Runs on a real Ray cluster of two nodes on this machine, as a script: ``python ray_run.py FOLDER WHAT TIMES``.

``kill`` kills an actor at a random moment of each of TIMES runs; ``node`` takes a node away in the middle; ``late``
lets the second node join in the middle. Every run has to have the bytes of one process. A line of JSON says what
happened.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from fake_engine import FakeEngine, contents, ten_pairs

from stage_rt.run.crew import Crew
from stage_rt.run.fill import fill, follow
from stage_rt.run.ledger import Place
from stage_rt.run.plan import make_plan
from stage_rt.run.ray import Cluster

os.environ["PYTHONPATH"] = str(Path(__file__).parent)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def load(delay, notify):
    """In an actor."""
    notify(f"actor {os.getpid()}")
    return FakeEngine(delay=delay, batch=2)


def actors():
    """The ids of the processes that are actors."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if b"ray::_Hand" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                pass
    return found


def up(start):
    """A node; one that does not come up in Ray's 30 seconds, as on a busy machine, is tried again."""
    for _ in range(4):
        with suppress(Exception):
            return start()
    return start()


def main(folder, what, times):
    from ray.cluster_utils import Cluster as Nodes

    job = ten_pairs(folder)
    job = type(job)(**{**vars(job), "count": 24, "batch": 2})
    fill(FakeEngine(batch=2), job, folder / "whole")
    whole = contents(folder / "whole")
    nodes = up(lambda: Nodes(initialize_head=True, head_node_args={"num_cpus": 1}))
    second = None if what == "late" else up(lambda: nodes.add_node(num_cpus=1))
    # A node takes a while to come up, and is to have something to do then.
    hands = partial(load, 0.02 if what == "kill" else 1.0)
    dice, losses, seen = random.Random(0), 0, set()
    for number in range(times):
        notices, engine, begun = [], FakeEngine(batch=2), threading.Event()

        def progress(share, begun=begun):
            if share > 0 and not begun.is_set():
                begun.set()
                # Here, as a node is started by the main thread alone.
                if what == "node":
                    nodes.remove_node(second)
                if what == "late":
                    up(lambda: nodes.add_node(num_cpus=1))

        def kill(begun=begun):
            assert begun.wait(600)
            time.sleep(dice.random())
            os.kill(dice.choice(actors()), signal.SIGKILL)

        killer = threading.Thread(target=kill if what == "kill" else begun.wait)
        killer.start()
        run = folder / str(number)
        with Crew(engine.spec, Cluster(hands, nodes.address, gpu=False), 2, notices.append) as crew:
            plan = make_plan(engine.spec, job, notices.append)
            summary = follow(crew, plan, Place.of(run), notify=notices.append, progress=progress)
        killer.join()
        assert summary.written == summary.pairs == 24, summary
        assert contents(run) == whole
        losses += sum("a worker ended" in notice for notice in notices)
        seen |= {notice for notice in notices if notice.startswith("actor ")}
    nodes.shutdown()
    print(json.dumps({"runs": times, "losses": losses, "actors": len(seen)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
