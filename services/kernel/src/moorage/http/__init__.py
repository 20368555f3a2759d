"""The HTTP host of a module: the guard decides, the handler is dispatched by the rule's name."""
