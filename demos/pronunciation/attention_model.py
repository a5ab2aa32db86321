"""Encoder, attention, decoder; training with the right history, and beam search."""

from __future__ import annotations

import torch
from torch import nn

END = 0  # label of the end of a sequence; also the history at the beginning


class Model(nn.Module):
    """Bidirectional GRU over the source; GRU over the target history, which attends to the encoder by dot products."""

    def __init__(self, num_source: int, num_target: int, size: int = 128) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(num_source, size)
        self.encoder = nn.GRU(size, size, bidirectional=True, batch_first=True)
        self.target_embedding = nn.Embedding(num_target, size)
        self.decoder = nn.GRU(size, 2 * size, batch_first=True)
        self.combine = nn.Linear(4 * size, size)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(size, num_target)

    def encode(self, source: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:return: encoder output [B, S, 2 * size], mask [B, S] of what is no padding"""
        x = self.dropout(self.source_embedding(source))
        packed = nn.utils.rnn.pack_padded_sequence(x, lens, batch_first=True, enforce_sorted=False)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.encoder(packed)[0], batch_first=True)
        return x, torch.arange(x.shape[1]) < lens[:, None]

    def decode(
        self, history: torch.Tensor, state: torch.Tensor | None, encoded: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param history: [B, T], labels before the ones to predict
        :param state: [1, B, 2 * size] of the decoder; None at the beginning
        :return: logits [B, T, num_target], new state
        """
        queries, state = self.decoder(self.dropout(self.target_embedding(history)), state)  # [B, T, 2 * size]
        energy = queries @ encoded.transpose(1, 2) / queries.shape[-1] ** 0.5  # [B, T, S]
        weights = torch.softmax(energy.masked_fill(~mask[:, None], -1e9), dim=-1)
        combined = torch.tanh(self.combine(torch.cat([queries, weights @ encoded], dim=-1)))
        return self.out(self.dropout(combined)), state


def train_step(*, model, data, run_ctx, **_kwargs):
    target, lens = data["classes"].long(), data["classes:size1"]
    encoded, mask = model.encode(data["data"].long(), data["data:size1"])
    logits, _ = model.decode(nn.functional.pad(target[:, :-1], (1, 0), value=END), None, encoded, mask)
    is_target = torch.arange(target.shape[1]) < lens[:, None]
    logits, target = logits[is_target], target[is_target]
    ce = nn.functional.cross_entropy(logits, target, reduction="sum", label_smoothing=0.1 if model.training else 0.0)
    run_ctx.mark_as_loss(name="ce", loss=ce, inv_norm_factor=lens.sum())
    run_ctx.mark_as_loss(name="error", loss=(logits.argmax(-1) != target).sum(), inv_norm_factor=lens.sum(), scale=0)


def beam_search(
    model: Model, source: torch.Tensor, lens: torch.Tensor, *, beam_size: int, max_len: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param source: [B, S]
    :param lens: [B]
    :param beam_size: hypotheses kept per sequence
    :param max_len: steps
    :return: labels [B, beam, T], ended hypotheses filled up with END; scores [B, beam], best first
    """
    num_seqs = len(source)
    encoded, mask = model.encode(source, lens)
    encoded, mask = encoded.repeat_interleave(beam_size, 0), mask.repeat_interleave(beam_size, 0)
    labels = torch.full((num_seqs, beam_size, 0), END)
    scores = torch.tensor([0.0] + [-1e9] * (beam_size - 1)).repeat(num_seqs, 1)  # all begin alike: only one counts
    last, state = torch.full((num_seqs * beam_size, 1), END), None
    ended = torch.zeros((num_seqs, beam_size), dtype=torch.bool)
    for _ in range(max_len):
        logits, state = model.decode(last, state, encoded, mask)
        step = torch.log_softmax(logits[:, 0], -1).view(num_seqs, beam_size, -1)
        num_labels = step.shape[-1]
        only_end = torch.full((num_labels,), -1e9)
        only_end[END] = 0.0
        step = torch.where(ended[..., None], only_end, step)
        scores, best = (scores[..., None] + step).flatten(1).topk(beam_size)
        origin, label = best // num_labels, best % num_labels  # [B, beam]
        labels = torch.cat([labels.gather(1, origin[..., None].expand_as(labels)), label[..., None]], dim=-1)
        ended = ended.gather(1, origin) | (label == END)
        if ended.all():
            break
        rows = (torch.arange(num_seqs)[:, None] * beam_size + origin).flatten()
        last, state = label.view(-1, 1), state[:, rows]
    return labels, scores


def search_init_hook(run_ctx, filename, **_kwargs):
    run_ctx.phonemes = run_ctx.engine.forward_dataset.labels["classes"]
    run_ctx.output = open(filename, "w", encoding="utf8")  # noqa: SIM115
    run_ctx.output.write("{\n")


def search_step(*, model, data, run_ctx, beam_size=4, **_kwargs):
    source, lens = data["data"].long(), data["data:size1"]
    labels, scores = beam_search(model, source, lens, beam_size=beam_size, max_len=2 * int(lens.max()) + 10)
    for tag, beam, beam_scores in zip(data["seq_tag"], labels.tolist(), scores.tolist(), strict=True):
        n_best = [
            (s, " ".join(run_ctx.phonemes[i] for i in hyp if i != END))
            for s, hyp in zip(beam_scores, beam, strict=True)
        ]
        run_ctx.output.write(f"{tag!r}: {n_best!r},\n")


def search_finish_hook(run_ctx, **_kwargs):
    run_ctx.output.write("}\n")
    run_ctx.output.close()
