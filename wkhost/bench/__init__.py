"""Measurements of a server and of the plugin link: `wkhost bench`.

Everything here is bounded in time and leaves nothing behind. Load comes from the process that
called; the server, its worker and its plugins are other processes, and only their CPU is counted.
"""
