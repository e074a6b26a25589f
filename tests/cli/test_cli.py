"""Every command has a help text and refuses unknown arguments."""

from __future__ import annotations

import subprocess
import sys

import pytest

from iefvad.cli.main import COMMANDS, main


def test_overview_names_every_command(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_the_package_is_the_command():
    found = subprocess.run([sys.executable, "-m", "iefvad", "nonsense"], capture_output=True, text=True)
    assert found.returncode == 2 and "'nonsense' does not exist" in found.stderr and "train" in found.stderr


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fly"])
    assert stop.value.code == 2
    assert "'fly' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: iefvad {name}")
    assert "Literal[" not in printed and "Union" not in printed and "null" not in printed
    assert "(type: " not in printed and "default: False" not in printed and "[default: " not in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_flag_of_each_command(name, capsys):
    arguments = {"detect": ["run", "video.mp4"], "evaluate": ["run"], "extract": ["v.mp4", "--out", "s"]}
    arguments |= {"convert": ["a.pt", "b.safetensors"], "reproduce": ["all"], "label": ["v.mp4"]}
    with pytest.raises(SystemExit) as stop:
        main([name, *arguments.get(name, []), "--colour", "blue"])
    assert stop.value.code == 2
    assert "colour" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["ief_kernels", "iefvad"])
def test_import_needs_no_gpu_and_compiles_nothing(package):
    """A fresh interpreter imports the package quickly and touches neither CUDA nor a compiler."""
    code = (
        f"import sys, {package}; import torch;"
        "assert not torch.cuda.is_initialized(); assert 'torch.utils.cpp_extension' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_kernels_never_import_the_application():
    code = "import sys, ief_kernels; assert not any(name.split('.')[0] == 'iefvad' for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_reader_that_has_enough_is_no_error():
    """As with `iefvad encoders | head -1`."""
    command = [sys.executable, "-m", "iefvad", "encoders"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
