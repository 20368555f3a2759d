"""The policy folder: the mounted document with its signature, read as one, checked, watched for changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moorage.guard.policy import (
    BASE_FILE,
    MAX_DOCUMENT,
    SIGNATURE_FILE,
    TRUST_FILE,
    BaseDocument,
    DocumentError,
    parse_document,
)
from moorage.guard.signing import DATA_LINK, SignatureError, verify

_MAX_SMALL_FILE: Final = 64 * 1024
_ATTEMPTS: Final = 3

Fingerprint = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A document that was found good, with the bytes that were signed and the anchor under which they were."""

    document: BaseDocument
    content: bytes
    trust: bytes = b""


class PolicyFolder:
    """Reads ``base.json``, ``base.sig`` and ``trust.pem``; accepts only what is signed, meant for us, and not
    older.

    Args:
        directory: as kubelet mounts a ConfigMap (files behind a ``..data`` symlink), or with plain files.
        namespace, module: for whom the document has to be.
    """

    def __init__(self, directory: Path, *, namespace: str, module: str) -> None:
        self.directory = directory
        self._namespace = namespace
        self._module = module
        self._last: Loaded | None = None
        self._trust: bytes | None = None
        self._seen: Fingerprint | None = None

    @property
    def trust(self) -> bytes | None:
        """The trust anchor that counts (PEM): that of the first document accepted; ``None``: there was none yet."""
        return self._trust

    def changed(self) -> bool:
        """Whether the files differ from those that `load` read last. Three `stat` calls, so that polling is
        cheap.

        A poll instead of inotify: nodes run out of inotify instances, and some mounts never notify.
        """
        return self._fingerprint(self._generation()) != self._seen

    def load(self) -> Loaded:
        """Read and check the folder; raises `DocumentError`, whereupon the last good document stays the
        caller's.

        A document counts if its signature holds under ``trust.pem``, it is a base document for this namespace
        and module, and its sequence is higher than that of the last one (or it is the same document).

        The anchor is that of the first document accepted, for as long as this object lives: who can write the
        folder could else bring a key of his own along with a document.
        """
        content, signature, offered = self._read()
        trust = offered if self._trust is None else self._trust
        try:
            verify(content, signature, trust)
        except SignatureError as exc:
            hint = "" if offered == trust else f"; another {TRUST_FILE} counts only after a restart"
            raise DocumentError(f"{exc}{hint}") from None
        last = self._last
        if last is not None and content == last.content:
            return last
        document = parse_document(content)
        if (document.namespace, document.module) != (self._namespace, self._module):
            raise DocumentError(
                f"the document is for {document.namespace}/{document.module}, "
                f"not for {self._namespace}/{self._module}"
            )
        if last is not None and document.sequence <= last.document.sequence:
            raise DocumentError(
                f"the document's sequence {document.sequence} is not higher than {last.document.sequence}, "
                "that of the document in force"
            )
        return Loaded(document, content, trust)

    def accept(self, loaded: Loaded) -> None:
        """Take *loaded* as the document in force: from now on nothing older is accepted."""
        self._last = loaded
        self._trust = loaded.trust

    def _generation(self) -> Path:
        """The folder behind ``..data``, resolved once, so that all files come from one generation."""
        try:
            return self.directory / (self.directory / DATA_LINK).readlink()
        except OSError:
            return self.directory

    def _read(self) -> tuple[bytes, bytes, bytes]:
        error: OSError | None = None
        for _ in range(_ATTEMPTS):
            generation = self._generation()
            # Before reading: a file that changes meanwhile then differs from its fingerprint at the next
            # poll.
            self._seen = self._fingerprint(generation)
            try:
                return (
                    _read_file(generation / BASE_FILE, MAX_DOCUMENT),
                    _read_file(generation / SIGNATURE_FILE, _MAX_SMALL_FILE),
                    _read_file(generation / TRUST_FILE, _MAX_SMALL_FILE),
                )
            except OSError as exc:
                # kubelet removes the old generation as soon as it has switched the link: look where it points
                # now.
                error = exc
        name = Path(str(error.filename)).name if error is not None and error.filename else str(self.directory)
        raise DocumentError(f"{name} in {self.directory} cannot be read: {error.strerror if error else ''}")

    @staticmethod
    def _fingerprint(generation: Path) -> Fingerprint:
        marks = []
        for name in (BASE_FILE, SIGNATURE_FILE, TRUST_FILE):
            try:
                stat = (generation / name).stat()
            except OSError:
                marks.append((0, 0, 0))
            else:
                marks.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(marks)


def _read_file(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DocumentError(f"{path.name} has more than {limit} bytes")
    return content
