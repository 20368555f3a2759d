"""The pure planner: resources, settings and observed facts in; Kubernetes objects and statuses out.

Nothing here awaits, reads a clock, a file or an environment variable: the same input gives the same bytes.
"""
