"""Two peers prove to each other that they hold the key of the run, before anything is decoded.

The dialer says 32 random bytes, the listener 32 of its own and its proof, then the dialer its proof. A proof is a
BLAKE2b, keyed with the run's key, over the role and both nonces: none can be replayed or sent back. What follows is
neither encrypted nor signed: links are for networks that you trust to carry bytes.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b
from hmac import compare_digest

from weaverant.swarm.lost import WrongKey

KEY_BYTES = NONCE_BYTES = PROOF_BYTES = 32
MAGIC = b"wvl1"
"""Begins what either side says. The digit counts versions of what is said on a link."""


def new_key() -> bytes:
    """A key for a run: 32 random bytes."""
    return secrets.token_bytes(KEY_BYTES)


class Handshake:
    """One side of it, without a socket. Until `proven` nothing that was heard may be believed."""

    def __init__(self, key: bytes, dialing: bool) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a run's key has {KEY_BYTES} bytes, and this one has {len(key)}")
        self.proven = False
        self.rest = b""
        """What followed the handshake, once it is proven."""
        self._key = key
        self._dialing = dialing
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._theirs = b""
        self._heard = b""

    def opening(self) -> bytes:
        """What to say before anything was heard."""
        return MAGIC + self._nonce if self._dialing else b""

    def hear(self, data: bytes) -> bytes:
        """What to say now; empty where there is nothing to say. `WrongKey` where the other side is none of us."""
        self._heard += data
        return self._as_dialer() if self._dialing else self._as_listener()

    def _as_dialer(self) -> bytes:
        if not self._greeted(PROOF_BYTES):
            return b""
        self._check(self._take(PROOF_BYTES), b"listener")
        return self._proof(b"dialer")

    def _as_listener(self) -> bytes:
        answer = b""
        if not self._theirs:
            if not self._greeted():
                return b""
            answer = MAGIC + self._nonce + self._proof(b"listener")
        if len(self._heard) >= PROOF_BYTES:
            self._check(self._take(PROOF_BYTES), b"dialer")
        return answer

    def _greeted(self, more: int = 0) -> bool:
        """Whether their greeting is here, and so many bytes after it."""
        if not MAGIC.startswith(self._heard[: len(MAGIC)]):
            raise WrongKey("what answers there is no peer of weaverant, or one of another version")
        if len(self._heard) < len(MAGIC) + NONCE_BYTES + more:
            return False
        self._take(len(MAGIC))
        self._theirs = self._take(NONCE_BYTES)
        return True

    def _check(self, proof: bytes, role: bytes) -> None:
        if not compare_digest(proof, self._proof(role)):
            raise WrongKey("the other side does not hold the key of this run: it belongs to another run")
        self.proven, self.rest, self._heard = True, self._heard, b""

    def _proof(self, role: bytes) -> bytes:
        ours, theirs = self._nonce, self._theirs
        nonces = ours + theirs if self._dialing else theirs + ours
        return blake2b(role + b"\0" + nonces, key=self._key, digest_size=PROOF_BYTES, person=b"weaverant link").digest()

    def _take(self, size: int) -> bytes:
        taken, self._heard = self._heard[:size], self._heard[size:]
        return taken
