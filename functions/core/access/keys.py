"""Access keys: format, checksum and digest.

A key is `mfy_<id>_<secret><checksum>`. The id is public: logs, audit records and the control plane
name a key by it. The prefix lets secret scanners recognise a key; the checksum lets a mistyped one
be refused without a look-up.
"""

import hashlib
import re
import zlib

ID_LENGTH = 12  # 36 ** 12 ids, about 2 ** 62
SECRET_LENGTH = 43  # 62 ** 43 secrets: more than 256 random bits
CHECKSUM_LENGTH = 6  # 62 ** 6 is more than 2 ** 32, the values of a CRC-32
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ID_DIGITS = DIGITS[:36]  # lower case: people read ids to each other

_ID = re.compile(f"[0-9a-z]{{{ID_LENGTH}}}")
_KEY = re.compile(
    f"(mfy_({_ID.pattern})_[0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)


def new_id() -> str:
    """Return a random id for an access key."""
    return _random(ID_DIGITS, ID_LENGTH)


def new_key(key_id: str) -> str:
    """Return an access key with a random secret, to be shown once."""
    body = f"mfy_{key_id}_{_random(DIGITS, SECRET_LENGTH)}"
    return body + _checksum(body)


def is_key_id(text: str) -> bool:
    """Return True if a text has the syntax of a key's id."""
    return _ID.fullmatch(text) is not None


def parse_key(key: str) -> str | None:
    """Return a well-formed access key's id, None for other texts.

    >>> parse_key("mfy_0123456789ab_" + "x" * 43 + "3apA5V")
    '0123456789ab'
    >>> parse_key("mfy_0123456789ab_" + "y" * 43 + "3apA5V")  # a typo
    """
    match = _KEY.fullmatch(key)
    if match is None or _checksum(match[1]) != match[3]:
        return None
    return match[2]


def key_digest(key: str) -> str:
    """Return the SHA-256 of an access key in hexadecimal.

    Only this is stored. A fast hash is enough: nobody can try 2 ** 256 secrets.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(body: str) -> str:
    """Return the CRC-32 of a key's other characters, in base 62."""
    number = zlib.crc32(body.encode())
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(DIGITS))
        digits.append(DIGITS[digit])
    return "".join(reversed(digits))


def _random(digits: str, length: int) -> str:
    import secrets  # not at the top: infer, which mints no keys, starts without it

    return "".join(secrets.choice(digits) for _ in range(length))
