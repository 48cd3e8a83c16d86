"""Persistence: messages and metadata over an ordered key-value engine, on disk or in memory.

`store` is the door (`open_store`, `Store`); `mutations` makes the rows of metadata changes;
`keys` documents the layout. No decision about messages is taken here.
"""
