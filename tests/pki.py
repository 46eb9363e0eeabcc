"""Make keys and certificates for tests of TLS, valid by the rules of Python from 3.13 on."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_pki(folder: Path) -> Path:
    """Make an authority, its certificates for a server at 127.0.0.1 and for a client, and another authority.

    `NAME.pem` and `NAME.key` of each: ca, server, client, other; `locked.key` is the client's, with a password.
    """
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={0} -keyout {0}.key"
    signs = f"{new} -x509 -addext keyUsage=critical,keyCertSign -out {{0}}.pem"
    commands = [signs.format(name) for name in ("ca", "other")]
    for name in ("server", "client"):
        commands.append(f"{new} -out {{0}}.csr".format(name))
        signed = "x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions"
        commands.append(f"{signed} -in {name}.csr -out {name}.pem")
    commands.append("ec -aes128 -passout pass:x -in client.key -out locked.key")
    for command in commands:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder
