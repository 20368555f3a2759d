"""The Module, Route and Permission resources of Moorage: models, checks and generated CRDs.

The pydantic models of `v1alpha1` are the one source. From them come

- `manifests.load`: files and folders of YAML to resources, with every mistake as a `problems.Problem` that
  names file, line, field and mend; `manifests.parse` does the same for one object of the API server;
- `checks`: what is wrong between resources (missing modules, undeclared permissions, ambiguous rules, claims
  of hosts and prefixes) and `checks.unsupported`, the fields that wait for a later release;
- `crd`, `structural`, `editor`, `reference`: the CustomResourceDefinitions, JSON Schemas for editors and the
  reference pages, written by ``python -m moorage_crds generate``.

A constraint that no type can say is a `constraints.Rule` beside its model: CEL for the API server and a
predicate for Python, with one message. `paths`, `units` and `versions` are the small vocabularies that the
guard and the planner share. Nothing here does I/O but `manifests`, `yaml_source` and `generate`.
"""
