"""Which split a patient belongs to."""

import hashlib
from collections.abc import Sequence

SPLITS = ("train", "val", "test")
# Owners' names for them.
OFFICIAL = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test"}


def split_of_patient(patient_id: str, shares: Sequence[int]) -> str:
    """train, val or test with these chances (percent), decided by a hash of the patient alone.

    It depends neither on the other patients nor on the machine: adding studies moves nobody.
    """
    assert len(shares) == 3 and sum(shares) == 100, shares
    place = int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8]) / 2**64 * 100
    return "train" if place < shares[0] else "val" if place < shares[0] + shares[1] else "test"


def official_split(name: str) -> str:
    """An owner's name of a split -> ours.

    Raises:
        ValueError: no such split.
    """
    if name.lower() not in OFFICIAL:
        raise ValueError(f"expected a split among {', '.join(OFFICIAL)}, got {name!r}")
    return OFFICIAL[name.lower()]
