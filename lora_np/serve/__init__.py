"""Many adapters on one base: the engine that batches their requests, and an HTTP door before it.

cache      rows of keys and values that come and go
adapters   which adapters are in memory, which on disk, and where they may come from
engine     AdapterServer: requests in, tokens out, a step at a time
driver     the one thread that the engine belongs to
protocol   OpenAI's requests and answers, as data
http       the door itself (Starlette, uvicorn)
"""

from .adapters import AdapterStore, UnknownAdapter
from .engine import AdapterServer, QueueFull, Request

__all__ = ["AdapterServer", "AdapterStore", "QueueFull", "Request", "UnknownAdapter"]
