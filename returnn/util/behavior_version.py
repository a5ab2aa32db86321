"""
The behavior version of a config: which incompatible changes it has agreed to.
"""

from __future__ import annotations

import logging

from returnn._state import state
from returnn.util.log_levels import V1

__all__ = ["BehaviorVersion"]

_logger = logging.getLogger("returnn.util.behavior_version")


class BehaviorVersion:
    """
    Namespace of static functions; the value lives in :mod:`returnn._state`.

    The config sets it with the option ``behavior_version``. Unset means the minimum (0).
    """

    latest_behavior_version = 30

    class RequirementNotSatisfied(Exception):
        """The config does something that its behavior version disallows."""

    @classmethod
    def set(cls, version: int | None) -> None:
        """
        :param version: None: nothing happens
        :raises Exception: another version was set before
        """
        if version is None:
            return
        if isinstance(version, bool) or not isinstance(version, int) or version < 0:
            raise ValueError(
                f'option "behavior_version": expected int >= 0, got {version!r}. Set e.g. 21, or remove it.'
            )
        if state.behavior_version is not None:
            if state.behavior_version != version:
                raise Exception(
                    f"behavior_version already set to {state.behavior_version}, cannot reset to {version}."
                    " Only one config with one behavior_version can be used per process."
                )
            return
        if version > cls.latest_behavior_version:
            _logger.log(
                V1,
                "WARNING: behavior_version %d is above the latest known %d; it has the effect of the latest.",
                version,
                cls.latest_behavior_version,
            )
        state.behavior_version = version

    @staticmethod
    def set_min_behavior_version(min_behavior_version: int) -> None:
        """
        :param min_behavior_version: lower limit for :func:`get`; never decreases
        """
        state.min_behavior_version = max(state.min_behavior_version, min_behavior_version)

    @staticmethod
    def get() -> int:
        """:return: the set version, or the minimum"""
        if state.behavior_version is not None:
            return max(state.behavior_version, state.min_behavior_version)
        return state.min_behavior_version

    @staticmethod
    def get_if_set() -> int | None:
        """:return: the set version, or None"""
        return state.behavior_version

    @staticmethod
    def is_set() -> bool:
        """:return: whether the config has set it"""
        return state.behavior_version is not None

    @classmethod
    def require(cls, condition: bool, message: str, version: int) -> None:
        """
        :param condition: what must hold from that version on
        :param message: what is wrong otherwise
        :param version: first behavior version that disallows it
        :raises BehaviorVersion.RequirementNotSatisfied: not condition, and the version is reached
        """
        if condition:
            return
        if cls.get() >= version:
            raise cls.RequirementNotSatisfied(
                f"{message} (disallowed since behavior_version {version}, the config has {cls.get()})"
            )
        if message not in state.shown_warnings:
            state.shown_warnings.add(message)
            _logger.log(
                V1,
                "DEPRECATION WARNING: %s\nThis will be disallowed with behavior_version %d.",
                message,
                version,
            )
