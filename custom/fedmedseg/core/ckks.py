"""Weighted sums of numbers that nobody who adds them can read: CKKS (Cheon, Kim, Kim and Song 2017) by TenSEAL.

One ciphertext holds ``SLOTS`` numbers. The server needs additions alone: a site's weight is a whole number of shares,
and a whole multiple of a ciphertext is made by doubling and adding, which is exact and uses up no level of the modulus.
So one prime of 60 bits carries everything, and a number costs 32 bytes each way (FLARE's own parameters, with a level
for a multiplication: 57 up and 32 down). Sums of residues do not depend on their order.

**Precision.** A fresh ciphertext is off by less than ``1e-7`` a number, as its noise is divided by ``2**SCALE_BITS``.
Numbers that are taken out of a ciphertext are rounded to ``GRID``: the scheme's noise is a secret, since whoever sees a
ciphertext and its exact content can compute the key (Li and Micciancio 2021). Rounding to 200 times that noise hides
most of it, and makes what comes out the same on every machine; it is no proof.

**Range.** ``SHARES`` times a number, at the scale, must stay below half the modulus: 512. What a site encrypts and what
it takes out is at most ``LARGEST``, so one round cannot wrap around unseen. A ciphertext that was made under another
key, or in which one bit was flipped, decrypts to residues spread evenly over the whole modulus: numbers in the
thousands, and 4096 of them are never all below ``LARGEST``.

TenSEAL is imported only where something is encrypted: it comes with the extra ``he``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason

SCHEME: Literal["ckks"] = "ckks"
DEGREE = 8192
MODULI = (60, 60)
"""Bits of the primes. TenSEAL wants a second one for keys that nothing here uses; no ciphertext carries it. Their sum
is far below the 218 bits up to which a degree of 8192 has 128 bits of security."""
SLOTS = DEGREE // 2
SCALE_BITS = 36
SHARES = 2**14
"""The weights of a round are whole numbers of shares that add up to this."""
LARGEST = 64.0
GRID = 2.0**-20
CHUNK_BYTES = 2 * DEGREE * 8 + 512
"""Bytes of a packed ciphertext: two polynomials of 64-bit residues, and room for the headers of SEAL and TenSEAL."""
_LENGTH = 4
"""Bytes that say how many of a packed ciphertext's bytes are used."""
_EXTRA = "pip install 'fedmedseg[he]', which brings TenSEAL to Python 3.11 and 3.12 (there is none for 3.13)"


class Cipher:
    """One side's context: the server's can add, a site's can encrypt and decrypt as well.

    Args:
        content: a context as ``make_contexts`` returns them.

    Raises:
        ConfigurationError: TenSEAL is not installed, or this is no context of this package's parameters.
    """

    def __init__(self, content: bytes) -> None:
        self._library = tenseal()
        try:
            self._context = self._library.context_from(content, 1)
            scale = self._context.global_scale
        except Exception as error:
            raise _foreign(type(error).__name__) from None
        if scale != 2.0**SCALE_BITS:
            raise _foreign(f"a scale of {scale:g}")
        if self.private and self._cipher_of(np.zeros(SLOTS)).ciphertext()[0].poly_modulus_degree() != DEGREE:
            raise _foreign("another degree")

    @property
    def private(self) -> bool:
        """Whether it holds the secret key."""
        return bool(self._context.is_private())

    def encrypt(self, numbers: np.ndarray) -> torch.Tensor:
        """``numbers`` (float64, one axis) as a tensor of ``packed_shape``.

        Raises:
            FedMedSegError: a number is not finite, or larger than ``LARGEST``: nobody could see it in a ciphertext.
        """
        if not np.isfinite(numbers).all():
            raise FedMedSegError("numbers to encrypt", expected="finite ones", reason=Reason.NOT_FINITE)
        if numbers.size and np.abs(numbers).max() > LARGEST:
            raise FedMedSegError(
                "numbers to encrypt", expected=f"none beyond {LARGEST:g} in size", reason=Reason.ENCRYPTION
            )
        padded = np.zeros(chunks_of(numbers.size) * SLOTS)
        padded[: numbers.size] = numbers
        return _packed([self._cipher_of(part) for part in padded.reshape(-1, SLOTS)])

    def decrypt(self, packed: torch.Tensor, count: int) -> np.ndarray:
        """``count`` weighted means (float64) out of a sum that ``add`` made, rounded to ``GRID``.

        Raises:
            FedMedSegError: not of the declared form (``problem`` says why), or numbers that no honest sum holds.
        """
        found = self.problem(packed, count)
        if found is not None:
            raise FedMedSegError("encrypted tensors", got=found[1], reason=found[0])
        parts = [np.asarray(self._opened(chunk).decrypt()) for chunk in packed]
        numbers = np.concatenate(parts)[:count] / SHARES if parts else np.zeros(0)
        if not np.isfinite(numbers).all() or (numbers.size and np.abs(numbers).max() > LARGEST):
            raise FedMedSegError(
                "encrypted tensors",
                expected=f"a sum under this site's key, no number beyond {LARGEST:g}",
                remedy="compare the sites' kits: one of them encrypts with another key, or sent a damaged reply",
                reason=Reason.ENCRYPTION,
            )
        return np.round(numbers / GRID) * GRID

    def problem(self, packed: object, count: int) -> tuple[Reason, str] | None:
        """The first reason why ``packed`` is no encryption of ``count`` numbers under these parameters, or None.

        Type and size are judged before anything is parsed. Whether it was made with the right key cannot be seen.
        """
        if not isinstance(packed, torch.Tensor) or packed.dtype != torch.uint8 or packed.layout != torch.strided:
            return Reason.TENSOR_TYPE, "something else than bytes"
        if tuple(packed.shape) != packed_shape(count):
            return Reason.TENSOR_SHAPE, f"{tuple(packed.shape)} bytes, declared {packed_shape(count)}"
        for number, chunk in enumerate(packed):
            try:
                vector = self._opened(chunk)
                [cipher] = vector.ciphertext()
                shape = (vector.size(), cipher.size(), cipher.coeff_modulus_size(), cipher.poly_modulus_degree())
                same = shape == (SLOTS, 2, 1, DEGREE) and cipher.scale == 2.0**SCALE_BITS
            except Exception as error:
                # the parser's own words may be of any length; a broken ciphertext must cost its sender alone
                return Reason.ENCRYPTION, f"ciphertext {number}: {type(error).__name__}"
            if not same:
                return Reason.ENCRYPTION, f"ciphertext {number}: other parameters than this federation's"
        return None

    def add(
        self, before: torch.Tensor | None, packed: Mapping[str, torch.Tensor], shares: Mapping[str, int]
    ) -> torch.Tensor:
        """``before`` plus, over the sites, ``shares`` times what ``packed`` holds; all of one shape and checked."""
        sites = [site for site in sorted(packed) if shares[site]]
        sums = []
        for index in range(len(packed[sites[0]])):
            vectors = {site: self._opened(packed[site][index]) for site in sites}
            total = _multiples(vectors, shares)
            sums.append(total if before is None else total + self._opened(before[index]))
        return _packed(sums)

    def _cipher_of(self, numbers: np.ndarray) -> Any:
        return self._library.ckks_vector(self._context, numbers)

    def _opened(self, chunk: torch.Tensor) -> Any:
        content = chunk.contiguous().numpy().tobytes()
        length = int.from_bytes(content[:_LENGTH], "little")
        if not 0 < length <= CHUNK_BYTES - _LENGTH:
            raise ValueError("length")
        return self._library.ckks_vector_from(self._context, content[_LENGTH : _LENGTH + length])


