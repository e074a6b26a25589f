"""What of `_triton` and `_measure` does not need a GPU: where choices are kept, how one is made, and how it is forced.

Measuring runs on CPU tensors, with events that read a clock of the test.
"""

from __future__ import annotations

import json
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ief_kernels import _measure, _spills, _triton
from ief_kernels._spills import Spill
from ief_kernels._triton import Config, Tuner

CONFIGS = [Config({"BLOCK": 64}, 2), Config({"BLOCK": 128}), Config({"BLOCK": 256}, 8, 2)]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path / "here"))
    assert _triton.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("IEF_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _triton.cache_folder() == tmp_path / "ief_kernels"


def test_choices_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path / "new" / "folder"))
    assert _triton._read("GPU") == {}
    _triton._write("GPU", {"a": 1})
    _triton._write("GPU", {"b": 2})
    assert _triton._read("GPU") == {"a": 1, "b": 2} and _triton._read("other") == {}
    assert [path.name for path in _triton.cache_folder().iterdir()] == ["GPU.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_file_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path))
    (tmp_path / "GPU.json").write_text(text)
    assert _triton._read("GPU") == {}
    _triton._write("GPU", {"a": 1})
    assert json.loads((tmp_path / "GPU.json").read_text()) == {"a": 1}


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path / "file"))
    _triton._write("GPU", {"a": 1})
    assert (tmp_path / "file").read_text() == "not a folder"


def test_forced_and_first() -> None:
    tuner = Tuner("kernel", CONFIGS)
    ran: list[Config] = []

    def launch() -> Config:
        return tuner.launch(torch.zeros(1), ("key",), ran.append)

    assert launch() == CONFIGS[0]  # nothing is measured on the CPU
    with _triton.forced(1):
        assert launch() == CONFIGS[1]
        with _triton.forced(9):
            assert launch() == CONFIGS[2]
        assert launch() == CONFIGS[1]
    assert launch() == CONFIGS[0]
    assert ran == [CONFIGS[i] for i in (0, 1, 2, 1, 0)]


def test_other_configurations_are_another_entry() -> None:
    versions = [
        Tuner("kernel", configs)._version for configs in (CONFIGS, CONFIGS[:2], list(reversed(CONFIGS)), CONFIGS)
    ]
    assert len(set(versions)) == 3 and versions[0] == versions[3]


def test_configurations_that_spill_do_not_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(config: Config, arch: int, tuner: str = "kernel") -> Spill:
        return Spill(tuner, "op", "jitted", "fp32", arch, f"FLAG=1,{config.name}", 4)

    monkeypatch.setattr(_spills, "version", lambda: "3.0")
    tuner = Tuner("kernel", CONFIGS)
    assert tuner.usable(9) == (0, 1, 2)
    rows = (row(CONFIGS[0], 90), row(CONFIGS[1], 80), row(CONFIGS[2], 90, "other"))
    monkeypatch.setitem(_spills.RECORDED, "3.0", rows)
    assert tuner.usable(9) == (1, 2) and tuner.usable(8) == (0, 2) and tuner.usable(10) == (0, 1, 2)
    monkeypatch.setitem(_spills.RECORDED, "3.0", tuple(row(config, 90) for config in CONFIGS))
    assert tuner.usable(9) == (0, 1, 2)  # one has to serve
    monkeypatch.setattr(_spills, "version", lambda: "")
    assert tuner.usable(9) == (0, 1, 2)


def test_a_name_tells_configurations_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [config.name for config in CONFIGS[:2]] == ["BLOCK=64,warps=2,stages=1", "BLOCK=128,warps=4,stages=1"]
    # a name that another ends with is not taken for it
    monkeypatch.setattr(_spills, "version", lambda: "3.0")
    row = Spill("kernel", "op", "jitted", "fp32", 90, "BLOCK_K=6,warps=4,stages=1", 4)
    monkeypatch.setitem(_spills.RECORDED, "3.0", (row,))
    assert Tuner("kernel", [Config({"K": 6}), Config({"BLOCK_K": 6})]).usable(9) == (0,)


