"""Results that are kept for a while, in this process's memory or in Redis: see docs/ports/cache.md."""
