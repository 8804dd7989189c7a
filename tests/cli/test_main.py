"""The program as a process: help, version, and a reader that leaves early."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import undust as package

SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}
COMMANDS = (
    *("generate", "rerun", "inspect", "models", "samplers", "schedules"),
    *(
        "data",
        "train",
        "ema",
        "evaluate",
        "guidances",
        "interpolate",
        "invert",
        "likelihood",
        "lab",
        "lambda",
        "trace",
    ),
)


def test_no_arguments_is_help(undust: Callable[..., Any]):
    done = undust()
    assert done.code == 0
    for command in COMMANDS:
        assert command in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(undust: Callable[..., Any], command: str):
    done = undust(command, "--help")
    assert done.code == 0
    assert f"undust {command}" in done.out


def test_version(undust: Callable[..., Any]):
    assert undust("--version").out == f"undust {package.__version__}\n"


def test_a_reader_that_leaves_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "undust", "--help"],
        env=ENVIRONMENT,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert done.stderr == b""


def test_nothing_heavy_for_help_or_a_wrong_option():
    code = """
import sys
from undust.cli import main
for line in (["--help"], ["generate", "--help"], ["generate", "--nothing"], ["generate"]):
    main(line)
print(sorted({"torch", "numpy", "PIL", "safetensors", "tokenizers"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


LEAVING = """
import atexit, threading, time
from undust.__main__ import process
code = process()
atexit.register(print, "a function of atexit", flush=True)
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread", flush=True))).start()
raise SystemExit(code)
"""


def test_the_process_ends_after_threads_and_with_the_code():
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, "no-such-command"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.stdout == "a thread\na function of atexit\n"
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2
