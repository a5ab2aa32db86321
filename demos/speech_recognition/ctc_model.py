"""Acoustic model with CTC over words, and the functions of the configs: training, recognition, alignment."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from returnn.datasets.hdf import SimpleHDFWriter


class Model(nn.Module):
    """Two convolutions that make 4 frames one, a bidirectional LSTM, log probabilities of the words and of blank."""

    def __init__(self, num_features: int, num_labels: int, size: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(num_features, size, kernel_size=5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(size, size, kernel_size=5, stride=2, padding=2)
        self.lstm = nn.LSTM(size, size, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(2 * size, num_labels + 1)
        self.blank = num_labels

    def forward(self, features: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param features: [B, T, num_features], zero behind the end of a sequence
        :param lens: [B]
        :return: log probabilities [B, ceil(T / 4), num_labels + 1], lengths [B]
        """
        x = torch.relu(self.conv1(features.transpose(1, 2)))
        lens = (lens + 1) // 2
        x = x * (torch.arange(x.shape[2]) < lens[:, None])[:, None]
        x = torch.relu(self.conv2(x)).transpose(1, 2)
        lens = (lens + 1) // 2
        packed = nn.utils.rnn.pack_padded_sequence(self.dropout(x), lens, batch_first=True, enforce_sorted=False)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return torch.log_softmax(self.out(self.dropout(x)), dim=-1), lens


def collapse(best: list[int], blank: int) -> list[int]:
    """:return: labels of a CTC path"""
    return [label for i, label in enumerate(best) if label != blank and (i == 0 or best[i - 1] != label)]


def train_step(*, model, data, run_ctx, **_kwargs):
    log_probs, lens = model(data["features"], data["features:size1"])
    labels, label_lens = data["labels"], data["labels:size1"]
    ctc = nn.functional.ctc_loss(
        log_probs.transpose(0, 1), labels, lens, label_lens, blank=model.blank, reduction="sum", zero_infinity=True
    )
    run_ctx.mark_as_loss(name="ctc", loss=ctc, inv_norm_factor=label_lens.sum())


# -- recognition: the word sequence of each segment, as text file


def search_init_hook(run_ctx, filename, **_kwargs):
    run_ctx.words = run_ctx.engine.forward_dataset.datasets["zip"].targets.labels
    run_ctx.output = open(filename, "w", encoding="utf8")  # noqa: SIM115
    run_ctx.output.write("{\n")


def search_step(*, model, data, run_ctx, **_kwargs):
    log_probs, lens = model(data["features"], data["features:size1"])
    for tag, path, length in zip(data["seq_tag"], log_probs.argmax(-1).tolist(), lens.tolist(), strict=True):
        words = " ".join(run_ctx.words[i] for i in collapse(path[:length], model.blank))
        run_ctx.output.write(f"{tag!r}: {words!r},\n")


def search_finish_hook(run_ctx, **_kwargs):
    run_ctx.output.write("}\n")
    run_ctx.output.close()


# -- alignment: how many frames each word lasts, as HDF


def viterbi(log_probs: torch.Tensor, labels: list[int], blank: int) -> list[int]:
    """
    :param log_probs: [T, num_labels + 1]
    :param labels: word sequence
    :param blank: label index
    :return: of each frame in the best CTC path of this word sequence: position in "blank word blank word ... blank"
    """
    states = [blank]
    for label in labels:
        states += [label, blank]
    emission = log_probs[:, states]  # [T, S]
    num_states = len(states)
    minus_inf = torch.full((num_states,), -1e30)
    # Over a blank between two different words.
    may_skip = torch.tensor([i % 2 == 1 and i > 1 and states[i] != states[i - 2] for i in range(num_states)])
    score = minus_inf.clone()
    score[:2] = emission[0, :2]
    back = []
    for t in range(1, len(log_probs)):
        step = torch.cat([minus_inf[:1], score[:-1]])
        skip = torch.where(may_skip, torch.cat([minus_inf[:2], score[:-2]]), minus_inf)
        score, choice = torch.stack([score, step, skip]).max(0)
        score = score + emission[t]
        back.append(choice)
    state = num_states - 1 if score[-1] > score[-2] else num_states - 2
    path = [state]
    for choice in reversed(back):
        state -= int(choice[state])
        path.append(state)
    return path[::-1]


def word_durations(path: list[int], num_words: int) -> list[int]:
    """:return: frames of each word; the frames between two words are halved among them"""
    starts, ends = {}, {}
    for t, state in enumerate(path):
        if state % 2:
            starts.setdefault(state // 2, t)
            ends[state // 2] = t + 1
    borders = [0, *((ends[i] + starts[i + 1]) // 2 for i in range(num_words - 1)), len(path)]
    return [end - start for start, end in itertools.pairwise(borders)]


def align_init_hook(run_ctx, filename, **_kwargs):
    run_ctx.hdf_writer = SimpleHDFWriter(filename, dim=None, ndim=1)


def align_step(*, model, data, run_ctx, **_kwargs):
    log_probs, lens = model(data["features"], data["features:size1"])
    labels, label_lens = data["labels"].tolist(), data["labels:size1"].tolist()
    for i, tag in enumerate(data["seq_tag"]):
        words = labels[i][: label_lens[i]]
        path = viterbi(log_probs[i, : lens[i]], words, model.blank)
        durations = torch.tensor(word_durations(path, len(words)), dtype=torch.int32)
        run_ctx.hdf_writer.insert_batch(durations[None].numpy(), seq_len=[len(words)], seq_tag=[tag])


def align_finish_hook(run_ctx, **_kwargs):
    run_ctx.hdf_writer.close()
