"""Certificate authority for tests of TLS."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any


class Authority:
    """Certificate authority of the tests, in `folder`."""

    def __init__(self, folder: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / "ca.pem"
        self.file.write_bytes(
            self._pem(self._certificate("authority", self.key.public_key(), None))
        )

    def server_context(self, name: str) -> ssl.SSLContext:
        """Return the server side of TLS, with a certificate for `name`."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        file = self.folder / f"{name}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_bytes(secret + self._pem(self._certificate("server", key.public_key(), name)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _certificate(self, subject: str, key: Any, host: str | None) -> Any:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is None:
            builder = builder.add_extension(
                x509.KeyUsage(False, False, False, False, False, True, True, False, False),
                critical=True,
            )
        else:
            ip = (
                x509.IPAddress(ipaddress.ip_address(host))
                if host[0].isdigit()
                else x509.DNSName(host)
            )
            builder = builder.add_extension(x509.SubjectAlternativeName([ip]), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
            critical=False,
        ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _pem(self, certificate: Any) -> bytes:
        from cryptography.hazmat.primitives import serialization

        pem: bytes = certificate.public_bytes(serialization.Encoding.PEM)
        return pem
