"""Perplexity by position: held-out windows, one forward each, and means over buckets of positions.

What is measured: a window is read once, so the loss at position p is conditioned on all p previous tokens of the
window and on nothing else. No stride, no sliding: a window of n tokens has n - 1 losses, and every token counts
the same. This room knows models and documents, no methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.texts import Document
from ropescale.evals.tokens import leading_token

CHUNK_ELEMENTS = 2**24  # logits turned into log-probabilities at once: 64 MiB in float32


def cut_windows(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, length: int, limit: int
) -> list[tuple[str, Tensor]]:
    """At most `limit` windows as (document name, [windows, length] int64), the longest documents first.

    A window is consecutive tokens of one document; windows of a document do not overlap. Every document gives
    its first window before any gives its second. The beginning-of-sequence token leads each window if the
    tokenizer adds one by itself.

    Raises:
        InvalidArgumentError: no document holds a window.
    """
    # by characters, so that documents beyond the limit are never tokenized and the choice is the same for all
    longest_first = sorted(documents, key=lambda document: (-len(document.text), document.name))
    cuts: list[tuple[str, Tensor]] = []
    for document in longest_first[:limit]:
        leading = leading_token(tokenizer)
        body = length - len(leading)
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        rows = [[*leading, *ids[i * body : (i + 1) * body]] for i in range(min(len(ids) // body, limit))]
        if rows:
            cuts.append((document.name, torch.tensor(rows)))
    if not cuts:
        raise InvalidArgumentError(
            f"windows: at least one document must hold {length} tokens, got {len(documents)} documents that do not; "
            f"ask for shorter lengths"
        )
    given = [0] * len(cuts)
    while sum(given) < limit and any(n < len(rows) for n, (_, rows) in zip(given, cuts, strict=True)):
        for i, (_, rows) in enumerate(cuts):
            if given[i] < len(rows) and sum(given) < limit:
                given[i] += 1
    return [(name, rows[:n]) for n, (name, rows) in zip(given, cuts, strict=True)]


@torch.inference_mode()
def loss_by_position(model: PreTrainedModel, windows: Tensor, batch_size: int) -> Tensor:
    """[windows, length - 1] float32 on the CPU: the negative log-likelihood of each token after the first.

    One full forward per window, without a cache. Column i is what the model loses at position i, having read
    i + 1 tokens. The log-softmax goes chunk by chunk, so the logits exist once and never a second time.
    """
    losses = torch.empty(windows.shape[0], windows.shape[1] - 1, dtype=torch.float32)
    for start in range(0, windows.shape[0], batch_size):
        batch = windows[start : start + batch_size].to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits  # [batch, length, vocabulary]
        chunk = max(1, CHUNK_ELEMENTS // (logits.shape[0] * logits.shape[2]))
        for first in range(0, losses.shape[1], chunk):
            last = min(first + chunk, losses.shape[1])
            loss = torch.nn.functional.cross_entropy(
                logits[:, first:last].float().transpose(1, 2), batch[:, first + 1 : last + 1], reduction="none"
            )
            losses[start : start + batch_size, first:last] = loss.cpu()
    return losses


def bucket_edges(original_length: int, length: int) -> list[int]:
    """Edges of buckets of an eighth of the original length: 0, L/8, ..., the last one cut at `length`."""
    inner = [edge for i in range(8 * length // original_length + 1) if (edge := i * original_length // 8) < length]
    return [*sorted(set(inner)), length]


def by_bucket(losses: Tensor, edges: Sequence[int]) -> tuple[list[float], list[int]]:
    """Sum (in nats) and number of the losses in each bucket of positions [edge, next edge).

    The exponential of sum / number is the token-weighted perplexity of that bucket.
    """
    pieces = [losses[:, first:last] for first, last in pairwise(edges)]
    return [piece.double().sum().item() for piece in pieces], [piece.numel() for piece in pieces]
