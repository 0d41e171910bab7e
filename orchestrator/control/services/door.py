"""What every gRPC call passes: malformed messages and refusals become statuses, and nothing else leaves.

A servicer only raises RefusedError; which status that is stands here, once.
"""

from __future__ import annotations

import contextlib
import inspect
import traceback
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, assert_never

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from orchestrator.core.errors import RefusalCode, RefusedError, invalid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

log = structlog.get_logger(__name__)

Guard: TypeAlias = "Callable[[grpc.aio.ServicerContext[Any, Any]], Awaitable[object]]"
"""Asked before each call of a service; raises RefusedError."""

RETRY_MS = "1000"
"""A full inbox drains within a second."""

RETRY_KEY = "grpc-retry-pushback-ms"
"""gRPC's own name for how long a client should wait."""

FIELD_KEY = "orch-field"
"""Trailing metadata that names the input at fault, for programs; people read the message."""

MALFORMED = invalid("request", "the request is no message of this call; use a client of this version")

INTERNAL = "internal error; nothing is known to be wrong with the request, try again or tell the operator"


def status_of(code: RefusalCode) -> grpc.StatusCode:
    """The status that says the same as the code."""
    match code:
        case RefusalCode.INVALID:
            return grpc.StatusCode.INVALID_ARGUMENT
        case RefusalCode.NOT_FOUND:
            return grpc.StatusCode.NOT_FOUND
        case RefusalCode.ALREADY_EXISTS:
            return grpc.StatusCode.ALREADY_EXISTS
        case RefusalCode.UNAUTHENTICATED:
            return grpc.StatusCode.UNAUTHENTICATED
        case RefusalCode.FORBIDDEN:
            return grpc.StatusCode.PERMISSION_DENIED
        case RefusalCode.CONFLICT:
            return grpc.StatusCode.FAILED_PRECONDITION
        case RefusalCode.EXHAUSTED:
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case RefusalCode.STALE:
            return grpc.StatusCode.ABORTED
        case RefusalCode.UNAVAILABLE:
            return grpc.StatusCode.UNAVAILABLE
        case RefusalCode.INTERNAL:
            return grpc.StatusCode.INTERNAL
        case _:
            assert_never(code)


def detail_of(refusal: RefusedError) -> str:
    """The sentence, with its field where it does not say it."""
    if refusal.field and refusal.field not in refusal.message:
        return f"{refusal.field}: {refusal.message}"
    return refusal.message


async def refuse(context: grpc.aio.ServicerContext[Any, Any], refusal: RefusedError) -> NoReturn:
    """End the call with the refusal's status."""
    metadata: list[tuple[str, str]] = []
    if refusal.field.isascii() and refusal.field.isprintable() and refusal.field:
        metadata.append((FIELD_KEY, refusal.field))
    if refusal.code in (RefusalCode.EXHAUSTED, RefusalCode.UNAVAILABLE):
        metadata.append((RETRY_KEY, RETRY_MS))
    await context.abort(status_of(refusal.code), detail_of(refusal), tuple(metadata))


class _Malformed:
    """In place of a request whose bytes are no message."""


class _MalformedError(Exception):
    """Passes through every handler: what is no message is the door's to answer, even in a stream."""


class DoorObserver(Protocol):
    """Where refusals are counted."""

    def refused(self, door: str, code: str) -> None: ...


class Door(grpc.aio.ServerInterceptor):
    """Stands before every handler. ``guards`` by full service name are asked before each of its calls."""

    def __init__(self, guards: dict[str, Guard], observer: DoorObserver) -> None:
        self._guards = guards
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        guard = self._guards.get(method.strip("/").partition("/")[0])
        codecs = (_lenient(handler.request_deserializer), handler.response_serializer)
        if handler.request_streaming and handler.response_streaming:
            streams = self._streaming(handler.stream_stream, method, guard)
            return grpc.stream_stream_rpc_method_handler(streams, *codecs)
        if handler.response_streaming:
            streams = self._streaming(handler.unary_stream, method, guard)
            return grpc.unary_stream_rpc_method_handler(streams, *codecs)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(handler.stream_unary, method, guard), *codecs
            )
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method, guard), *codecs)

    def _unary(self, behaviour: Any, method: str, guard: Any) -> Any:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                if guard is not None:
                    await guard(context)
                return await behaviour(_incoming(request), context)
            except RefusedError as refusal:
                await self._refuse(context, method, refusal)
            except _MalformedError:
                await self._refuse(context, method, MALFORMED)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets a status and no text of ours
                await _fail(context, method, error)

        return answer

    def _streaming(self, behaviour: Any, method: str, guard: Any) -> Any:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                if guard is not None:
                    await guard(context)
                answers = behaviour(_incoming(request), context)
                if inspect.isasyncgen(answers):
                    # A caller who leaves ends this in the middle: what the handler began must end with it.
                    async with contextlib.aclosing(answers):
                        async for one in answers:
                            await context.write(one)
                else:
                    await answers
            except RefusedError as refusal:
                await self._refuse(context, method, refusal)
            except _MalformedError:
                await self._refuse(context, method, MALFORMED)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 -- the same
                await _fail(context, method, error)

        return answer

    async def _refuse(
        self, context: grpc.aio.ServicerContext[Any, Any], method: str, refusal: RefusedError
    ) -> NoReturn:
        self._observer.refused(method.rpartition("/")[2], refusal.code.value)
        await refuse(context, refusal)


def _lenient(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """By itself gRPC would answer a malformed message as if the fault were ours."""

    def read(data: bytes) -> Any:
        if deserialize is None:
            return data
        try:
            return deserialize(data)
        except (DecodeError, ValueError):
            return _Malformed()

    return read


def _checked(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise _MalformedError
    return request


class _EachChecked:
    """A stream of requests. No generator, which whoever stops in the middle would have to close."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests

    def __aiter__(self) -> _EachChecked:
        return self

    async def __anext__(self) -> Any:
        return _checked(await anext(self._requests))


def _incoming(request: Any) -> Any:
    return _EachChecked(request) if hasattr(request, "__aiter__") else _checked(request)


async def _fail(context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception) -> NoReturn:
    """The error's own text may quote a caller's values: it is not sent, nor logged."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("call_failed", method=method, error=type(error).__name__, where=where)
    await context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
