"""Durations, byte sizes, CPU amounts and rates: from the text of a manifest to numbers."""

import re
from decimal import Decimal

_DURATION_PART = re.compile(r"([0-9]+)(ms|s|m|h)")
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_QUANTITY = re.compile(r"([0-9]+(?:[.][0-9]+)?)(k|Ki|M|Mi|G|Gi|T|Ti)?")
_FACTORS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as ``1m30s``.

    Raises `ValueError` for anything but whole numbers with a unit ms, s, m or h.
    """
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        msg = f"{text!r} is no duration such as 30s or 1m30s"
        raise ValueError(msg)
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in parts)


def quantity_bytes(text: str | int) -> int:
    """Bytes of an amount such as ``1Mi`` or ``1.5G``, rounded up as Kubernetes does.

    Raises `ValueError` for anything else; thousandths (``100m``) of a byte are refused.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        msg = f"{text!r} is no amount of bytes such as 1Mi"
        raise ValueError(msg)
    number, unit = match.groups()
    exact = Decimal(number) * _FACTORS[unit or ""]
    return int(exact.to_integral_value(rounding="ROUND_CEILING"))


def cpu_millis(text: str | int) -> int:
    """Thousandths of a CPU: ``250m`` → 250, ``0.5`` → 500, ``2`` → 2000.

    Raises `ValueError` for anything else.
    """
    match = re.fullmatch(r"([0-9]+)(?:m|([.][0-9]{1,3}))?", str(text))
    if match is None:
        msg = f"{text!r} is no number of CPUs such as 250m or 2"
        raise ValueError(msg)
    if str(text).endswith("m"):
        return int(match.group(1))
    return int(Decimal(str(text)) * 1000)


def rate(text: str) -> tuple[int, int] | None:
    """Count and seconds of a rate: ``100/minute`` → (100, 60); ``unlimited`` is ``None``.

    Raises `ValueError` for anything else.
    """
    if text == "unlimited":
        return None
    match = _RATE.fullmatch(text)
    if match is None:
        msg = f"{text!r} is no rate such as 100/minute"
        raise ValueError(msg)
    return int(match.group(1)), _SECONDS[match.group(2)]
