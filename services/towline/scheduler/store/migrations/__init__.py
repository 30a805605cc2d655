"""Numbered schema changes. A file is never edited once it is released."""
