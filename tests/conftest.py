"""What every test shares: one thread, quiet progress bars, and no reach for a network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of child processes
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import setuptools  # noqa: F401  # torch's compiler imports it, which fails after Python's own distutils was imported
import torch
import transformers

# Tiny models: a second thread only waits for the first, and stalls where the cores are busy
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
