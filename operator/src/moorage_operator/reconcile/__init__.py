"""From what was seen to what is right: the store, the queue, and one worker per (namespace, module)."""
