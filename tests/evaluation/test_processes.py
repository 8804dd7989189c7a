"""Evaluations in several processes: the figures of one, and no process that stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import undust
from undust.cli import main
from undust.datasets import image_folder
from undust.errors import UndustError
from undust.evaluation.processes import Processes
from undust.evaluation.report import evaluate
from undust.evaluation.sampling import SampledPictures
from undust.generation import loop

# Batches of two pictures; Ctrl-C as at a terminal, also where the tests run in the background.
PROGRAM = (
    "import sys, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from undust.generation import loop; loop.MAX_BATCH_PIXELS = 2 * 32 * 32; "
    "from undust.cli import main; sys.exit(main(sys.argv[1:]))"
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(
    tiny_model: Path, draw: Callable[[int], list[Image.Image]], tmp_path: Path
) -> Callable[..., list[str]]:
    """The command line of an evaluation of twelve pictures."""
    data = tmp_path / "data"
    data.mkdir()
    for number, picture in enumerate(draw(12)):
        picture.save(data / f"{number:02}.png")
    image_folder.write(
        data, [{"file_name": f"{k:02}.png", "text": f"thing {k}"} for k in range(12)]
    )
    networks = ("--features", "none", "--perceptual", "none")
    options = ("--steps", "12", *networks, "--json")

    def line(*more: str) -> list[str]:
        given = ("evaluate", str(tiny_model), str(data), *options, *more)
        return [sys.executable, "-c", PROGRAM, *given]

    return line


def test_an_evaluation_that_is_stopped_goes_on(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Ctrl-C ends all processes; then the same command gives the figures of one process."""
    line = command("--processes", "2", "--out", str(tmp_path / "spread"))
    kept = tmp_path / "spread" / "captions"
    process = subprocess.Popen(
        line,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (kept.is_dir() and len(list(kept.glob("0*"))) > 2):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # all of them, as at a terminal
    _, err = process.communicate(timeout=60)  # all have its stderr, so that this waits for all
    assert (process.returncode, err) == (130, "undust: stopped\n")
    assert 2 < len(list(kept.glob("0*.png"))) < 12
    monkeypatch.setattr(loop, "MAX_BATCH_PIXELS", 2 * 32 * 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(line[3:]) == 0
        found = json.loads(capsys.readouterr().out)
        one = evaluate(undust.load(line[4]), line[5], steps=12, folder=tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    assert found["figures"] == one.model_dump(mode="json")["figures"]
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "captions").glob("*.png")}
        for name in ("spread", "one")
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 12


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (partial(undust.load, "emjoi"), "unknown model 'emjoi'"),
        (partial(os._exit, 3), r"one of them ended \(exit code 3\); fewer need less memory"),
    ],
)
def test_an_error_in_a_process_is_one_line(
    load: Callable[[], Any], reason: str, tiny_model: Path, tmp_path: Path
):
    model = undust.load(tiny_model)
    pictures = SampledPictures(model, model.recipes("a cat", seed=0, steps=1), tmp_path / "kept")
    with pytest.raises(UndustError, match=reason) as caught:
        Processes(2, load).sample(pictures.missing((1, 1)), lambda _done, _all: None)
    assert str(caught.value).isprintable()
