"""The part of the engine that holds the observers and tells them about passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from returnn.engine.base import EngineBase
from returnn.torch.observers.base import PassObserver
from returnn.torch.observers.create import create_observers

__all__ = ["ObservedPasses"]


class ObservedPasses(EngineBase):
    """Base of the engine."""

    #: told about passes and their steps; empty without options
    _observers: Sequence[PassObserver] = ()

    def _open_observers(self, *, train: bool) -> None:
        """
        Make the observers that the options ask for, if they are not there yet.

        :param train: whether the run trains
        :raises ConfigError: invalid options
        """
        if not self._observers:
            self._observers = create_observers(self.config, train=train)

    def _close_observers(self) -> None:
        """At the end of the run, in whatever way."""
        for observer in self._observers:
            observer.close()

    def _should_write_to_disk(self) -> bool:
        """:return: see the base; not while the run is only profiled"""
        return super()._should_write_to_disk() and not any(x.keeps_from_writing for x in self._observers)

    def _start_observing(self, name: str) -> None:
        """:param name: of the dataset whose pass starts"""
        for observer in self._observers:
            observer.start_pass(name, engine=self)

    def _end_observing(self, name: str, scores: Mapping[str, float]) -> None:
        """
        :param name: of the dataset
        :param scores: of the pass by name
        """
        for observer in self._observers:
            observer.end_pass(name, epoch=self.epoch, scores=scores)
