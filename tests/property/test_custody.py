"""Fencing under every interleaving that a seed brings: at most one nonce is the manifest's, a fenced one never writes again, epochs never
fall, and whoever is told something is told the truth. Bugs that are planted on purpose are found by the same seeds."""

from __future__ import annotations

import collections
import dataclasses

import pytest

from fleet_model import manifest
from fleet_worker import custody, errors
from fleet_worker.core import claims
from tests.property import claiming
from tests.support import custodies

SEEDS = 300
MUTANT_SEEDS = 60


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_one_owner_at_a_time(first: int) -> None:
    """A seed that fails replays with claiming.fight(seed)."""
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + 50):
        fought = claiming.fight(seed)
        assert fought.judge.violations == [], f"seed {seed}"
        counts.update(fought.counts)
    assert all(count >= 20 for count in counts.values()), counts
    assert len(counts) == 5


def test_a_seed_replays() -> None:
    logs = [
        [(write.after.epoch, write.after.worker, write.after.revision) for write in claiming.fight(7).judge.log]
        for _ in range(2)
    ]
    assert logs[0] == logs[1]
    assert logs[0]


def no_epoch_check(patch: pytest.MonkeyPatch) -> None:
    right = claims.refusal

    def refusal(found: manifest.Manifest | None, claim: claims.Claim) -> str | None:
        lowered = found if found is None else dataclasses.replace(found, epoch=min(found.epoch, claim.epoch))
        return right(lowered, claim)

    patch.setattr(claims, "refusal", refusal)


def any_takeover(patch: pytest.MonkeyPatch) -> None:
    right = claims.refusal

    def refusal(found: manifest.Manifest | None, claim: claims.Claim) -> str | None:
        return right(found, dataclasses.replace(claim, takeover=claim.epoch if claim.takeover else 0))

    patch.setattr(claims, "refusal", refusal)


def a_first_claim_at_any_epoch(patch: pytest.MonkeyPatch) -> None:
    right = claims.refusal
    patch.setattr(claims, "refusal", lambda found, claim: None if found is None else right(found, claim))


def no_condition(patch: pytest.MonkeyPatch) -> None:
    async def write(self: custody.Manifests, wanted: manifest.Manifest, etag: str | None) -> str:
        key = claims.manifest_key(wanted.identity.shard_id)
        found = await self._objects.get(key)
        data = manifest.encode(wanted)
        return await (
            self._objects.put_new(key, data) if found is None else self._objects.put_over(key, data, found.etag)
        )

    patch.setattr(custody.Manifests, "write", write)


def a_412_is_success(patch: pytest.MonkeyPatch) -> None:
    async def attempt(self: custody.Custody, wanted: manifest.Manifest, etag: str | None) -> str | None:
        try:
            return await self._manifests.write(wanted, etag)
        except errors.PreconditionFailedError:
            return "taken"
        except errors.ObjectStoreUnavailableError:
            return None

    patch.setattr(custody.Custody, "_try", attempt)


def a_lost_reply_is_success(patch: pytest.MonkeyPatch) -> None:
    async def attempt(self: custody.Custody, wanted: manifest.Manifest, etag: str | None) -> str | None:
        try:
            return await self._manifests.write(wanted, etag)
        except errors.PreconditionFailedError:
            return None
        except errors.ObjectStoreUnavailableError:
            return "taken"

    patch.setattr(custody.Custody, "_try", attempt)


def a_nonce_of_each_worker(patch: pytest.MonkeyPatch) -> None:
    """Made once, and used again at every start."""
    right = custodies.World.custody

    def start(self: custodies.World, worker: str, **more: object) -> custody.Custody:
        return right(self, worker, **(more | {"nonce": f"nonce of {worker}"}))  # type: ignore[arg-type]

    patch.setattr(custodies.World, "custody", start)


def a_nonce_of_each_worker_unchecked(patch: pytest.MonkeyPatch) -> None:
    """And custody takes it for its own."""
    a_nonce_of_each_worker(patch)
    right = custody.Custody._before_mine

    def before_mine(self: custody.Custody) -> manifest.Manifest | None:
        return None if self._tried_over is None else right(self)

    patch.setattr(custody.Custody, "_before_mine", before_mine)


def my_nonce_there_means_confirmed(patch: pytest.MonkeyPatch) -> None:
    """Though an earlier checkpoint stands there, or a late one."""

    async def change(self: custody.Custody, changing: object) -> None:
        assert callable(changing)
        asked_at_s = self._clock.monotonic()
        wanted = dataclasses.replace(changing(self.manifest), revision=self.manifest.revision + 1)
        etag = await self._try(wanted, self._etag)
        if etag is None:
            found, etag = await self._read()
            if found is None or found.nonce != self.nonce:
                raise self._fence(found)
            wanted = found
        self._keep(wanted, etag, asked_at_s)

    patch.setattr(custody.Custody, "_change", change)


def fenced_goes_on(patch: pytest.MonkeyPatch) -> None:
    """It takes the other's etag for its next try instead of stopping."""

    async def change(self: custody.Custody, changing: object) -> None:
        assert callable(changing)
        for _ in range(custody.SETTLE_TRIES_MAX):
            wanted = dataclasses.replace(changing(self.manifest), revision=self.manifest.revision + 1)
            etag = await self._try(wanted, self._etag)
            if etag is not None:
                self._keep(wanted, etag, 0.0)
                return
            _, found_etag = await self._read()
            self._etag = found_etag or ""
        raise self._unsettled()

    patch.setattr(custody.Custody, "_change", change)


def no_revision(patch: pytest.MonkeyPatch) -> None:
    """Two writes can be the same bytes, and then have the same etag."""
    right = manifest.encode
    patch.setattr(manifest, "encode", lambda wanted: right(dataclasses.replace(wanted, revision=1)))


def before_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A claim whose reply was lost tells what it finds instead of what it replaced."""
    right = custody.Custody._before_mine

    def before_mine(self: custody.Custody) -> manifest.Manifest | None:
        right(self)
        return None

    patch.setattr(custody.Custody, "_before_mine", before_mine)


MUTANTS = (
    no_epoch_check,
    any_takeover,
    a_first_claim_at_any_epoch,
    no_condition,
    a_412_is_success,
    a_lost_reply_is_success,
    a_nonce_of_each_worker,
    a_nonce_of_each_worker_unchecked,
    my_nonce_there_means_confirmed,
    fenced_goes_on,
    no_revision,
    before_is_forgotten,
)


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(plant)
    plant(monkeypatch)
    assert any(_fails(seed) for seed in range(MUTANT_SEEDS))


def _fails(seed: int) -> bool:
    try:
        return bool(claiming.fight(seed).judge.violations)
    except (TimeoutError, AssertionError, errors.FleetTwinError):
        return True
