"""Pairs that somebody accepted, as a data set in the MVTec layout that other tools load as it is."""

import json
import threading
from contextlib import suppress
from pathlib import Path

from stage_rt.files import write_atomic
from stage_rt.run.writer import defect_type, pair_paths, write_pair
from stage_rt.serve.pairs import Pair

LIST = "accepted.jsonl"


class Kept:
    """A folder with ``test/<type>``, ``ground_truth/<type>`` and a line a pair in ``accepted.jsonl`` an engine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()

    def put(self, pair: Pair) -> str:
        """Keep a pair that is done; returns its image's path in the folder.

        Raises:
            OSError: the disk is full or failed; nothing of the pair stays.
        """
        assert pair.result is not None
        assert pair.result.image is not None
        request, result = pair.request, pair.result
        folder = self._folder / request.engine
        with self._lock:
            lines = (folder / LIST).read_bytes() if (folder / LIST).exists() else b""
            known = [json.loads(line) for line in lines.splitlines()]
            # Prompts of one type share its folders.
            kind = defect_type(request.prompt)
            number = sum(defect_type(one["prompt"]) == kind for one in known)
            paths = pair_paths(request.prompt, number)
            write_pair(folder, paths, pair.result.image, result.label)
            line = {
                "image": paths[0],
                "mask": paths[1],
                "id": pair.id,
                "prompt": request.prompt,
                "photograph": request.source,
                "seed": request.seed,
                "steps": request.method.steps,
                "fill": round(result.figures.fill, 4) if result.figures else None,
                "leak": round(result.figures.leak, 4) if result.figures else None,
            }
            try:
                write_atomic(folder / LIST, lines + json.dumps(line, ensure_ascii=False).encode() + b"\n")
            except BaseException:
                for path in paths:
                    with suppress(OSError):
                        (folder / path).unlink()
                raise
        return f"{request.engine}/{paths[0]}"
