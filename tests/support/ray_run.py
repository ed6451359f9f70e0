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
from pathlib import Path

from fake_engine import FakeEngine, contents, ten_pairs

from stage_rt.run.crew import Crew
from stage_rt.run.fill import fill, follow
from stage_rt.run.ledger import Place
from stage_rt.run.plan import make_plan
from stage_rt.run.ray import Cluster

os.environ["PYTHONPATH"] = str(Path(__file__).parent)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def load(notify):
    """In an actor."""
    notify(f"actor {os.getpid()}")
    return FakeEngine(delay=0.02, batch=2)


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


def main(folder, what, times):
    from ray.cluster_utils import Cluster as Nodes

    job = ten_pairs(folder)
    job = type(job)(**{**vars(job), "count": 24, "batch": 2})
    fill(FakeEngine(batch=2), job, folder / "whole")
    whole = contents(folder / "whole")
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    second = None if what == "late" else nodes.add_node(num_cpus=1)
    dice, losses, seen = random.Random(0), 0, set()
    for number in range(times):
        notices, engine, begun = [], FakeEngine(batch=2), threading.Event()

        def progress(share, begun=begun):
            if share > 0:
                begun.set()

        def disturb(begun=begun):
            assert begun.wait(120)
            time.sleep(dice.random())
            if what == "kill":
                os.kill(dice.choice(actors()), signal.SIGKILL)
            elif what == "node":
                nodes.remove_node(second)
            else:
                nodes.add_node(num_cpus=1)

        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        run = folder / str(number)
        with Crew(engine.spec, Cluster(load, nodes.address, gpu=False), 2, notices.append) as crew:
            plan = make_plan(engine.spec, job, notices.append)
            summary = follow(crew, plan, Place.of(run), notify=notices.append, progress=progress)
        disturbing.join()
        assert summary.written == summary.pairs == 24, summary
        assert contents(run) == whole
        losses += sum("a worker ended" in notice for notice in notices)
        seen |= {notice for notice in notices if notice.startswith("actor ")}
    nodes.shutdown()
    print(json.dumps({"runs": times, "losses": losses, "actors": len(seen)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
