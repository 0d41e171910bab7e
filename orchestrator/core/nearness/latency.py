"""What is known of round-trip times between workers: who measured whom, when, with what result, and what follows.

Of each pair both ends' last words are kept, and the larger of the fresh ones counts: a worker can feign to be near,
but the other end disagrees, outvotes it, and the dispute is recorded against who claimed less. One who is disputed
often is *doubted*: what it says alone counts for nothing. Nothing here is stored: measurements are not decisions.

The table is columns of numbers with a fixed number of slots for each worker: 21 bytes a slot, 1.3 KB a worker, 134 MB
for a hundred thousand, and up to twice that after it has grown. Times may be of any clock, as long as it is always the
control plane's own.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from orchestrator.core.ids import WorkerId
from orchestrator.core.nearness.coordinates import UNKNOWN_US, Coordinates, shortest_detours
from orchestrator.core.nearness.probing import Sight, chosen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)

RTT_MAX_US = 10_000_000
"""Ten seconds: whatever answers later than this is not there."""

SLOTS = 64
"""Peers remembered of each worker: what it measures in an hour, and about as many that measured it."""

ROWS_MIN = 64

PROBES_PER_ORDER_MAX = 8
"""What an agent measures at once: eight times a few small packets are nothing to a home's line."""

PROBES_PER_HOUR = 48
"""In any hour, to any worker: some tens of kilobytes. The 32 that find near ones well are done in one."""

PROBE_EVERY_MS = 3_600_000 // (PROBES_PER_HOUR - PROBES_PER_ORDER_MAX)
"""One order at once and then this pace: together never more than PROBES_PER_HOUR within any hour."""

CANDIDATES_MAX = 1_024
"""Looked at for one order: some milliseconds of work."""

DISPUTE_FACTOR = 2
DISPUTE_SLACK_US = 5_000
"""Two ends disagree if one says more than DISPUTE_FACTOR times the other and this on top: a queue's worth of noise."""

DISPUTE_WINDOW_MS = 3_600_000
"""Words farther apart in time are not compared: routes change."""

DOUBTED_DISPUTES_MIN = 3
"""Disputes from which a worker is doubted, if they are at least as many as the words that were borne out."""

LEG_MIN_US = 500
"""Differences of legs below this are noise, not nearness."""

ALONE, BORNE_OUT, DISPUTED = 0, 1, 2
NOBODY = -1
NEVER_S = -(2**31)
SECONDS_MAX = 2**31 - 1
"""Either way from the first observation: 68 years."""


@dataclass(frozen=True, slots=True)
class LatencyMatrix:
    """Both n × n in microseconds and symmetric, with -1 where nothing is known and 0 on the diagonal.

    ``predicted_us`` never looks at the pair's own measurement, so that the two can be held against each other.
    """

    measured_us: NDArray[np.int32]
    predicted_us: NDArray[np.int32]

    @property
    def best_us(self) -> NDArray[np.int32]:
        """What was measured, or else predicted."""
        return np.where(self.measured_us >= 0, self.measured_us, self.predicted_us)


class Word(NamedTuple):
    """What counts of one pair, and which ends said so."""

    peer_id: WorkerId
    rtt_us: int
    own: bool
    theirs: bool


