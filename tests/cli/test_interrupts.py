"""Ctrl-C at any moment: one line, 130, and never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from pydantic_core import SchemaSerializer, core_schema

from undust.cli import main
from undust.interrupts import stopping_in_imports

SOURCE = Path(__file__).parents[2] / "src"


def start(code: str, *arguments: str, here: Path) -> subprocess.Popen[str]:
    """A Python that listens to Ctrl-C whatever this one was started by."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from undust.__main__ import main
print("started", flush=True)
sys.exit(main())
"""


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0])
def test_in_the_first_second(delay: float, here: Path, first_stage_recipe: Path):
    """Until and while torch is imported, which aborts on an exception or swallows it."""
    running = start(RUN, "train", str(first_stage_recipe), "--set", "run.steps=100000", here=here)
    assert running.stdout
    assert running.stdout.readline() == "started\n"
    time.sleep(delay)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    last = said.splitlines()[-1]
    assert last.startswith("undust: stopped")
    assert "Traceback" not in said


SWALLOWS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from undust.__main__ import main
from undust.interrupts import stopping_in_imports
with stopping_in_imports():
    import swallowing
print("went on")
"""


def test_an_import_that_swallows_it(tmp_path: Path):
    (tmp_path / "swallowing.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except BaseException:\n"
        "    pass\n"
    )
    running = start(SWALLOWS, here=tmp_path)
    assert running.communicate(timeout=60) == ("", "undust: stopped\n")
    assert running.returncode == 130


def test_elsewhere_it_is_an_exception_and_the_handler_comes_back():
    # Tests that are started in the background begin with the signal ignored.
    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), stopping_in_imports():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert main(["--version"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, held)


def test_an_exception_that_was_made_of_it_is_it():
    """By pydantic, which builds schemas in compiled code when they are first needed."""
    held = signal.signal(signal.SIGINT, signal.default_int_handler)

    class Pressed:
        def __repr__(self) -> str:
            signal.raise_signal(signal.SIGINT)
            return ""

    try:
        with pytest.raises(KeyboardInterrupt), stopping_in_imports():
            SchemaSerializer(core_schema.literal_schema([Pressed()]))
        with pytest.raises(ValueError), stopping_in_imports():
            raise ValueError("a prompt about KeyboardInterrupt: none")
    finally:
        signal.signal(signal.SIGINT, held)


def test_a_process_that_ignores_it_goes_on_ignoring_it():
    held = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping_in_imports():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, held)


WRITES = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from undust.formats.files import atomic
from undust.interrupts import stopping_in_imports
sys.path.insert(0, ".")
with stopping_in_imports(), atomic(Path("out/a.txt")) as temporary:
    temporary.write_text("half")
    import interrupted
"""


def test_in_an_import_while_a_file_is_written(here: Path):
    """Pillow imports all its formats when it first saves an animation."""
    (here / "out").mkdir()
    (here / "interrupted.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    running = start(WRITES, here=here)
    assert running.communicate(timeout=60) == ("", "undust: stopped\n")
    assert running.returncode == 130
    assert not [*(here / "out").iterdir()]
