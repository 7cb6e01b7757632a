"""Libraries, told before they load to leave their own bars and remarks out."""

import os


def quieten_libraries() -> None:
    """Without their own bars: ours show the whole run."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def quieten_transformers() -> None:
    """Without its bars and its remarks on keys that it does not read, which are there for other engines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
