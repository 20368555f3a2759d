"""The Module, Route and Permission resources of Moorage: models, checks and generated CRDs."""
