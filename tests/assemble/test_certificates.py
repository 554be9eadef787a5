"""Subject hashes, against OpenSSL's own (also for every authority of Debian, in tests/e2e)."""

import subprocess
from pathlib import Path

import pytest

from assemble.certificates import subject_hash
from cache.errors import IntegrityError


@pytest.mark.parametrize("subject", [
    "/CN=example", "/C=DE/O=  Some   Organisation  /CN=MiXeD Case", "/O=Föö Bär ÄÖÜ/CN=x", "/CN=a/CN=b+OU=c",
    "/emailAddress=a@example.org/CN=z",
])
def test_same_as_openssl(subject: str, tmp_path: Path) -> None:
    certificate = tmp_path / "c.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-utf8", "-multivalue-rdn", "-keyout", str(tmp_path / "k"), "-subj", subject,
                    "-out", str(certificate)],
                   check=True, capture_output=True)
    expected = subprocess.run(["openssl", "x509", "-in", str(certificate), "-noout", "-hash"], check=True,
                              capture_output=True, text=True).stdout.strip()
    assert subject_hash(certificate.read_bytes(), "c") == expected


@pytest.mark.parametrize("data", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                                  b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"])
def test_no_certificate(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a certificate"):
        subject_hash(data, "x.crt")
