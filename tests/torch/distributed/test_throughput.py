"""The line that says how fast each rank is."""

from __future__ import annotations

from returnn.torch.distributed.throughput import RankSpeed, slowest_first, speed_line


def test_few_ranks_are_listed() -> None:
    speeds = [RankSpeed(0, 100, 10.0, 0.5, 4.0), RankSpeed(1, 98, 10.0, 3.0, 6.0)]
    assert speed_line("train epoch 3", speeds) == (
        "train epoch 3: 2 ranks, 19.8 seqs/s in all: rank 0 10 seqs/s, 5.0% waiting for data; "
        "rank 1 9.8 seqs/s, 30.0% waiting for data; slowest: rank 1 (at work by itself 60.0% of the time)"
    )


def test_of_many_ranks_the_slowest_are_named() -> None:
    speeds = [RankSpeed(r, 100 + r, 10.0, 0.01 * r) for r in range(1000)]
    line = speed_line("ep 3 train", speeds)
    assert line.startswith("ep 3 train: 1000 ranks, 5.995e+04 seqs/s in all: ")
    assert "seqs/s per rank min 10, median 59.95, max 109.9" in line
    assert "waiting for data min 0.0%, median 50.0%, max 99.9%" in line
    assert "slowest: rank 999 109.9 seqs/s, 99.9% waiting for data; rank 998" in line and line.count("; rank") == 2


def test_slow_by_itself_or_by_its_data() -> None:
    busy = [RankSpeed(0, 1, 10.0, 0.0, 9.0), RankSpeed(1, 1, 10.0, 2.0, 3.0)]
    assert [s.rank for s in slowest_first(busy)] == [0, 1]
    by_data = [RankSpeed(0, 1, 10.0, 0.0), RankSpeed(1, 1, 10.0, 2.0), RankSpeed(2, 1, 10.0, 0.0)]
    assert [s.rank for s in slowest_first(by_data)] == [1, 0, 2]


def test_nothing_done() -> None:
    assert "0 seqs/s" in speed_line("x", [RankSpeed(0, 0, 0.0, 0.0)])
