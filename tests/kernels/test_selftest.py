from __future__ import annotations

from typing import Any

import pytest
import torch

from ief_kernels import _problems, _triton, selftest, warmup
from ief_kernels.kalman_scan import native as scan_native
from ief_kernels.precision_fusion import native as fusion_native
from tests.helpers.kernel_checks import needs_native


def test_passes_here_and_names_what_it_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "no fault" in out and "FAULT" not in out
    assert "not checked on cpu: triton (its kernel runs on a CUDA device" in out
    for operator in (
        "event_synthesis",
        "fusion_and_terms",
        "fusion_terms",
        "kalman_scan",
        "low_rank_fusion",
        "precision_fusion",
        "refine",
    ):
        assert sum(line.startswith(operator + " ") and line.endswith(" ok") for line in out.splitlines()) >= 4


def broken(function: Any, index: int, change: Any) -> Any:
    def changed(*arguments: Any) -> Any:
        found = list(function(*arguments))
        found[index] = change(found[index])
        return tuple(found)

    return changed


@needs_native
@pytest.mark.parametrize("value", [1.001, float("nan")])
def test_a_wrong_gradient_is_a_fault(
    value: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scan_native, "backward", broken(scan_native.backward, 1, lambda grad: grad * value))
    assert selftest.main(["--device", "cpu", "--operators", "kalman_scan", "--backends", "native"]) == 1
    out = capsys.readouterr().out
    assert any(line.startswith("kalman_scan") and line.endswith("FAULT") for line in out.splitlines())
    assert "FAULT kalman_scan native float32 on cpu, (3, 70, 200), sequential: the error of grad_var" in out
    assert "the error of grad_x" not in out  # nothing else is accused


@needs_native
def test_an_element_that_is_forgotten_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def last_missing(mean: torch.Tensor) -> torch.Tensor:
        fresh = torch.empty_like(mean)  # contains NaN while the test runs
        fresh.view(-1)[:-1] = mean.view(-1)[:-1]
        return fresh

    monkeypatch.setattr(fusion_native, "forward", broken(fusion_native.forward, 0, last_missing))
    assert selftest.main(["--device", "cpu", "--operators", "precision_fusion", "--backends", "native"]) == 1
    assert "the error of mean" in capsys.readouterr().out


@needs_native
def test_a_kernel_that_raises_is_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: Any) -> None:
        raise RuntimeError("an illegal memory access\nwas encountered")

    monkeypatch.setattr(fusion_native, "forward", fails)
    assert selftest.main(["--device", "cpu", "--operators", "fusion_terms", "--backends", "native"]) == 1
    assert "RuntimeError: an illegal memory access" in capsys.readouterr().out


def test_every_configuration_is_forced() -> None:
    """The loop ends behind the tuner with the most configurations."""
    tuners = [
        _triton.Tuner(name, [_triton.Config({"BLOCK": b}) for b in range(count)])
        for name, count in (("a", 2), ("b", 4))
    ]
    ran: list[list[int]] = []
    index, most = 0, 1
    while index < most:
        with _triton.forced(index) as kernels:
            ran.append([tuner.launch(torch.zeros(1), (), lambda config: None).meta["BLOCK"] for tuner in tuners])
        index, most = index + 1, max(most, kernels.largest)
    assert ran == [[0, 0], [1, 1], [1, 2], [1, 3]]


def test_several_processes_agree_with_one() -> None:
    found, _ = selftest.tasks("cpu", ["refine"], ["reference"])
    one, two = (list(selftest._rows(found[:3], processes)) for processes in (1, 2))
    assert one == two and all(row.runs == 1 and not row.faults for _, row in two)


def test_every_operator_and_dtype_has_problems() -> None:
    for operator in selftest.operators():
        for dtype in _problems.dtypes(operator):
            made = [make() for make in _problems.problems(operator, dtype)]
            assert made and all(problem.operator == operator and problem.dtype == dtype for problem in made)
            assert len({problem.label for problem in made}) == len(made)


# Warm-up.


def test_warmup_without_a_gpu_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert warmup.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "torch sees no GPU" in err and "run this on the machine with the GPU" in err


def test_warmup_says_what_needs_none() -> None:
    lines = list(warmup.warmup(warmup.Shapes(), device="cpu"))
    assert len(lines) == len(warmup.OPERATORS) and all("needs no warm-up: the backend is" in line for line in lines)


def test_warmup_refuses_an_unknown_operator(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        warmup.main(["--operators", "fuse"])
    assert exit.value.code == 2 and "precision_fusion" in capsys.readouterr().err
