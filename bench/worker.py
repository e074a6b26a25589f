"""One side of a comparison: `python bench/worker.py TREE` measures the operators of the tree at that path.

Cases, inputs and checks are this file's neighbours, `ief_kernels` and `iefvad` are the tree's. Requests come as lines
of JSON on stdin and are answered by lines on stdout; {"error": why} is an answer too:

    {"case": {...}, "device": "cpu", "providers": [...], "quick": false, "seed": 0}   →  {"reasons": {provider: why}}
    {"run": provider, "index": 3}                                                     →  {"laps": {pass: seconds}}
    {"check": provider}                                                               →  {}
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def import_from(tree: Path) -> None:
    """Makes `import ief_kernels` take the tree's, and `import bench` this one; RuntimeError if it cannot."""
    here = Path(__file__).resolve().parents[1]
    sys.path[0] = str(here)
    import bench  # its modules are found beside it from now on

    sys.path[0] = str(tree)
    import ief_kernels

    for package, root in ((bench, here), (ief_kernels, tree)):
        if Path(str(package.__file__)).resolve().parents[1] != root.resolve():
            raise RuntimeError(f"{package.__name__} was imported from {package.__file__}, not from {root}")


class Server:
    """Answers requests about one case at a time."""

    def __init__(self) -> None:
        self.trial: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "case" in request:
            return self._prepare(request)
        if "run" in request:
            return {"laps": self.trial.runners[request["run"]](request["index"])}
        self._check(request["check"])
        return {}

    def _prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        from bench.operators import Case
        from bench.trial import Trial

        self.trial = None  # its inputs go before the next ones come
        torch.manual_seed(request["seed"])
        fields = request["case"]
        case = Case(**{**fields, "shape": tuple(fields["shape"]), "dtype": getattr(torch, fields["dtype"])})
        providers = {"reference", *request["providers"]}
        self.trial = Trial(case, torch.device(request["device"]), providers, quick=request["quick"])
        return {"reasons": self.trial.reasons}

    def _check(self, provider: str) -> None:
        if provider != "reference" and not self.trial.exact:
            self.trial.runners["reference"](0)
            self.trial.check("reference")
        self.trial.check(provider)


def main() -> int:
    """Serves until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what code prints is no answer
    import_from(Path(sys.argv[1]))
    from bench.timing import explanation

    server = Server()
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as error:  # the other side goes on; this one's row says why
            answer = {"error": explanation(error)}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
