{{/* What the operator does in a namespace that it serves; docs/operator.md ("Rights") explains it line by line. */}}
{{- define "moorage.rules.operator" -}}
- apiGroups: [moorage.dev]
  resources: [modules]
  verbs: [get, list, watch, patch]
- apiGroups: [moorage.dev]
  resources: [routes, permissions]
  verbs: [get, list, watch]
- apiGroups: [moorage.dev]
  resources: [modules/status, routes/status, permissions/status]
  verbs: [patch]
- apiGroups: [moorage.dev]
  resources: [modules/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* What it does besides in its own namespace: the Lease, and the two signing keys, made once. */}}
{{- define "moorage.rules.core" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create]
{{- end -}}

{{/* People's rights over the three kinds. Status stays the operator's. */}}
{{- define "moorage.rules.view" -}}
- apiGroups: [moorage.dev]
  resources: [modules, routes, permissions]
  verbs: [get, list, watch]
{{- end -}}

{{- define "moorage.rules.edit" -}}
- apiGroups: [moorage.dev]
  resources: [modules, routes, permissions]
  verbs: [get, list, watch, create, update, patch, delete, deletecollection]
{{- end -}}
