"""The reference module: posts, comments, tags and categories."""
