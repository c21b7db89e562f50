"""Corpora from the web: checksums before unpacking, one rename at the end."""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError

LIBRISPEECH_URL = "https://www.openslr.org/resources/12/"


def download_librispeech(root: Path, subsets: Iterable[str]) -> None:
    """Fetches the subsets that ROOT/LibriSpeech lacks.

    The SHA-256 sums are those that torchaudio ships.
    """
    from torchaudio.datasets.librispeech import _CHECKSUMS

    sums = {url.rsplit("/", 1)[1]: checksum for url, checksum in _CHECKSUMS.items()}
    for subset in subsets:
        if not (root / "LibriSpeech" / subset).is_dir():
            fetch_archive(
                f"{LIBRISPEECH_URL}{subset}.tar.gz",
                sums[f"{subset}.tar.gz"],
                root,
                f"LibriSpeech/{subset}",
            )


def fetch_archive(url: str, sha256: str, root: Path, member: str) -> None:
    """Downloads, verifies and unpacks a .tar.gz, and moves its folder to ROOT/member.

    An interrupted call leaves nothing behind that a later one would take for a corpus.
    Raises UserError.
    """
    from torch.hub import download_url_to_file

    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            archive = Path(temporary) / "archive.tar.gz"
            download_url_to_file(
                url, str(archive), hash_prefix=sha256, progress=sys.stderr.isatty()
            )
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            (root / member).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(temporary) / member, root / member)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f"{url} could not be fetched ({error}): try again, or unpack it in {root}."
        ) from None
