"""CPU threads of the commands: how they wait, their number, and the CPU quota of a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iefvad.cli.main import main
from iefvad.training import distributed
from iefvad.utils import threads
from iefvad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = (*threads._WAITING, *threads._NUMBERS)
# Prints the variables and ends when torch is imported.
LOOK = """
import os, runpy, sys
class Look:
    def find_spec(name, path, target=None):
        if name == "torch":
            print("torch", *(os.environ.get(name) for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Look)
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def clean(**more: str) -> dict[str, str]:
    """The environment of a user who set none of the variables, and these."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **more}


def python(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=clean(**environment), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch):
    """Whatever a test chooses is undone."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_chosen", None)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that its absence is restored too
        monkeypatch.delenv(name)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "words",
    [
        "train --features nowhere",
        "extract nowhere.mp4 --out store",
        "evaluate nowhere",
        "detect nowhere video.mp4",
        "data verify nowhere",
        "features info nowhere",
    ],
)
def test_a_command_sets_how_threads_wait_before_torch_is_loaded(words):
    assert "torch 1500 0 None" in python("-c", LOOK, *f"iefvad.{words}".split())


def test_the_console_command_does_too():
    assert "torch 1500 0 None" in python("-c", LOOK, *["iefvad", "train", "--features", "nowhere"])


@pytest.mark.parametrize(
    ("variable", "value", "seen"),
    [
        ("GOMP_SPINCOUNT", "7", "torch 7 None None"),
        ("KMP_BLOCKTIME", "5", "torch None 5 None"),
        ("OMP_WAIT_POLICY", "active", "torch None None active"),
    ],
)
def test_the_users_variables_win(variable, value, seen):
    assert seen in python("-c", LOOK, *["iefvad.train", "--features", "nowhere"], **{variable: value})


def test_nothing_is_changed_where_torch_is_loaded_already():
    code = "import torch, os; before = dict(os.environ); import iefvad.cli.main; print(before == dict(os.environ))"
    assert python("-c", code) == "True\n"


def test_the_package_alone_sets_nothing():
    code = "import os; before = dict(os.environ); import iefvad, ief_kernels; print(before == dict(os.environ))"
    assert python("-c", code) == "True\n"


# The number of threads.


def quota_files(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A root folder with these control groups: lines of /proc/self/cgroup, and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "9:name=systemd:/\n4:memory:/a\n1:cpu,cpuacct:/docker/123\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "100000 50000\n"}, 2.0),
        ("0::/host/path\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/../..\n", {"cpu.max": "100000 100000\n"}, 1.0),
        (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1, {"cpu/docker/123/cpu.cfs_quota_us": "50000", "cpu/docker/123/cpu.cfs_period_us": "100000"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
    ],
)
def test_quota_of_the_control_groups(tmp_path, cgroup, files, quota):
    assert threads.cpu_quota(quota_files(tmp_path, cgroup, files)) == quota


def test_no_quota_without_control_groups(tmp_path):
    assert threads.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "affinity", "count"), [(None, 8, 8), (0.1, 8, 1), (1.5, 8, 2), (2.0, 8, 2), (9.0, 8, 8)]
)
def test_cpus_are_those_of_the_affinity_and_of_the_quota(monkeypatch, quota, affinity, count):
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(threads, "_affinity", lambda: affinity)
    assert threads.cpus() == count


@pytest.mark.parametrize(
    ("variables", "seen"), [({}, "2"), ({"OMP_NUM_THREADS": "5"}, "5"), ({"MKL_NUM_THREADS": "5"}, None)]
)
def test_a_quota_limits_the_threads_unless_the_user_did(monkeypatch, untouched, variables, seen):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(threads, "_affinity", lambda: 8)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    threads.prepare()
    assert os.environ.get("OMP_NUM_THREADS") == seen


ARGUMENTS = {
    "train": ["--features", "absent"],
    "extract": ["absent.mp4", "--out", "{out}"],
    "evaluate": ["absent"],
    "detect": ["absent", "absent.mp4"],
    "calibrate": ["absent", "absent.mp4"],
    "data": ["check", "absent"],
    "features": ["info", "absent"],
    "convert": ["absent", "{out}.safetensors"],
}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_every_command_takes_the_number_of_threads(command, untouched, tmp_path, capsys):
    """It holds for torch here, and for children, although the command then ends with an error."""
    arguments = [text.format(out=tmp_path / "out") for text in ARGUMENTS[command]]
    for count in (3, 1):
        assert main([command, *arguments, "--threads", str(count)]) == 2
        assert torch.get_num_threads() == count == threads.threads()
        child = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
        assert subprocess.run(child, capture_output=True, text=True, check=True).stdout == f"{count}\n"
    assert "absent" in capsys.readouterr().err


@pytest.mark.parametrize("command", ARGUMENTS)
@pytest.mark.parametrize("count", ["0", "-2"])
def test_no_threads_are_an_error(command, count, untouched, tmp_path, capsys):
    before = torch.get_num_threads()
    arguments = [text.format(out=tmp_path / "out") for text in ARGUMENTS[command]]
    assert main([command, *arguments, "--threads", count]) == 2
    assert f"--threads must be at least 1, not {count}: leave it out to use all CPUs." in capsys.readouterr().err
    assert torch.get_num_threads() == before


def test_threads_from_a_file_of_options(untouched, tmp_path):
    (tmp_path / "options.yaml").write_text("threads: 1\n")
    assert main(["train", "--config", str(tmp_path / "options.yaml"), "--features", "absent"]) == 2
    assert torch.get_num_threads() == 1


def test_the_choice_wins_over_variables(untouched, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    threads.use_threads(1)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"


def test_processes_of_torchrun_share_the_cpus_or_take_the_choice(untouched, monkeypatch):
    monkeypatch.setattr(threads, "cpus", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what torchrun sets
    distributed._share_cores(2)
    assert torch.get_num_threads() == 3
    threads.use_threads(1)
    distributed._share_cores(2)
    assert torch.get_num_threads() == 1


def test_the_benchmarks_take_the_number_of_threads(untouched, monkeypatch, capsys):
    from bench.__main__ import main as bench

    assert bench(["plot", "--threads", "0"]) == 2
    assert "--threads must be at least 1" in capsys.readouterr().err
    assert bench(["absent", "--threads", "1"]) == 2
    assert torch.get_num_threads() == 1
    with pytest.raises(UserError):
        threads.use_threads(-1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured with the OpenMP of torch on Linux")
@pytest.mark.skipif(torch.get_num_threads() < 2, reason="needs two CPUs")
def test_threads_do_not_hold_each_other_up_on_a_busy_machine():
    """Four busy loops per CPU: with all threads a step takes at most five times as long as with one thread.

    Measured on two CPUs: 2.5 to 2.8 as the commands wait, 8 to 16 as OpenMP waits by default. The bound lies between.
    """
    command = [sys.executable, str(ROOT / "tests/helpers/busy_step.py"), "--wait"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=clean(), cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as measuring:
        assert measuring.stdout is not None and measuring.stdout.readline() == "ready\n"
        loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(4 * threads.cpus())]
        try:
            ratio = float(measuring.communicate("\n")[0])
        finally:
            for loop in loops:
                loop.kill()
            for loop in loops:
                loop.wait()
    assert ratio < 5
