"""From words to log-mel frames: a duration for each word, then the frames of each word."""

from __future__ import annotations

import torch
from torch import nn

from returnn.datasets.hdf import SimpleHDFWriter

FRAMES_PER_STEP = 4  # the acoustic model of the speech recognition demo has one step for 4 frames


class Model(nn.Module):
    """Words are repeated by their durations; convolutions see them, and the position in the word."""

    def __init__(self, num_words: int, num_features: int, size: int = 192) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(num_words, size)
        self.duration_net = nn.Sequential(
            nn.Conv1d(size, size, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv1d(size, 1, 3, padding=1)
        )
        self.position = nn.Linear(6, size)
        self.frame_net = nn.Sequential(
            *(layer for _ in range(3) for layer in (nn.Conv1d(size, size, 5, padding=2), nn.ReLU(), nn.Dropout(0.1)))
        )
        self.out = nn.Linear(size, num_features)

    def log_durations(self, words: torch.Tensor) -> torch.Tensor:
        """:param words: [B, W]. :return: [B, W], natural logarithm of the number of steps"""
        return self.duration_net(self.word_embedding(words).transpose(1, 2))[:, 0]

    def frames(self, words: torch.Tensor, durations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param words: [B, W]
        :param durations: [B, W] steps, 0 behind the end
        :return: features [B, T, num_features], lengths [B]: sum of the durations
        """
        rows = [self._upsample(*pair) for pair in zip(self.word_embedding(words), durations, strict=True)]
        x = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        x = x + self.frame_net(x.transpose(1, 2)).transpose(1, 2)
        return self.out(x), durations.sum(1)

    def _upsample(self, embedded: torch.Tensor, durations: torch.Tensor) -> torch.Tensor:
        """:return: [T, size]: of each step the word, and where in the word it is"""
        starts = (durations.cumsum(0) - durations).repeat_interleave(durations)
        length = durations.repeat_interleave(durations).float()
        relative = (torch.arange(len(starts)) - starts + 0.5) / length
        position = torch.stack(
            [relative, (relative * torch.pi).sin(), (relative * 2 * torch.pi).sin(), (relative * 2 * torch.pi).cos(),
             length / 10, relative * length / 10], dim=-1,
        )  # fmt: skip
        return embedded.repeat_interleave(durations, 0) + self.position(position)


def train_step(*, model, data, run_ctx, **_kwargs):
    words, num_words = data["words"].long(), data["words:size1"]
    durations, features, lens = data["durations"].long(), data["features"], data["features:size1"]
    is_word = torch.arange(words.shape[1]) < num_words[:, None]
    log_durations = model.log_durations(words)[is_word]
    duration_l1 = (log_durations - durations[is_word].float().log()).abs().sum()
    predicted, predicted_lens = model.frames(words, durations)
    assert torch.equal(predicted_lens, lens.long()), "durations do not fit to the features"
    is_step = torch.arange(features.shape[1]) < lens[:, None]
    mel_l1 = (predicted - features)[is_step].abs().mean(-1).sum()
    run_ctx.mark_as_loss(name="log_mel_l1", loss=mel_l1, inv_norm_factor=lens.sum())
    run_ctx.mark_as_loss(name="duration_l1", loss=duration_l1, inv_norm_factor=num_words.sum())


def synthesise_init_hook(run_ctx, filename, **_kwargs):
    run_ctx.hdf_writer = SimpleHDFWriter(filename, dim=model_features(run_ctx) // FRAMES_PER_STEP, ndim=2)


def model_features(run_ctx) -> int:
    """:return: features of a step"""
    return run_ctx.engine._model.out.out_features


def synthesise_step(*, model, data, run_ctx, **_kwargs):
    words, num_words = data["words"].long(), data["words:size1"]
    durations = model.log_durations(words).exp().round().long().clamp(2, 40)
    durations = durations * (torch.arange(words.shape[1]) < num_words[:, None])
    features, lens = model.frames(words, durations)
    frames = features.reshape(len(features), -1, features.shape[-1] // FRAMES_PER_STEP)  # [B, 4 * T, 40]
    lens = lens * FRAMES_PER_STEP
    for seq, length in zip(frames, lens.tolist(), strict=True):  # as the recognition normalises its features
        seq[:length] = (seq[:length] - seq[:length].mean(0)) / seq[:length].std(0).clamp(min=0.01)
    run_ctx.hdf_writer.insert_batch(frames.numpy(), seq_len=lens.tolist(), seq_tag=list(data["seq_tag"]))


def synthesise_finish_hook(run_ctx, **_kwargs):
    run_ctx.hdf_writer.close()
