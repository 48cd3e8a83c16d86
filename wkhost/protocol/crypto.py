"""Key agreement, payload cipher and msg_key of one binary connection.

Source: wire protocol, Encryption. X25519 gives a shared secret; key = first 16 hex characters of
MD5(base64(secret)), IV = the salt of CONNACK, both as ASCII bytes and the same in both directions
for the whole connection. Payloads are AES-128-CBC with PKCS#7 padding, then base64.

The algorithm is weak (fixed IV, MD5) because the protocol says so; TLS is what protects traffic.
"""

from __future__ import annotations

import string
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from hashlib import md5
from random import SystemRandom

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

BLOCK_BYTES = 16
KEY_BYTES = 32
SALT_CHARS = 16
MSG_KEY_BYTES = 32

PADDING = tuple(bytes([n]) * n for n in range(BLOCK_BYTES + 1))
"""PKCS#7 padding by its length, 1 to 16."""

_SALT_ALPHABET = string.digits + string.ascii_letters
_random = SystemRandom()
_int = int.from_bytes

_P = 2**255 - 19
_LOW_ORDER_POINTS = frozenset(
    n.to_bytes(KEY_BYTES, "little")
    for n in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
        _P,
        _P + 1,
    )
)
"""Every encoding of a point whose shared secret is zero, whatever the private key."""


class BadKeyError(ValueError):
    """A public key is missing, is not 32 bytes of base64, or has a low order."""


def parse_public_key(text: str) -> bytes:
    """Return the 32 bytes of a base64 public key. Raises BadKeyError."""
    try:
        key = a2b_base64(text.encode("ascii"), strict_mode=True)
    except (Base64Error, UnicodeEncodeError) as e:
        raise BadKeyError("the public key is not base64") from e
    if len(key) != KEY_BYTES:
        raise BadKeyError(f"the public key has {len(key)} bytes, expected {KEY_BYTES}")
    if key[:-1] + bytes([key[-1] & 0x7F]) in _LOW_ORDER_POINTS:
        raise BadKeyError("the public key is a point of low order")
    return key


def make_salt() -> str:
    """Return a fresh salt: 16 random ASCII letters and digits."""
    return "".join(_random.choices(_SALT_ALPHABET, k=SALT_CHARS))


class KeyPair:
    """One side's X25519 pair. Without `private` (32 bytes) a fresh one is made."""

    __slots__ = ("_private", "public_base64")

    def __init__(self, private: bytes | None = None) -> None:
        if private is None:
            self._private = X25519PrivateKey.generate()
        else:
            self._private = X25519PrivateKey.from_private_bytes(private)
        public = self._private.public_key().public_bytes_raw()
        self.public_base64 = b2a_base64(public, newline=False).decode()

    def aes_key(self, peer_public: bytes) -> bytes:
        """Agree with the peer's `peer_public` (from `parse_public_key`); 16 ASCII bytes."""
        shared = self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        digest = md5(b2a_base64(shared, newline=False), usedforsecurity=False)
        return digest.hexdigest()[:16].encode()


class PayloadCipher:
    """The cipher of one connection.

    A fresh AES context costs 1.6 microseconds, three times the work itself, so one context per
    direction is made at first use and kept (0.75 KiB each; idle connections have none). CBC chains
    each block to the one before it, also across messages; to start a message from the IV again,
    encryption folds (last block XOR IV) into the first block and decryption feeds the IV first.
    """

    __slots__ = ("_chain", "_decrypt", "_encrypt", "_iv", "_iv_number", "_key")

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._key = key
        self._iv = iv
        self._iv_number = _int(iv, "big")
        self._chain = 0
        self._encrypt: Callable[[bytes], bytes] | None = None
        self._decrypt: Callable[[bytes], bytes] | None = None

    def _make_encrypt(self) -> Callable[[bytes], bytes]:
        context: CipherContext = Cipher(algorithms.AES(self._key), modes.CBC(self._iv)).encryptor()
        self._encrypt = context.update
        return self._encrypt

    def _make_decrypt(self) -> Callable[[bytes], bytes]:
        context: CipherContext = Cipher(algorithms.AES(self._key), modes.CBC(self._iv)).decryptor()
        self._decrypt = context.update
        return self._decrypt

    def encrypt_padded(self, padded: bytes) -> bytes:
        """Encrypt whole blocks (at least one, padding included) to base64."""
        update = self._encrypt or self._make_encrypt()
        first = (_int(padded[:16], "big") ^ self._chain).to_bytes(16, "big")
        out = update(first + padded[16:])
        self._chain = _int(out[-16:], "big") ^ self._iv_number
        return b2a_base64(out, newline=False)

    def encrypt(self, plain: bytes) -> bytes:
        """Return the wire payload of `plain`."""
        return self.encrypt_padded(plain + PADDING[16 - (len(plain) & 15)])

    def sign(self, text: bytes) -> bytes:
        """Return the msg_key (32 hex characters) of a sign string."""
        return self.sign_padded(text + PADDING[16 - (len(text) & 15)])

    def sign_padded(self, padded: bytes) -> bytes:
        """`sign` for a sign string that is padded already."""
        wire = self.encrypt_padded(padded)
        return md5(wire, usedforsecurity=False).hexdigest().encode()

    def decrypt(self, wire: bytes) -> bytes:
        """Return the plain payload of `wire`.

        Raises ValueError if it is not base64, not whole blocks, or wrongly padded.
        """
        data = a2b_base64(wire, strict_mode=True)
        if not data or len(data) & 15:
            raise ValueError(f"a payload of {len(data)} bytes is not whole cipher blocks")
        update = self._decrypt or self._make_decrypt()
        plain = update(self._iv + data)
        count = plain[-1]
        if not 0 < count <= BLOCK_BYTES or not plain.endswith(PADDING[count]):
            raise ValueError("the payload has wrong padding")
        return plain[16:-count]

    def open(self, sign_head: bytes, wire: bytes, msg_key: bytes) -> bytes | None:
        """Verify and decrypt `wire`, signed behind `sign_head`; None if anything is wrong."""
        if self.sign(sign_head + wire) != msg_key:
            return None
        try:
            return self.decrypt(wire)
        except ValueError:
            return None
