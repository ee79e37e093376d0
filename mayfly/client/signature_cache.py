"""Signatures of the versions that answered, so that each is read once."""

from mayfly.client.tensors.signature import Signature

Reference = str | int | None


class SignatureCache:
    """Signatures by version, and the version behind each reference.

    An alias moves, so a reference leads to the version of its last answer.
    """

    def __init__(self) -> None:
        self._signatures: dict[tuple[str, int], Signature] = {}
        self._versions: dict[tuple[str, Reference], int] = {}

    def find(self, model: str, reference: Reference) -> Signature | None:
        """Return the signature of the version that answers, or None."""
        version = self._versions.get((model, reference))
        return None if version is None else self._signatures.get((model, version))

    def keep(self, signature: Signature, reference: Reference) -> None:
        """Keep a signature that was read through a reference."""
        self._signatures[signature.model, signature.version] = signature
        self._versions[signature.model, reference] = signature.version

    def answered(self, model: str, reference: Reference, version: int) -> None:
        """Keep the number of the version that answered.

        The signature of an unknown one is read before the next call.

        While a canary runs, two versions answer in turn: both are known after two calls.
        """
        self._versions[model, reference] = version
