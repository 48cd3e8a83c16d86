"""Word moderation: refuses messages or masks words in them, by lists of up to 100,000 words."""
