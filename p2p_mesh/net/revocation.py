"""The newest revocation that this node has heard, whoever told it, and whether it is out itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from p2p_mesh.core.invite import Member
from p2p_mesh.core.revocation import NOTHING, Revoked, is_newer, read_revocation
from p2p_mesh.core.signature import Signed
from p2p_mesh.journal import Journal

Changed = Callable[[Signed, Revoked], None]


class Revocations:
    """Keeps the newest list that the mesh key signed, and tells of each newer one."""

    def __init__(
        self,
        mesh_key: bytes,
        us: Member,
        journal: Journal,
        kept: Signed | None = None,
        *,
        changed: Changed = lambda signed, revoked: None,
    ) -> None:
        self._mesh_key = mesh_key
        self._us = us
        self._journal = journal
        self._changed = changed
        self.signed: Signed | None = None
        self.revoked: Revoked = NOTHING
        self.is_out = False
        """This node was revoked itself."""
        if kept is not None:
            self._take(kept)

    @property
    def mark(self) -> bytes:
        """Which list this is, as hellos say it; no bytes where there is none."""
        return hashlib.sha256(self.signed.payload).digest()[:16] if self.signed else b""

    def unless(self, mark: bytes) -> Signed | None:
        """The list, for one that has another."""
        return self.signed if self.mark != mark else None

    def adopt(self, signed: Signed) -> bool:
        """Takes a list in; True if it was news. Raises RemoteError for one that is not the mesh's.

        An older one is no offence: it was under way.
        """
        if not self._take(signed):
            return False
        self._journal.info(
            "revocation",
            f"Revocation {self.revoked.version} holds from now on",
            version=self.revoked.version,
        )
        self._changed(signed, self.revoked)
        return True

    def _take(self, signed: Signed) -> bool:
        if self.signed is not None and signed.payload == self.signed.payload:
            return False
        revoked = read_revocation(signed, self._mesh_key)
        if not is_newer(revoked, self.revoked):
            return False
        self.signed, self.revoked = signed, revoked
        was_out, self.is_out = self.is_out, revoked.is_revoked(self._us)
        if self.is_out and not was_out:
            self._journal.error(
                "revoked",
                "This node's membership of the mesh was revoked: it goes on alone, with the models "
                "it serves itself. With a new invite, and a new identity if it was this node that "
                "was revoked (meshnode rotate-key), it can join again",
            )
        return True
