"""The module that the handlers belong to."""

from blog.generated import Routes
from moorage import Module

module = Module("blog")
module.serve_openapi(Routes.OPENAPI, page=Routes.DOCS)
