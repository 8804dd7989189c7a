"""What every test shares: a tiny model, and hypothesis without chance or clock."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

# Before torch is imported, and for the processes that tests start: on tensors this small more
# threads only wait for each other, and on a busy machine they wait for minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from browsing import browser, page  # noqa: F401  # fixtures
from pickle_reader import quick_reader, reader  # noqa: F401

# With the half million objects of torch, transformers and diffusers, a full collection takes a
# quarter of a second, and by default one comes every two. Tests of what is freed collect it.
gc.set_threshold(50_000, 10, 10)

settings.register_profile("undust", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("undust")


MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30


def pytest_configure() -> None:
    """Puts temporary folders in memory: every write is synchronised, and a disk takes its time.

    Folders of tests that passed are removed at once (pyproject.toml).
    """
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    """What was imported until now stays, and need not be looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole model with random weights: 32 px pictures, 8x8x4 latents, 16 tokens."""
    import torch

    from undust.conditioning import tokenizer as tokenizers
    from undust.conditioning.text import TextConditioner
    from undust.diffusion.process import PROCESSES
    from undust.networks.autoencoder import Autoencoder
    from undust.networks.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
    from undust.networks.text_encoder import TextEncoder
    from undust.networks.unet import UNet
    from undust.pipeline import LatentDiffusion

    tokenizer = tokenizers.train(["a cat", "a dog", "고양이"], size=600, length=16)
    end = tokenizer.vocabulary[tokenizers.END]
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LatentDiffusion(
            Autoencoder(
                AutoencoderConfig(block_out_channels=(8, 16, 16), norm_num_groups=4),
            ),
            UNet(
                UNetConfig(
                    sample_size=8,
                    block_out_channels=(16, 32),
                    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                    layers_per_block=1,
                    cross_attention_dim=16,
                    attention_head_dim=2,
                    norm_num_groups=4,
                )
            ),
            (
                TextConditioner(
                    tokenizer,
                    TextEncoder(
                        TextEncoderConfig(
                            vocab_size=len(tokenizer.vocabulary),
                            hidden_size=16,
                            intermediate_size=32,
                            num_hidden_layers=1,
                            num_attention_heads=2,
                            max_position_embeddings=tokenizer.length,
                            bos_token_id=tokenizer.vocabulary[tokenizers.START],
                            eos_token_id=end,
                            pad_token_id=end,
                        )
                    ),
                ),
            ),
            PROCESSES["scaled-linear"](),
            "epsilon",
        ).save(folder)
    return folder
