"""What each connected router has yet to hear of the worker's cached prefixes. Event loop only."""

from scheduling.prefix_chain import PrefixKey
from scheduling.prefix_index import PrefixChanges, PrefixJournal
from scheduling.worker_events import SessionId


class PrefixNews:
    """Holds one key for each cached block, and for each router the changes since its last frame."""

    def __init__(self) -> None:
        self._there: set[PrefixKey] = set()
        self._journal_by_session: dict[SessionId, PrefixJournal] = {}
        # Routers that have heard nothing yet.
        self._newcomers: set[SessionId] = set()

    def open(self, session_id: SessionId) -> None:
        """A router connected: the first thing it hears is everything."""
        journal = self._journal_by_session[session_id] = PrefixJournal()
        journal.extend(PrefixChanges(added=tuple(self._there)))
        self._newcomers.add(session_id)

    def close(self, session_id: SessionId) -> None:
        """Its session ended; harmless when repeated."""
        self._journal_by_session.pop(session_id, None)
        self._newcomers.discard(session_id)

    def note(self, changes: PrefixChanges) -> None:
        """The core told what came and went."""
        self._there.update(changes.added)
        self._there.difference_update(changes.removed)
        for journal in self._journal_by_session.values():
            journal.extend(changes)

    def is_waiting(self, session_id: SessionId) -> bool:
        """There is something that this router has not heard."""
        return bool(self._journal_by_session.get(session_id))

    def take(self, session_id: SessionId) -> PrefixChanges | None:
        """What goes into the router's next frame, or None."""
        journal = self._journal_by_session.get(session_id)
        if not journal:
            return None
        changes = journal.take()
        is_first = session_id in self._newcomers
        self._newcomers.discard(session_id)
        return PrefixChanges(changes.added, changes.removed, is_first)
