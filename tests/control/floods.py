"""What hostile tests share: sessions begun by hand, what was counted, and whether an honest agent is still served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from orchestrator.adapters import peers
from orchestrator.adapters.peers import SESSION_CONTEXT
from orchestrator.api.v1 import worker_pb2
from tests.control.agents import OPTIONS, Agent, Served
from tests.control.house import DEADLINE_S

SESSION = "/orchestrator.api.v1.WorkerService/Session"
WORDS_MAX = 400
"""A refusal is a sentence, whatever came in."""

Change = Callable[[worker_pb2.Hello], None]


class DeafAgent(Agent):
    """Its connections take little before it has read that, which it never does."""

    def connect(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            self.served.house.authority.trust_bundle(),
            peers.key_to_pem(self.tls_key),
            self.certificate.chain,
        )
        window = (("grpc.http2.lookahead_bytes", 1_024), ("grpc.http2.bdp_probe", 0))
        options = (*OPTIONS, *window, ("grpc.use_local_subchannel_pool", 1))
        self.channels.append(
            grpc.aio.secure_channel(self.served.session_address, credentials, options=options)
        )
        return self.channel


def refusals(served: Served, door: str, code: str) -> float:
    """How often a door refused with a code."""
    labels = {"door": door, "code": code}
    return served.house.metrics.registry.get_sample_value("orchestrator_refusals_total", labels) or 0.0


def written(served: Served) -> float:
    """Events that were committed so far."""
    return served.house.metrics.registry.get_sample_value("orchestrator_loop_events_total") or 0.0


def beat(sequence: int = 1) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(heartbeat=worker_pb2.Heartbeat(sequence=sequence))


async def answered(agent: Agent, beats: int = 1) -> None:
    """The agent's heartbeats are acknowledged, one after the other."""
    async with asyncio.timeout(DEADLINE_S):
        for sequence in range(1, beats + 1):
            await agent.stream.write(beat(sequence))
            while (await agent.expect("heartbeat_ack")).heartbeat_ack.sequence != sequence:
                pass


def _as_it_is(message: Any) -> bytes:
    """Bytes go as they are, so that a test may send what is no message."""
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


async def begin(agent: Agent, change: Change = lambda _: None) -> worker_pb2.SessionResponse:
    """The answer to a hello that is right but for one change."""
    channel: Any = agent.connect()
    agent.stream = channel.stream_stream(
        SESSION,
        request_serializer=_as_it_is,
        response_deserializer=worker_pb2.SessionResponse.FromString,
    )()
    challenge = (await agent.stream.read()).challenge
    agent.session_number += 1
    hello = worker_pb2.Hello(
        worker_id=agent.worker_id,
        signature=agent.key.sign(SESSION_CONTEXT + challenge.nonce + agent.worker_id.encode()),
        inventory=agent.offer,
        agent_version=agent.version,
        session_number=agent.session_number,
    )
    change(hello)
    await agent.stream.write(worker_pb2.SessionRequest(hello=hello))
    answer: worker_pb2.SessionResponse = await agent.stream.read()
    return answer
