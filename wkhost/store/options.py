"""The sizes of the disk engine."""

from __future__ import annotations

import msgspec

MIB = 1024 * 1024


class StoreOptions(msgspec.Struct, frozen=True):
    """Sizes in bytes, `max_open_files` a count. The config keys are named beside each.

    The memory engine ignores all of them.
    """

    mem_table_bytes: int = 16 * MIB
    """db.memTableSize: a family's buffer in memory is written out at this size."""
    block_cache_bytes: int = 64 * MIB
    """db.blockCacheSize: decompressed blocks, indexes and filters, of all families together."""
    write_buffer_bytes: int = 64 * MIB
    """db.writeBufferSize: the buffers of all families together are written out at this size."""
    max_open_files: int = 1000
    """db.maxOpenFiles: table files kept open."""
