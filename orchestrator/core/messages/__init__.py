"""Three closed unions everything passes through: commands ask, events are what was decided, effects are to be done."""

from orchestrator.core.messages.commands import *  # noqa: F403  (one vocabulary, read as ``m.``)
from orchestrator.core.messages.effects import *  # noqa: F403
from orchestrator.core.messages.events import *  # noqa: F403
from orchestrator.core.messages.fleet_events import *  # noqa: F403
from orchestrator.core.messages.reservations import *  # noqa: F403
