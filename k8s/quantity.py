"""Kubernetes' quantities (apimachinery, resource.Quantity) as integers: `500m` CPU, `16Gi` memory, `8` GPUs."""

from decimal import Decimal, InvalidOperation

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(1 << 10), "Mi": Decimal(1 << 20), "Gi": Decimal(1 << 30), "Ti": Decimal(1 << 40),
    "Pi": Decimal(1 << 50), "Ei": Decimal(1 << 60),
}  # fmt: skip


def whole(text: object) -> int:
    """Returns a quantity as whole units (bytes, GPUs), rounded down. Raises ValueError."""
    return int(_exact(text))


def milli(text: object) -> int:
    """Returns a quantity in thousandths (millicores), rounded down. Raises ValueError."""
    return int(_exact(text) * 1000)


def _exact(given: object) -> Decimal:
    text = str(given).strip()
    number = text.rstrip("numkKMGTPEi")
    suffix = text[len(number) :]
    try:
        return Decimal(number) * _SUFFIXES[suffix]
    except (InvalidOperation, KeyError):
        pass
    try:
        return Decimal(text)  # an exponent, such as 1e3 or 12E6
    except InvalidOperation:
        raise ValueError(f"{text!r} is no quantity, such as 500m or 16Gi") from None
