"""One replica of several, as a process of its own: calls without pause for some seconds, then says what it was given.

Arguments: the URL of Redis, the number of replicas, calls in flight, seconds, requests a second (which is also half the
burst), tokens of a call. Prints ``ready``, waits for a line, and prints JSON.
"""

import asyncio
import json
import sys
import time

from mcp_middleware.storage import Limit, Limits, RedisConnection, RedisStorage, Reservation


async def main(url: str, replicas: int, in_flight: int, seconds: float, rate: float, tokens: float) -> None:
    """Reserve more than is used, and settle."""
    limits = Limits(Limit(rate * 2, rate), Limit(rate * 2 * tokens, rate * tokens))
    storage = RedisStorage(RedisConnection(url, budget=5.0), replicas=replicas)  # which no busy machine exceeds
    connected = await storage._connection.connect()
    print("ready" if connected else "no Redis", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    ends = time.monotonic() + seconds
    counted = {"requests": 0, "tokens": 0.0, "refused": 0, "slowest": 0.0}

    async def caller() -> None:
        while time.monotonic() < ends:
            began = time.monotonic()
            answer = await storage.reserve(b"agent", limits, tokens)
            counted["slowest"] = max(counted["slowest"], time.monotonic() - began)
            if isinstance(answer, Reservation):
                counted["requests"] += 1
                counted["tokens"] += tokens
                await asyncio.sleep(0.002)
                await storage.settle(answer, tokens)
            else:
                counted["refused"] += 1
                await asyncio.sleep(0.001)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    print(json.dumps(counted | {"up": storage._connection.is_up}), flush=True)
    await storage.aclose()


if __name__ == "__main__":
    _, url, *numbers = sys.argv
    asyncio.run(main(url, *map(int, numbers)))
