"""A process that reads pickles soon: in children of one that has imported torch already.

`pickles._run` starts a Python for each file, which takes a second or two, and of which
tests/formats/test_pickles.py is. Here the same code reads them, in a process of its own too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from undust.formats import pickles

SERVE = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
import torch
from undust.formats import pickles
for line in sys.stdin:
    arguments, folder, said = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(folder)
            os.dup2(os.open(said, os.O_WRONLY), 2)
            sys.argv = ["", *arguments]
            code = pickles.main()
            sys.stderr.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def reader() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", SERVE, json.dumps(pickles._places())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=pickles.ENVIRONMENT,
        text=True,
    ) as process:
        yield process


@pytest.fixture
def quick_reader(reader: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are read in a child of `reader`."""

    def run(arguments: list[str], path: Path, patience: float) -> None:
        assert reader.stdin and reader.stdout
        with tempfile.NamedTemporaryFile() as said:
            order = arguments, str(Path(arguments[1]).parent), said.name
            reader.stdin.write(json.dumps(order) + "\n")
            reader.stdin.flush()
            if code := int(reader.stdout.readline()):
                raise pickles._refusal(path, pickles._reason(code, said))

    monkeypatch.setattr(pickles, "_run", run)
