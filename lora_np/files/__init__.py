"""Named arrays and their configuration, on disk and back. Knows no model."""

from .arrays import load_arrays, save_arrays, write_atomically

__all__ = ["load_arrays", "save_arrays", "write_atomically"]