def tenseal() -> Any:
    """The library.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import tenseal as library
    except ImportError:
        raise ConfigurationError(
            "federation.encryption", got=f"{SCHEME} without TenSEAL", expected="the extra he", remedy=_EXTRA
        ) from None
    return library


def make_contexts() -> tuple[bytes, bytes]:
    """A new key: the context of the server, which holds no key at all, and that of the sites, which share one.

    Raises:
        ConfigurationError: TenSEAL is not installed.
    """
    library = tenseal()
    context = library.context(
        library.SCHEME_TYPE.CKKS,
        poly_modulus_degree=DEGREE,
        coeff_mod_bit_sizes=list(MODULI),
        encryption_type=library.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    context.global_scale = 2.0**SCALE_BITS
    nothing = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}
    return context.serialize(save_secret_key=False, **nothing), context.serialize(save_secret_key=True, **nothing)


def chunks_of(count: int) -> int:
    """How many ciphertexts ``count`` numbers take."""
    return -(-count // SLOTS)


def packed_shape(count: int) -> tuple[int, int]:
    """Shape of the uint8 tensor that holds ``count`` encrypted numbers: (ciphertexts, bytes of each)."""
    return chunks_of(count), CHUNK_BYTES


def whole_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that add up to ``SHARES``, as near to ``weights`` (which add up to 1) as they come.

    Every site is rounded down, and the largest remainders, in sorted site order where they are equal, get what is left.
    """
    exact = {site: weights[site] * SHARES for site in sorted(weights)}
    shares = {site: int(value) for site, value in exact.items()}
    left = SHARES - sum(shares.values())
    for site in sorted(exact, key=lambda site: shares[site] - exact[site])[:left]:
        shares[site] += 1
    return shares


def _multiples(vectors: Mapping[str, Any], shares: Mapping[str, int]) -> Any:
    """The sum of whole multiples, from the highest bit of the shares down (Horner's rule)."""
    total = None
    for bit in reversed(range(SHARES.bit_length())):
        if total is not None:
            total = total + total
        for site, vector in vectors.items():
            if shares[site] >> bit & 1:
                total = vector if total is None else total + vector
    return total


def _packed(vectors: list[Any]) -> torch.Tensor:
    packed = np.zeros((len(vectors), CHUNK_BYTES), dtype=np.uint8)
    for row, vector in zip(packed, vectors, strict=True):
        content = vector.serialize()
        if len(content) > CHUNK_BYTES - _LENGTH:
            raise FedMedSegError("ciphertext", got=f"{len(content)} bytes", reason=Reason.OVERSIZE)
        row[:_LENGTH] = np.frombuffer(len(content).to_bytes(_LENGTH, "little"), dtype=np.uint8)
        row[_LENGTH : _LENGTH + len(content)] = np.frombuffer(content, dtype=np.uint8)
    return torch.from_numpy(packed)


def _foreign(got: str) -> ConfigurationError:
    return ConfigurationError(
        "encryption context",
        got=got,
        expected="the parameters of fedmedseg.provisioning.encryption.EncryptionBuilder",
        remedy="provision the kits with it",
    )
