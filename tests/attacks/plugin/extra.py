"""A second file of the plugin, which it tries to change."""
