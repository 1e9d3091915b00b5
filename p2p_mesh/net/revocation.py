"""The newest revocation that this node has heard, whoever told it, and whether it is out itself."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

from p2p_mesh.core.invite import Member
from p2p_mesh.core.revocation import NOTHING, Revoked, is_newer, merge, read_revocation
from p2p_mesh.core.signature import Signed
from p2p_mesh.journal import Journal

Changed = Callable[[Signed, Revoked], None]
"""Told of a list that came, and of what holds now."""

MAX_STRAYS = 16
"""Older lists with something that the newest lacks, which were told on already."""


class Revocations:
    """Keeps the newest list that the mesh key signed, and tells of each newer one; and of each
    older one that names what the newest lacks.
    """

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
        self._strays: deque[bytes] = deque(maxlen=MAX_STRAYS)
        self.signed: Signed | None = None
        self.revoked: Revoked = NOTHING
        self.is_out = False
        """This node was revoked itself."""
        if kept is not None:
            self._take(kept, read_revocation(kept, mesh_key))

    @property
    def mark(self) -> bytes:
        """Which list this is, as hellos say it; no bytes where there is none."""
        return hashlib.sha256(self.signed.payload).digest()[:16] if self.signed else b""

    def unless(self, mark: bytes) -> Signed | None:
        """The list, for one that has another."""
        return self.signed if self.mark != mark else None

    def adopt(self, signed: Signed) -> bool:
        """Takes a list in; True if it is to be told on. Raises RemoteError for one that is not the
        mesh's.

        An older one is no offence: it was under way. One that the newest does not wholly contain
        was made by a holder of the mesh key that knew nothing of the newest. It changes nothing
        here, but must reach a holder, who joins the two.
        """
        if self.signed is not None and signed.payload == self.signed.payload:
            return False
        revoked = read_revocation(signed, self._mesh_key)
        if not is_newer(revoked, self.revoked):
            return self._pass_on(signed, revoked)
        self._take(signed, revoked)
        self._journal.info(
            "revocation",
            f"Revocation {self.revoked.version} holds from now on",
            version=self.revoked.version,
        )
        self._changed(signed, self.revoked)
        return True

    def _pass_on(self, signed: Signed, older: Revoked) -> bool:
        if signed.payload in self._strays or merge(self.revoked, older) == self.revoked:
            return False
        self._strays.append(signed.payload)
        self._changed(signed, self.revoked)
        return True

    def _take(self, signed: Signed, revoked: Revoked) -> None:
        self.signed, self.revoked = signed, revoked
        was_out, self.is_out = self.is_out, revoked.is_revoked(self._us)
        if self.is_out and not was_out:
            self._journal.error(
                "revoked",
                "This node's membership of the mesh was revoked: it goes on alone, with the models "
                "it serves itself. With a new invite, and a new identity if it was this node that "
                "was revoked (meshnode rotate-key), it can join again",
            )