class LatencyMap:
    """Words of both ends of each pair, as many as SLOTS of each worker, and what can be inferred from them.

    A worker's own words give way only to newer ones of its own; what others said of it only fills what is left.
    """

    def __init__(self) -> None:
        self._row: dict[WorkerId, int] = {}
        self._ids: list[WorkerId | None] = []
        self._free: list[int] = []
        """Rows of the forgotten."""
        self._epoch_ms: int | None = None
        """Times are kept in seconds since the first observation: 32 bits then do."""
        self._peer = np.full((0, SLOTS), NOBODY, dtype=np.int32)
        self._own_us = np.zeros((0, SLOTS), dtype=np.int32)
        self._own_s = np.full((0, SLOTS), NEVER_S, dtype=np.int32)
        self._their_us = np.zeros((0, SLOTS), dtype=np.int32)
        self._their_s = np.full((0, SLOTS), NEVER_S, dtype=np.int32)
        self._verdict = np.zeros((0, SLOTS), dtype=np.int8)
        self._doubted = np.zeros(0, dtype=np.bool_)
        self._budget_ms: list[int] = []
        """When each row's probes will all be earned back."""
        self._coordinates = Coordinates()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._row)

    def observe(self, worker_id: WorkerId, peer_id: WorkerId, rtt_us: int, at_ms: int) -> None:
        """What ``worker_id`` says it measured to ``peer_id``, and when that was heard. An older word than the one held
        changes nothing. Raises ValueError that names the field.
        """
        _check_word(worker_id, peer_id, rtt_us, at_ms)
        if self._epoch_ms is None:
            self._epoch_ms = at_ms
        at_s = self._seconds(at_ms)
        if abs(at_s) > SECONDS_MAX:
            raise ValueError(
                f"at_ms: {at_ms} is decades from the first word; give the control plane's own time"
            )
        row, other = self._row_for(worker_id), self._row_for(peer_id)
        slot = self._slot_for(row, other, own=True)
        if self._own_s[row, slot] > at_s:
            return
        self._own_us[row, slot], self._own_s[row, slot] = rtt_us, at_s
        far_slot = self._slot_for(other, row, own=False)
        if far_slot != NOBODY:
            self._their_us[other, far_slot], self._their_s[other, far_slot] = rtt_us, at_s
            if self._own_s[other, far_slot] != NEVER_S:
                self._their_us[row, slot] = self._own_us[other, far_slot]
                self._their_s[row, slot] = self._own_s[other, far_slot]
        self._judge(row, slot, other, far_slot)

    def forget(self, *worker_ids: WorkerId) -> None:
        """Workers that are gone: their words, what others said of them, and the disputes with them. Strangers are passed
        over. One walk over the table however many they are: 20 ms where there are a hundred thousand.
        """
        rows = [row for name in worker_ids if (row := self._row.pop(name, None)) is not None]
        if not rows:
            return
        # One more for NOBODY, which is the last index.
        gone = np.zeros(len(self._doubted) + 1, dtype=np.bool_)
        gone[rows] = True
        mentions = np.argwhere(gone[self._peer[: len(self._ids)]])
        self._clear(mentions)
        self._clear(np.array([(row, slot) for row in rows for slot in range(SLOTS)], dtype=np.int64))
        for row in {*rows, *mentions[:, 0].tolist()}:
            self._weigh(row)
        for row in rows:
            self._ids[row] = None
            self._free.append(row)

    def measured_us(self, a: WorkerId, b: WorkerId, now_ms: int, max_age_ms: int) -> int | None:
        """The larger of both ends' fresh words; one end's alone only if it is not doubted."""
        row, other = self._row.get(a), self._row.get(b)
        if row is None or other is None or row == other:
            return None
        rows = np.array([row, other], dtype=np.int64)
        told = self._told_us(rows, now_ms, max_age_ms)
        words = told[(self._peer[rows] == rows[::-1, None]) & (told < UNKNOWN_US)]
        return int(words.max()) if len(words) else None

    def words(self, worker_id: WorkerId, now_ms: int, max_age_ms: int) -> list[Word]:
        """Everybody that a worker knows itself or is known by, as far as that is fresh and counts: SLOTS at most."""
        row = self._row.get(worker_id)
        if row is None:
            return []
        told = self._told_us(np.array([row], dtype=np.int64), now_ms, max_age_ms)[0]
        slots = np.flatnonzero(told < UNKNOWN_US)
        oldest_s = self._seconds(now_ms - max_age_ms)
        columns = (
            self._peer[row, slots],
            told[slots],
            self._own_s[row, slots] >= oldest_s,
            self._their_s[row, slots] >= oldest_s,
        )
        return [
            Word(peer_id, rtt_us, own, theirs)
            for peer, rtt_us, own, theirs in zip(*(column.tolist() for column in columns), strict=True)
            if (peer_id := self._ids[peer]) is not None
        ]

    def predicted_us(self, a: WorkerId, b: WorkerId, now_ms: int, max_age_ms: int) -> int | None:
        """What is inferred of a pair without its own measurement; None where nothing can be."""
        if a == b:
            return None
        told = int(self.matrix((a, b), now_ms, max_age_ms).predicted_us[0, 1])
        return None if told < 0 else told

    def matrix(self, workers: Sequence[WorkerId], now_ms: int, max_age_ms: int) -> LatencyMatrix:
        """All pairs of some hundred workers at once. Raises ValueError where one is named twice."""
        if len(set(workers)) != len(workers):
            raise ValueError("workers: one is named twice; name each once")
        count = len(workers)
        known = np.array([k for k, name in enumerate(workers) if name in self._row], dtype=np.int64)
        measured = np.full((count, count), -1, dtype=np.int32)
        predicted = measured.copy()
        if len(known):
            rows = np.array([self._row[workers[k]] for k in known.tolist()], dtype=np.int64)
            told = self._told_us(rows, now_ms, max_age_ms)
            square = np.ix_(known, known)
            measured[square] = self._direct_us(rows, told)
            detours = shortest_detours(self._peer[rows], told)
            reached = np.where(detours < UNKNOWN_US, detours, self._coordinates.between_us(rows, rows))
            predicted[square] = np.where(reached < UNKNOWN_US, reached, -1)
        np.fill_diagonal(measured, 0)
        np.fill_diagonal(predicted, 0)
        return LatencyMatrix(measured, predicted)

    def measured_between(
        self, workers: Sequence[WorkerId], now_ms: int, max_age_ms: int
    ) -> NDArray[np.int32]:
        """Of some hundred workers, the round trips of those pairs that were measured, in microseconds, in no order."""
        rows = np.array([self._row[name] for name in workers if name in self._row], dtype=np.int64)
        if not len(rows):
            return np.zeros(0, dtype=np.int32)
        direct = self._direct_us(rows, self._told_us(rows, now_ms, max_age_ms))
        pairs = direct[np.triu_indices(len(rows), 1)]
        found: NDArray[np.int32] = pairs[pairs >= 0]
        return found

    def disputed_by(self, worker_id: WorkerId) -> tuple[WorkerId, ...]:
        """Peers that contradict this worker, where it was this one that claimed less, in the order of their ids."""
        row = self._row.get(worker_id)
        if row is None:
            return ()
        return tuple(sorted(self._names(self._peer[row, self._verdict[row] == DISPUTED])))

    def doubted(self, worker_id: WorkerId) -> bool:
        """Whether what it says alone counts for nothing."""
        row = self._row.get(worker_id)
        return row is not None and bool(self._doubted[row])

    def update(self, now_ms: int, max_age_ms: int, steps: int) -> None:
        """Fit the coordinates of the next ``steps`` workers once each, in turn: some milliseconds a thousand."""
        count = min(steps, len(self._ids))
        if count <= 0:
            return
        rows = (self._turn + np.arange(count, dtype=np.int64)) % len(self._ids)
        self._turn = int(rows[-1]) + 1
        self._coordinates.relax(rows, self._peer[rows], self._told_us(rows, now_ms, max_age_ms))

    def probes_left(self, worker_id: WorkerId, now_ms: int) -> int:
        """How many more probes this worker may be asked for now."""
        row = self._row.get(worker_id)
        if row is None:
            return PROBES_PER_ORDER_MAX
        owed_ms = max(0, self._budget_ms[row] - now_ms)
        return max(0, PROBES_PER_ORDER_MAX - -(-owed_ms // PROBE_EVERY_MS))

    def spend(self, worker_id: WorkerId, count: int, now_ms: int) -> None:
        """Take what a worker was asked for off its budget. Raises ValueError where that is more than is left."""
        left = self.probes_left(worker_id, now_ms)
        if not 0 <= count <= left:
            raise ValueError(
                f"count: {count} probes of {worker_id} were asked for, {left} are left; ask for fewer"
            )
        if count:
            row = self._row_for(worker_id)
            self._budget_ms[row] = max(self._budget_ms[row], now_ms) + count * PROBE_EVERY_MS

    def probe_targets(
        self,
        worker_id: WorkerId,
        candidates: Iterable[WorkerId],
        count: int,
        seed: int,
        now_ms: int,
        max_age_ms: int,
    ) -> tuple[WorkerId, ...]:
        """Whom to measure next: landmarks not yet known, one by chance, then who is likely nearest; at most ``count``
        and what ``probes_left`` allows. Pairs known for less than half of ``max_age_ms`` are not asked for again.
        Of more than CANDIDATES_MAX candidates some are left out by chance.
        """
        allowed = min(count, self.probes_left(worker_id, now_ms))
        chance = np.random.default_rng((seed % 2**63, zlib.crc32(worker_id.encode())))
        others = sorted(set(candidates) - {worker_id})
        if len(others) > CANDIDATES_MAX:
            others = [others[k] for k in np.sort(chance.permutation(len(others))[:CANDIDATES_MAX]).tolist()]
        if allowed <= 0 or not others:
            return ()
        sight = self._sight(worker_id, others, now_ms, max_age_ms)
        return tuple(others[k] for k in chosen(others, sight, allowed, chance))

    def _sight(self, worker_id: WorkerId, others: list[WorkerId], now_ms: int, max_age_ms: int) -> Sight:
        """What a worker knows of each candidate."""
        fresh = np.zeros(len(others), dtype=np.bool_)
        alone = fresh.copy()
        guess = np.full(len(others), UNKNOWN_US, dtype=np.int32)
        row = self._row.get(worker_id)
        met = np.array([k for k, name in enumerate(others) if name in self._row], dtype=np.int64)
        if row is None or not len(met):
            return Sight(fresh, alone, guess)
        rows = np.array([self._row[others[k]] for k in met.tolist()], dtype=np.int64)
        one = np.array([row], dtype=np.int64)
        place = np.full(len(self._ids), NOBODY, dtype=np.int64)
        place[rows] = met
        peers, guesses = self._reach(row, now_ms, max_age_ms)
        where = place[peers]
        guess[met] = self._coordinates.between_us(one, rows)[0]
        guess[where[where >= 0]] = guesses[where >= 0]
        recent = self._told_us(one, now_ms, max_age_ms // 2)[0] < UNKNOWN_US
        told = self._peer[row] >= 0
        where = place[np.where(told, self._peer[row], 0)]
        told &= where >= 0
        fresh[where[told & recent]] = True
        own_old = self._seconds(now_ms) - self._own_s[row].astype(np.int64) > max_age_ms // 1_000
        alone[where[told & recent & own_old]] = True
        # What the other end of a pair holds alone, because this one's slots were full, is known as well.
        back = np.argwhere(self._peer[rows] == row)
        theirs = self._told_us(rows[back[:, 0]], now_ms, max_age_ms // 2)[np.arange(len(back)), back[:, 1]]
        fresh[met[back[theirs < UNKNOWN_US, 0]]] = True
        return Sight(fresh, alone, guess)

    def _reach(self, row: int, now_ms: int, max_age_ms: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Whom a worker knows itself or by a shared third, each once, and a guess how far they are: what was measured,
        or between the least sum and the greatest difference of two legs, whose truth lies between them.
        """
        told = self._told_us(np.array([row], dtype=np.int64), now_ms, max_age_ms)[0]
        firsts, legs = self._peer[row][told < UNKNOWN_US], told[told < UNKNOWN_US]
        onward = self._told_us(firsts.astype(np.int64), now_ms, max_age_ms)
        which, slot = np.nonzero((onward < UNKNOWN_US) & (self._peer[firsts] != row))
        seconds, onward_us = self._peer[firsts[which], slot], onward[which, slot]
        peers, place = np.unique(np.concatenate([firsts, seconds]), return_inverse=True)
        most = np.full(len(peers), UNKNOWN_US, dtype=np.int32)
        least = np.full(len(peers), LEG_MIN_US, dtype=np.int32)
        np.minimum.at(most, place[len(firsts) :], legs[which] + onward_us)
        np.maximum.at(least, place[len(firsts) :], np.abs(legs[which] - onward_us))
        guess = np.sqrt(most.astype(np.float64) * least).astype(np.int32)
        guess[place[: len(firsts)]] = legs
        return peers, guess

    def _told_us(self, rows: NDArray[np.int64], now_ms: int, max_age_ms: int) -> NDArray[np.int32]:
        """By row and slot: what counts of each pair, UNKNOWN_US where no fresh word does."""
        oldest_s = min(max(self._seconds(now_ms - max_age_ms), NEVER_S + 1), SECONDS_MAX)
        peers = self._peer[rows]
        own = self._own_s[rows] >= oldest_s
        theirs = self._their_s[rows] >= oldest_s
        own_us = np.where(own, self._own_us[rows], 0)
        their_us = np.where(theirs, self._their_us[rows], 0)
        both = own & theirs
        believed = both | (own & ~self._doubted[rows][:, None]) | (theirs & ~self._doubted[peers])
        return np.where(believed & (peers >= 0), np.maximum(own_us, their_us), UNKNOWN_US).astype(np.int32)

    def _direct_us(self, rows: NDArray[np.int64], told: NDArray[np.int32]) -> NDArray[np.int32]:
        """Pairs among ``rows`` as either end's slots tell them, -1 where neither does."""
        place = np.full(len(self._ids), NOBODY, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        who, slot = np.nonzero((told < UNKNOWN_US) & (place[self._peer[rows]] >= 0))
        whom = place[self._peer[rows[who], slot]]
        direct = np.full((len(rows), len(rows)), -1, dtype=np.int32)
        direct[who, whom] = told[who, slot]
        return np.maximum(direct, direct.T)

    def _judge(self, row: int, slot: int, other: int, far_slot: int) -> None:
        """Hold a pair's two words against each other; the lesser is disputed if they differ too much."""
        own_s, their_s = int(self._own_s[row, slot]), int(self._their_s[row, slot])
        if their_s == NEVER_S or abs(own_s - their_s) * 1_000 > DISPUTE_WINDOW_MS:
            return
        own_us, their_us = int(self._own_us[row, slot]), int(self._their_us[row, slot])
        self._verdict[row, slot] = DISPUTED if _contradicts(their_us, own_us) else BORNE_OUT
        self._weigh(row)
        if far_slot != NOBODY:
            self._verdict[other, far_slot] = DISPUTED if _contradicts(own_us, their_us) else BORNE_OUT
            self._weigh(other)

    def _weigh(self, row: int) -> None:
        """Doubt a worker or not, by its verdicts."""
        disputed = int(np.count_nonzero(self._verdict[row] == DISPUTED))
        borne_out = int(np.count_nonzero(self._verdict[row] == BORNE_OUT))
        self._doubted[row] = disputed >= DOUBTED_DISPUTES_MIN and disputed >= borne_out

    def _slot_for(self, row: int, other: int, *, own: bool) -> int:
        """The slot of a pair, made if need be; NOBODY where others' words find no room beside a worker's own."""
        peers = self._peer[row]
        held = np.flatnonzero(peers == other)
        if len(held):
            return int(held[0])
        empty = np.flatnonzero(peers == NOBODY)
        if len(empty):
            slot = int(empty[0])
        else:
            lent = np.flatnonzero(self._own_s[row] == NEVER_S)
            if len(lent):
                slot = int(lent[np.argmin(self._their_s[row, lent])])
            elif own:
                slot = int(np.argmin(self._own_s[row]))
            else:
                return NOBODY
            self._clear(np.array([[row, slot]], dtype=np.int64))
        self._peer[row, slot] = other
        return slot

    def _clear(self, places: NDArray[np.int64]) -> None:
        """Empty slots, given as (row, slot) pairs."""
        where = (places[:, 0], places[:, 1])
        self._peer[where] = NOBODY
        self._own_s[where] = NEVER_S
        self._their_s[where] = NEVER_S
        self._verdict[where] = ALONE

    def _row_for(self, worker_id: WorkerId) -> int:
        """A worker's row, made if need be."""
        row = self._row.get(worker_id)
        if row is not None:
            return row
        if self._free:
            row = self._free.pop()
            self._ids[row] = worker_id
            self._budget_ms[row] = 0
        else:
            row = len(self._ids)
            if row == len(self._doubted):
                self._grow(max(ROWS_MIN, 2 * row))
            self._ids.append(worker_id)
            self._budget_ms.append(0)
        self._row[worker_id] = row
        self._coordinates.place(row, worker_id)
        return row

    def _grow(self, rows: int) -> None:
        self._peer = _longer(self._peer, rows, NOBODY)
        self._own_us, self._own_s = _longer(self._own_us, rows, 0), _longer(self._own_s, rows, NEVER_S)
        self._their_us, self._their_s = (
            _longer(self._their_us, rows, 0),
            _longer(self._their_s, rows, NEVER_S),
        )
        self._verdict, self._doubted = _longer(self._verdict, rows, ALONE), _longer(self._doubted, rows, 0)
        self._coordinates.grow(rows)

    def _seconds(self, at_ms: int) -> int:
        return (at_ms - (self._epoch_ms or 0)) // 1_000

    def _names(self, rows: NDArray[np.int32]) -> Iterable[WorkerId]:
        return (name for row in rows.tolist() if (name := self._ids[row]) is not None)


def _longer(column: NDArray[Number], rows: int, value: int) -> NDArray[Number]:
    more = np.full((rows - len(column), *column.shape[1:]), value, dtype=column.dtype)
    return np.concatenate([column, more])


def _contradicts(larger_us: int, smaller_us: int) -> bool:
    return larger_us > DISPUTE_FACTOR * smaller_us + DISPUTE_SLACK_US


def _check_word(worker_id: WorkerId, peer_id: WorkerId, rtt_us: int, at_ms: int) -> None:
    """What an agent sends may be anything."""
    if not worker_id:
        raise ValueError("worker_id: empty; say who measured")
    if not peer_id or peer_id == worker_id:
        raise ValueError(f"peer_id: {peer_id!r} is not another worker; name the one that was measured")
    if type(rtt_us) is not int or not 0 < rtt_us <= RTT_MAX_US:
        raise ValueError(f"rtt_us: {rtt_us!r} is not a whole number from 1 to {RTT_MAX_US}; measure again")
    if type(at_ms) is not int or at_ms < 0:
        raise ValueError(f"at_ms: {at_ms!r} is not a time; give milliseconds")
