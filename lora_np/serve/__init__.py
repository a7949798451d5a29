"""Serve one base model and many adapters: an engine that batches requests, and an HTTP server.

Modules:

    cache          a key/value cache; rows can be added and removed between two steps
    adapters       AdapterStore: loads adapters from disk and removes the least recently used adapters
    engine         AdapterServer: continuous batching, one token per request and step
    engine_thread  one thread that runs the engine
    protocol       requests and responses of OpenAI's API, as data
    http           the HTTP server (Starlette, uvicorn)
"""

from .adapters import AdapterStore, UnknownAdapter
from .engine import AdapterServer, QueueFull, Request

__all__ = ["AdapterServer", "AdapterStore", "QueueFull", "Request", "UnknownAdapter"]
