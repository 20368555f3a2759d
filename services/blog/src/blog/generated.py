"""Names of rules and permissions. Generated from the manifests by `moorage permissions`; do not edit."""

from enum import StrEnum


class Routes(StrEnum):
    """Rules that the module's handlers are bound to."""

    ARCHIVE_POST = "archive-post"
    CREATE_CATEGORY = "create-category"
    CREATE_COMMENT = "create-comment"
    CREATE_POST = "create-post"
    DELETE_COMMENT = "delete-comment"
    DELETE_POST = "delete-post"
    DOCS = "docs"
    LIST_CATEGORIES = "list-categories"
    LIST_COMMENTS = "list-comments"
    LIST_DRAFTS = "list-drafts"
    LIST_POSTS = "list-posts"
    LIST_TAGS = "list-tags"
    OPENAPI = "openapi"
    PUBLISH_POST = "publish-post"
    READ_POST = "read-post"
    UPDATE_POST = "update-post"


class Permissions(StrEnum):
    """Codes that the module's rules and code ask for."""

    CATEGORY_CREATE = "blog.category.create"
    COMMENT_CREATE = "blog.comment.create"
    COMMENT_DELETE = "blog.comment.delete"
    POST_CREATE = "blog.post.create"
    POST_DELETE = "blog.post.delete"
    POST_MODERATE = "blog.post.moderate"
    POST_PUBLISH = "blog.post.publish"
    POST_READ = "blog.post.read"
    POST_UPDATE = "blog.post.update"