def test_options() -> None:
    options = Config({"BLOCK": 64}, 2, 3).options()
    assert options == {"BLOCK": 64, "num_warps": 2, "num_stages": 3, "enable_fp_fusion": True}


class Gpu:
    """A GPU that is none: a clock that kernels and memory writes advance, and a record of what happened."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def spend(self, what: str, milliseconds: float) -> None:
        self.log.append(what)
        self.now += milliseconds


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    found = Gpu()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            found.log.append("event")
            self.at = found.now

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    properties = types.SimpleNamespace(L2_cache_size=512)
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path / "choices"))
    monkeypatch.setattr(_triton, "TUNE", True)
    monkeypatch.setattr(_triton, "_measurable", lambda tensor: True)
    monkeypatch.setattr(_triton, "_device_name", lambda device: "GPU-9.0")
    monkeypatch.setattr(_triton, "_shown_name", lambda device: "GPU of the test")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(_measure.Stopwatch, "_flush", lambda self, times: found.spend(f"flush {times}", 0.01 * times))
    return found


class Kernel:
    """Writes 1..N into its output; a configuration takes the time that is given for its BLOCK."""

    def __init__(self, gpu: Gpu, milliseconds: dict[int, float], wrong: dict[int, float] | None = None) -> None:
        self.gpu, self.milliseconds, self.wrong = gpu, milliseconds, wrong or {}
        self.out = torch.zeros(4, 8)
        self.tuner = Tuner("kernel", CONFIGS)

    def run(self, config: Config) -> None:
        block = config.meta["BLOCK"]
        self.gpu.spend(f"run {block}", self.milliseconds[block])
        self.out.copy_(torch.arange(1.0, 33.0).view(4, 8))
        if block in self.wrong:
            self.out[2, 3] = self.wrong[block]

    def launch(self, rows: int = 256, key: tuple[str, ...] = ("key",), worth: bool = True) -> int:
        return self.tuner.launch(self.out, key, self.run, worth, rows=rows, outputs=[None, self.out]).meta["BLOCK"]


TIMES = {64: 3.0, 128: 2.0, 256: 1.0}


TIMED = ", microseconds"


def stored() -> dict[str, object]:
    """The choices; what was measured lies beside them, for people."""
    return {key: value for key, value in _triton._read("GPU-9.0").items() if not key.endswith(TIMED)}


def test_the_fastest_of_equals_wins_and_is_kept(gpu: Gpu) -> None:
    kernel = Kernel(gpu, TIMES)
    assert kernel.launch() == 256
    assert list(stored().values()) == [2]
    times = {config.name: 1e3 * TIMES[config.meta["BLOCK"]] for config in CONFIGS}
    assert [_triton._read("GPU-9.0")[entry + TIMED] for entry in stored()] == [times]
    gpu.log.clear()
    assert kernel.launch() == 256 and gpu.log == ["run 256"]  # measured once
    again = Kernel(gpu, TIMES)
    gpu.log.clear()
    assert again.launch() == 256 and gpu.log == ["run 256"]  # and read by the next process
    assert again.launch(worth=False) == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 20.5, None], ids=str)
def test_a_wrong_configuration_never_wins(gpu: Gpu, value: float | None) -> None:
    kernel = Kernel(gpu, TIMES, {} if value is None else {256: value})
    if value is None:  # an element that is not written, which holds what the run before wrote

        def run(config: Config) -> None:
            kept = kernel.out[2, 3].clone()
            kernel.__class__.run(kernel, config)
            if config.meta["BLOCK"] == 256:
                kernel.out[2, 3] = kept

        kernel.run = run  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning) as caught:
        assert kernel.launch() == 128
    (warning,) = caught
    text = str(warning.message)
    assert all(part in text for part in ("kernel", CONFIGS[2].name, "GPU of the test", "selftest"))
    # It takes no part in other keys, sizes and processes either, and is not reported again.
    gpu.log.clear()
    assert kernel.launch(key=("other",)) == 128 and Kernel(gpu, TIMES).launch(rows=1) == 128
    assert "run 256" not in gpu.log
    assert [CONFIGS[2].name] in stored().values()


def test_a_choice_that_turns_out_wrong_for_another_key_is_taken_back(gpu: Gpu) -> None:
    kernel = Kernel(gpu, TIMES)
    assert kernel.launch() == 256
    kernel.wrong = {256: 0.0}
    with pytest.warns(RuntimeWarning, match="differs"):
        assert kernel.launch(key=("other",)) == 128
    assert kernel.launch() == 128


def test_sums_in_another_order_are_no_fault(gpu: Gpu) -> None:
    kernel = Kernel(gpu, TIMES, {256: 20.0 * (1 + 1e-4)})
    assert kernel.launch() == 256


def test_only_what_means_the_same_is_compared(gpu: Gpu) -> None:
    parts = torch.zeros(4)

    def run(config: Config) -> None:
        gpu.spend("run", TIMES[config.meta["BLOCK"]])
        count = 256 // config.meta["BLOCK"]
        parts[:count] = 12.0 / count

    tuner = Tuner("kernel", CONFIGS)
    found = tuner.launch(
        parts, (), run, outputs=[parts], compared=lambda config: [parts[: 256 // config.meta["BLOCK"]].sum()]
    )
    assert found == CONFIGS[2]


def test_where_the_first_has_no_number_none_is_compared(gpu: Gpu) -> None:
    assert _measure.difference(torch.tensor([1.0, 2.0]), torch.tensor([float("nan"), 2.0])) is None
    assert _measure.difference(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])) is not None
    assert _measure.difference(torch.tensor([1, 2]), torch.tensor([1, 3])) is not None
    assert _measure.difference(torch.tensor([], dtype=torch.int32), torch.tensor([], dtype=torch.int32)) is None
    # A bfloat16 number may round to its neighbour, float32 may not be so far away.
    one, next_one = torch.tensor([1.0]), torch.tensor([1.0078125])
    assert _measure.difference(next_one.bfloat16(), one.bfloat16()) is None
    assert _measure.difference(next_one, one) is not None


def test_differences_are_found_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure, "_SLICE", 16)
    expected = torch.randn(50, 8)
    for row in (0, 1, 2, 48, 49):
        actual = expected.clone()
        assert _measure.difference(actual, expected) is None
        actual[row, 7] += 1
        assert _measure.difference(actual, expected) is not None


def test_a_configuration_that_fails_is_left_out(gpu: Gpu) -> None:
    kernel = Kernel(gpu, TIMES)

    def run(config: Config) -> None:
        if config.meta["BLOCK"] == 256:
            raise ValueError("no such instruction")
        kernel.__class__.run(kernel, config)

    kernel.run = run  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match="BLOCK=256.* fails .ValueError: no such instruction"):
        assert kernel.launch() == 128
    assert kernel.launch(key=("other",)) == 128  # without a second warning
    assert list(stored().values()) == [1, 1]  # it may have been the machine's fault: the next process tries again


def test_no_room_for_one_or_for_all(gpu: Gpu) -> None:
    resources = pytest.importorskip("triton.runtime.errors").OutOfResources
    kernel = Kernel(gpu, TIMES)
    too_large = {64, 256}

    def run(config: Config) -> None:
        if config.meta["BLOCK"] in too_large:
            raise resources(300_000, 200_000, "shared memory")
        kernel.__class__.run(kernel, config)

    kernel.run = run  # type: ignore[method-assign]
    assert kernel.launch() == 128
    too_large.add(128)
    with pytest.raises(RuntimeError, match="no configuration of kernel fits"):
        kernel.launch(key=("other",))


def test_the_choice_depends_on_the_power_of_two(gpu: Gpu) -> None:
    kernel = Kernel(gpu, TIMES)
    assert kernel.launch(rows=1 << 15) == 256
    kernel.milliseconds = {64: 1.0, 128: 2.0, 256: 3.0}
    assert kernel.launch(rows=128 * 255) == 256  # the same
    assert kernel.launch(rows=1 << 17) == 64
    assert len(stored()) == 2


@pytest.mark.parametrize("changed", ["torch", "triton"])
def test_another_version_measures_anew(gpu: Gpu, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(gpu, TIMES).launch()
    if changed == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    else:
        monkeypatch.setattr(_spills, "full_version", lambda: "9.9")
    assert Kernel(gpu, {64: 1.0, 128: 2.0, 256: 3.0}).launch() == 64


def test_the_cache_is_flushed_before_each_pair_of_events(gpu: Gpu) -> None:
    kernel = Kernel(gpu, TIMES)
    kernel.launch()
    timed = "|".join(gpu.log).split("flush")[2:]  # after the stopwatch's own
    assert len(timed) == _measure.PAIRS * len(CONFIGS)
    for number, part in enumerate(timed):
        block = (64, 128, 256)[number % 3]  # interleaved
        events, last = part.split("|", 1)[1], number == len(timed) - 1
        runs = "|".join([f"run {block}"] * _measure.RUNS)
        assert events.strip("|") == f"event|{runs}|event" + ("|run 256" if last else "")


def test_the_gpu_is_kept_busy_while_python_launches(gpu: Gpu) -> None:
    stopwatch = _measure.Stopwatch(torch.device("cpu"))  # a flush takes 10 µs on this clock
    assert stopwatch.flushes(0.0) == 1
    assert stopwatch.flushes(100e-6) == 15


def test_the_median_decides(gpu: Gpu) -> None:
    kernel = Kernel(gpu, TIMES)
    calls = {64: 0, 128: 0, 256: 0}

    def run(config: Config) -> None:
        block = config.meta["BLOCK"]
        calls[block] += 1
        if block == 256 and calls[block] == _measure.WARM_UPS + _measure.RUNS + 6:
            gpu.spend("another program's work", 1000.0)
        kernel.__class__.run(kernel, config)

    kernel.run = run  # type: ignore[method-assign]
    assert kernel.launch() == 256


def test_without_memory_the_first_serves(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(device: torch.device) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(_measure, "Stopwatch", full)
    kernel = Kernel(gpu, TIMES)
    with pytest.warns(RuntimeWarning, match="too little GPU memory"):
        assert kernel.launch() == 64
    assert kernel.launch() == 64 and stored() == {}


def slow_kernel(gpu: Gpu, seconds: float) -> Callable[[], int]:
    kernel = Kernel(gpu, TIMES)
    seen: set[int] = set()

    def run(config: Config) -> None:
        if config.meta["BLOCK"] not in seen:
            seen.add(config.meta["BLOCK"])
            time.sleep(seconds)
        kernel.__class__.run(kernel, config)

    kernel.run = run  # type: ignore[method-assign]
    return kernel.launch


def test_one_line_where_compilation_takes_long(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("IEF_KERNELS_QUIET", raising=False)
    monkeypatch.setattr(_measure, "SLOW", 60)
    slow_kernel(gpu, 0.0)()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(_measure, "SLOW", 0.02)
    _triton._write("GPU-9.0", dict.fromkeys(stored()))  # forgotten
    slow_kernel(gpu, 0.1)()
    assert capfd.readouterr() == ("", "ief_kernels: compiling 3 configurations of kernel for GPU of the test\n")
    _triton._write("GPU-9.0", dict.fromkeys(stored()))
    monkeypatch.setenv("IEF_KERNELS_QUIET", "1")
    slow_kernel(gpu, 0.1)()
    assert capfd.readouterr() == ("", "")


def test_configurations_are_compiled_side_by_side(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure, "processors", lambda: 2)
    began = time.perf_counter()
    slow_kernel(gpu, 0.2)()
    assert time.perf_counter() - began < 0.55  # three of 0.2 s, the last two at once


def test_compiling_alone_measures_nothing(gpu: Gpu) -> None:
    kernel = Kernel(gpu, TIMES)
    with _triton.compile_only():
        assert kernel.launch() == 64 and kernel.launch() == 64
    assert gpu.log == ["run 64", "run 128", "run 256", "run 64", "run 64"] and stored() == {}
    assert kernel.launch() == 256
