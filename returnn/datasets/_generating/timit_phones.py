"""
Phone sets of TIMIT and their maps.
"""

from __future__ import annotations

from typing import ClassVar

from returnn.errors import DatasetError

__all__ = ["PHONES_61", "TimitPhones"]

PHONES_61 = (
    "aa ae ah ao aw ax ax-h axr ay b bcl ch d dcl dh dx eh el em en eng epi er ey f g gcl h# hh hv ih ix iy jh k kcl l "
    "m n ng nx ow oy p pau pcl q r s sh t tcl th uh uw ux v w y z zh"
).split()
# Lee & Hon (1989): 61 -> 48 for training, 48 -> 39 for scoring. "q" is dropped.
_CHANGED_48 = {
    "ax-h": "ax", "axr": "er", "bcl": "vcl", "dcl": "vcl", "em": "m", "eng": "ng", "gcl": "vcl", "h#": "sil",
    "hv": "hh", "kcl": "cl", "nx": "n", "pau": "sil", "pcl": "cl", "q": None, "tcl": "cl", "ux": "uw",
}  # fmt: skip
_CHANGED_39 = {
    "ao": "aa", "ax": "ah", "cl": "sil", "el": "l", "en": "n", "epi": "sil", "ix": "ih", "vcl": "sil", "zh": "sh",
}  # fmt: skip


def _map_to_48(phone: str) -> str | None:
    return _CHANGED_48.get(phone, phone)


def _map_to_39(phone: str) -> str | None:
    phone_48 = _map_to_48(phone)
    return None if phone_48 is None else _CHANGED_39.get(phone_48, phone_48)


class TimitPhones:
    """The label tables, which need no data."""

    PhoneMapTo48: ClassVar[dict[str, str | None]] = {phone: _map_to_48(phone) for phone in PHONES_61}
    PhoneMapTo39: ClassVar[dict[str, str | None]] = {phone: _map_to_39(phone) for phone in PHONES_61}

    @classmethod
    def get_labels(cls, num_phones: int = 61) -> list[str]:
        """
        :param num_phones: 61, 48 or 39
        :return: labels by class index: silence first, then sorted
        """
        phone_map: dict[int, dict[str, str | None]] = {
            61: {phone: phone for phone in PHONES_61}, 48: cls.PhoneMapTo48, 39: cls.PhoneMapTo39,
        }  # fmt: skip
        if num_phones not in phone_map:
            raise DatasetError(f"TimitDataset: num_phones must be 61, 48 or 39, got {num_phones!r}.")
        labels = sorted({phone for phone in phone_map[num_phones].values() if phone is not None})
        silence = "pau" if "pau" in labels else "sil"
        labels.remove(silence)
        return [silence, *labels]

    @classmethod
    def get_label_map(cls, source_num_phones: int = 61, target_num_phones: int = 39) -> dict[int, int | None]:
        """
        :param source_num_phones: 61 or 48
        :param target_num_phones: not larger
        :return: class index in the source set -> class index in the target set, None if dropped
        """
        source, target = cls.get_labels(source_num_phones), cls.get_labels(target_num_phones)
        if source_num_phones < target_num_phones:
            raise DatasetError(f"TimitDataset: cannot map {source_num_phones} phones to {target_num_phones}.")
        result: dict[int, int | None] = {}
        for idx, phone in enumerate(source):
            mapped: str | None = phone
            if source_num_phones == 61 and target_num_phones < 61:
                mapped = _map_to_48(phone)
            if mapped is not None and target_num_phones == 39 and source_num_phones > 39:
                mapped = _CHANGED_39.get(mapped, mapped)
            result[idx] = None if mapped is None else target.index(mapped)
        return result
