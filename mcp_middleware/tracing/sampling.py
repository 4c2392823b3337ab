"""Sampling of traces that an untrusted caller began.

The OpenTelemetry samplers in common use follow the sampled flag of the parent. From a caller whom nobody trusts, that
flag would decide what we record and pay for, either way. So the flag of such a parent is replaced by what our own
sampler says of a trace that begins here; the caller's trace id and span id stay, and its trace stays whole.
"""

import secrets
from hashlib import blake2b
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind

__all__ = ["root_decision"]

_KEY: Final = secrets.token_bytes(32)


def root_decision(provider: Any, caller: SpanContext, name: str) -> bool | None:
    """Whether our sampler keeps the trace of ``caller``, asked as if it began here.

    The sampler is ``provider.sampler``, as the OpenTelemetry SDK has it; None where there is none. A sampler by ratio
    decides by the trace id, which the caller chose: it gets one derived from it with a key of this process, so that
    the calls of one trace are kept or dropped together and nobody can pick an id that is always kept.
    """
    sampler = getattr(provider, "sampler", None)
    if sampler is None:
        return None
    digest = blake2b(caller.trace_id.to_bytes(16, "big"), digest_size=16, key=_KEY).digest()
    result = sampler.should_sample(Context(), int.from_bytes(digest, "big"), name, kind=SpanKind.SERVER, links=())
    return bool(result.decision.is_sampled())
