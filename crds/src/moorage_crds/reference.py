"""The reference pages of the three kinds, written from the models."""

from collections.abc import Iterator
from typing import Any

from moorage_crds.checks import NOT_YET
from moorage_crds.constraints import PATTERN_AS_RULE, RULES, SAYS
from moorage_crds.structural import Schema, json_schema, paragraphs
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_crds.v1alpha1.base import API_VERSION, ManifestResource

EXAMPLES: dict[type[ManifestResource], str] = {
    Module: """\
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata:
  name: blog
spec:
  version: 1.0.0
  image: acme/blog:1.0.0
  app: "blog:module"
  replicas: 2
  database: {}
  config:
    page_size: 20
""",
    Route: """\
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata:
  name: blog
spec:
  module: blog
  prefix: /api/v1/blog
  rules:
  - {name: list, methods: [GET], path: /posts, auth: optional}
  - {name: create, methods: [POST], path: /posts, permission: blog.post.create}
  - {name: publish, methods: [POST], path: "/posts/{id}/publish", permission: blog.post.publish}
""",
    Permission: """\
apiVersion: moorage.dev/v1alpha1
kind: Permission
metadata:
  name: blog.post.publish
spec:
  description: Make a post of one's own visible to everybody.
  roles: [author]
  condition: resource.author_id == user.id
""",
}


def page(kind: type[ManifestResource]) -> str:
    """The reference page of a kind, in Markdown."""
    schema = json_schema(kind)
    name = kind.__name__
    lines = [
        f"# {name}",
        "",
        paragraphs(schema["description"]),
        "",
        f"`apiVersion: {API_VERSION}`, `kind: {name}`; namespaced. Short name `{kind.short_name}`, category `moorage`:",
        f"`kubectl get {kind.short_name}`, `kubectl get moorage`, `kubectl explain {name.lower()}.spec`.",
        "",
        "```yaml",
        EXAMPLES[kind].rstrip(),
        "```",
        "",
        *_rules(schema),
    ]
    writer = _Writer(name)
    for part in ("spec", "status"):
        lines += writer.section(part, schema["properties"][part], level=2)
    lines += [
        "## Help in the editor",
        "",
        "An editor with yaml-language-server completes fields and marks wrong ones with this first line in a manifest:",
        "",
        "    # yaml-language-server: $schema=<path or address of>/crds/schemas/moorage.json",
    ]
    return "\n".join(lines) + "\n"


class _Writer:
    """Writes a table for each object, and each object once."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._written: dict[str, str] = {}

    def section(self, path: str, schema: Schema, level: int) -> list[str]:
        """Heading, description, table and rules of the object at `path`, then those of the objects in it."""
        lines = [f"{'#' * min(level, 4)} {path}", "", paragraphs(schema.get("description", "")), ""]
        inner: list[tuple[str, Schema]] = []
        lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, part in schema["properties"].items():
            child, child_path = _object_in(part, f"{path}.{name}")
            link = ""
            if child is not None:
                signature = repr(sorted(child["properties"]))
                link = self._written.setdefault(signature, child_path)
                if link == child_path:
                    inner.append((child_path, child))
            lines.append(self._row(path, name, part, name in schema.get("required", ()), link))
        lines += ["", *_rules(schema)]
        for child_path, child in inner:
            lines += self.section(child_path, child, level + 1)
        return lines

    def _row(self, path: str, name: str, part: Schema, required: bool, link: str) -> str:
        default = part.get("default")
        shown = "**required**" if required else _default(default)
        text = paragraphs(part.get("description", "")).replace("\n\n", " ")
        if not_yet := self._not_yet(f"{path}.{name}"):
            text = f"{text} **Not supported yet**{not_yet}."
        target = f"[{_type(part)}](#{_anchor(link)})" if link else _type(part)
        return f"| `{name}` | {target} | {shown} | {_cell(text)} |"

    def _not_yet(self, path: str) -> str:
        entry = next(
            (e for e in NOT_YET if e.kind == self._kind and e.field.removesuffix("[]") == path), None
        )
        return "" if entry is None else f": {entry.mend}"


def _object_in(schema: Schema, path: str) -> tuple[Schema | None, str]:
    """The object that a field is or lists, and its path."""
    if schema.get("type") == "array":
        return _object_in(schema["items"], f"{path}[]")
    return (schema, path) if "properties" in schema else (None, path)


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return " \\| ".join(f"`{choice}`" for choice in schema["enum"])
    if SAYS in schema:
        return _cell(schema[SAYS])
    if schema.get("type") == "array":
        return f"list of at most {schema['maxItems']}: {_type(schema['items'])}"
    if schema.get("type") == "integer":
        return _range(schema)
    if schema.get("type") == "object" and "properties" not in schema:
        return "free-form fields" if schema.get("additionalProperties") is True else "map of text"
    names = {"string": "text", "boolean": "true or false", "object": "fields"}
    return names[schema["type"]]


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = f" {low} to {high}" if high is not None and high < 2**31 - 1 else ""
    return f"number{bounds}"


def _default(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, dict):
        return ""  # an object whose own fields have the defaults
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _rules(schema: Schema) -> list[str]:
    sentences = list(_sentences(schema))
    return ["Rules:", "", *(f"- {sentence}." for sentence in sentences), ""] if sentences else []


def _sentences(schema: Schema) -> Iterator[str]:
    """Rules about the object and about its own fields, in words."""
    yield from (rule["message"] for rule in schema.get(RULES, ()))
    told: dict[str, str] = {}
    for name, part in schema.get("properties", {}).items():
        holders = [part] if "properties" in part.get("items", {}) else [part, part.get("items", {})]
        if "properties" in part:
            continue
        sentences = [f"`{name}` {holder[PATTERN_AS_RULE]}" for holder in holders if PATTERN_AS_RULE in holder]
        rules = [rule["message"] for holder in holders for rule in holder.get(RULES, ())]
        same = told.setdefault(repr(rules), name) if rules else name
        yield from sentences
        yield from [f"`{name}`: as `{same}`"] if same != name else (f"`{name}`: {rule}" for rule in rules)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(path: str) -> str:
    # As GitHub makes them: lower case, punctuation dropped.
    return "".join(character for character in path.lower() if character.isalnum() or character in "-_")
