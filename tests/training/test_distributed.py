"""Training on several processes: the same gradients, losses and metrics as one process, and one end for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iefvad.checkpoints.hub import IEFVAD
from iefvad.cli.train import main
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights, total_loss
from iefvad.training.distributed import Processes
from iefvad.training.step import batch_part
from iefvad.training.trainer import Trainer
from iefvad.utils.tensors import read_tensors
from tests.helpers.stores import training_flags, write_store

# Equal in distribution alone, so it is off where results are compared: each process draws its own dropout masks.
SAME = ["--dropout", "0", "--epochs", "3", "--lr", "1e-3"]
EQUAL = {
    "ief": ["--batch", "6"],
    "fused": ["--batch", "6", "--fused", "--select", "test", "--nu", "learned"],
    "odd": ["--mixed", "true", "--batch", "7", "--temporal", "robust-kalman", "--mil", "segment", "--select", "last"],
    "one clip a batch": ["--mixed", "true", "--batch", "1", "--standardize", "false"],
    "released": ["--method", "released", "--mixed", "true", "--batch", "5"],
    "unused parameters": ["--modality", "image", "--temporal", "none", "--refine-steps", "0", "--batch", "5"],
}
FAILS = {
    "options": (["--heads", "many"], None, "heads"),
    "settings": (["--validation", "2"], None, "--validation"),
    "missing features": (["--train-list", "bad.csv"], None, "absent"),
    "unreadable clip": (["--standardize", "false", "--batch", "2"], 1, "cannot be read"),
    "unreadable for the statistics": ([], 0, "cannot be read"),
    "diverged": (["--lambda-kl", "1e9", "--lr", "1e9"], None, "lower --lr"),
}


def launch(*command: str, processes: int = 2) -> subprocess.CompletedProcess:
    """Run torchrun in a session of its own, so that nothing of it outlives a test."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    started = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    try:
        out, err = started.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        started.terminate()  # torchrun ends its processes
        out, err = started.communicate(timeout=60)
        pytest.fail(f"the processes hang:\n{out}\n{err}")
    return subprocess.CompletedProcess(command, started.returncode, out, err)


