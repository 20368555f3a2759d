"""How many requests pass: counted in this process's memory, or in Redis for all processes of a module."""
