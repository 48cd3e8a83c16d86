"""Plugins that come with wkhost. Each folder is a plugin like anyone's: it uses the same door."""