def interrupted(flags: list[str], before: int) -> None:
    """Train in this process and stop before an epoch."""
    original = Trainer._train_epoch
    with pytest.MonkeyPatch.context() as patch:

        def stopping(self, *arguments):
            if self.progress.epoch == before:
                raise KeyboardInterrupt
            return original(self, *arguments)

        patch.setattr(Trainer, "_train_epoch", stopping)
        assert main(flags) == 130


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All that two processes do, in one launch: (folder of "one" and "two", name -> results of the two processes)."""
    root = tmp_path_factory.mktemp("runs")
    store = write_store(root / "store")
    (root / "bad.csv").write_text("path,label\nabsent.mp4,Normal\ntrain001.mp4,Run\n")
    cases = []
    for name, flags in EQUAL.items():
        assert main(training_flags(store, root / "one" / name, *SAME, *flags)) == 0
        cases.append({"name": name, "argv": training_flags(store, root / "two" / name, *SAME, *flags)})
    for name, (flags, fail, _) in FAILS.items():
        flags = [str(root / flag) if flag == "bad.csv" else flag for flag in flags]
        cases.append({"name": name, "argv": training_flags(store, root / "failed" / name, *flags), "fail": fail})
    # Begun by one and ended by two processes, and the other way round.
    joined, left = (training_flags(store, root / "two" / name, *SAME, *EQUAL["ief"]) for name in ("joined", "left"))
    interrupted(joined, 2)
    cases += [{"name": "joined", "argv": [*joined, "--resume"]}, {"name": "left", "argv": left, "stop": 1}]
    (root / "cases.json").write_text(json.dumps(cases))
    done = launch(str(Path(__file__).parents[1] / "helpers" / "processes.py"), str(root / "cases.json"))
    assert done.returncode == 0, done.stderr
    names = [case["name"] for case in cases]
    return root, {name: [json.loads((root / f"{name}_{rank}.json").read_text()) for rank in (0, 1)] for name in names}


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_training(found: Path, expected: Path) -> None:
    """Losses, metrics and weights of two run folders agree but for rounding."""
    for mine, one in zip(log(found), log(expected), strict=True):
        for key in ("loss", "loss_cls", "loss_kl", "loss_reg", "val_auc", "val_loss"):
            # Sums of float32 in another order, over a few dozen steps.
            assert mine[key] == pytest.approx(one[key], rel=1e-5, abs=1e-6), (key, mine["epoch"])
    documents = [json.loads((folder / "metrics.json").read_text()) for folder in (found, expected)]
    for document in documents:
        del document["run"]
    compare(*documents)
    mine, one = (read_tensors(folder / "checkpoint.safetensors")[0] for folder in (found, expected))
    assert mine.keys() == one.keys()
    for name, value in one.items():
        if name.endswith("in_proj.bias"):
            # A softmax does not see the keys' bias: its gradient is rounding alone, which AdamW scales to full steps.
            dim = len(value) // 3
            value, mine[name] = (torch.cat((bias[:dim], bias[2 * dim :])) for bias in (value, mine[name]))
        # AdamW moves a weight by lr = 1e-3 a step whatever its gradient's size; a hundredth of a step is rounding where
        # the gradient is near zero.
        torch.testing.assert_close(
            mine[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def compare(found: object, expected: object, where: str = "metrics") -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys(), where
        for key in expected:
            compare(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            compare(one, other, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4), where
    else:
        assert found == expected, where


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_train_what_one_does(runs, name):
    root, results = runs
    first, second = results[name]
    assert (first["status"], second["status"]) == (0, 0), first["err"] + second["err"]
    assert second["out"] == second["err"] == ""
    assert "Trained on 2 processes" in first["out"]
    assert_same_training(root / "two" / name, root / "one" / name)
    assert {row["processes"] for row in log(root / "two" / name)} == {2}
    assert not list((root / "two" / name).rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILS)
def test_a_failure_ends_all_processes_with_one_message(runs, name):
    results = runs[1][name]
    assert [result["status"] for result in results] == [2, 2]
    printed = [result["err"] for result in results]
    assert sum(FAILS[name][2] in text for text in printed) == 1, printed
    assert "Traceback" not in "".join(printed)
    speaker = FAILS[name][1] or 0
    assert FAILS[name][2] in printed[speaker]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(runs):
    root, results = runs
    expected = root / "one" / "ief"
    assert [result["status"] for result in results["joined"]] == [0, 0]
    assert_same_training(root / "two" / "joined", expected)
    assert [row["processes"] for row in log(root / "two" / "joined")] == [1, 1, 2]
    assert [result["status"] for result in results["left"]] == [130, 130]
    assert "--resume" in results["left"][0]["err"] and results["left"][1]["err"] == ""
    assert main(["--config", str(root / "two" / "left" / "config.yaml"), "--resume"]) == 0
    assert_same_training(root / "two" / "left", expected)
    assert [row["processes"] for row in log(root / "two" / "left")] == [2, 1, 1]


@pytest.mark.slow
def test_torchrun_ends_with_one_message(tmp_path):
    done = launch("-m", "iefvad.train", "--features", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert done.stderr.count("iefvad train: error:") == 1
    assert "Connection" not in done.stderr


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("modality", ["fusion", "event"])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(world, released, modality):
    """5 clips leave some of 7 processes without any. The model gives float32 logits, so rounding is that of float32."""
    torch.manual_seed(0)
    temporal = "none" if released else "kalman"
    config = ModelConfig(dim=8, heads=2, refine_steps=1, dropout=0.0, modality=modality, temporal=temporal)
    model = IEFVAD(ModelConfig(**vars(config) | {"released": released}), backend="reference").double()
    lengths = torch.tensor([3, 9, 1, 20, 6, 2])
    batch = [4, 0, 3, 1, 5]
    image, event = torch.randn(2, 6, 20, 8, dtype=torch.float64)
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])

    def gradient(part, share):
        model.zero_grad(set_to_none=False)
        output = model(image[part], event[part], lengths[part])
        loss = total_loss(output, labels[part], lengths[part], LossWeights(), share=share)
        loss.total.backward()
        flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        return loss.total.detach(), flat.clone()

    whole = gradient(batch, batch_part(lengths, batch, 0, 1)[1])
    parts = [batch_part(lengths, batch, rank, world, padded=released) for rank in range(world)]
    assert sorted(index for part, _ in parts for index in part) == sorted(batch)
    each = [gradient(part or batch[:1], share) for part, share in parts]
    for found, expected in zip(zip(*each, strict=True), whole, strict=True):
        torch.testing.assert_close(sum(found) / world, expected, rtol=1e-4, atol=1e-7)


def test_one_process_alone_never_touches_torch_distributed():
    alone = Processes()
    assert alone.is_main and alone.agree(3) and alone.decide(True)
    assert alone.union(["a", "a"]) == ["a", "a"]
    assert alone.sum(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(ZeroDivisionError), alone.barrier():
        raise ZeroDivisionError
    model = torch.nn.Linear(1, 1)
    assert alone.replicate(model, unused=False) is model
    assert alone.device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert not torch.distributed.is_initialized()
