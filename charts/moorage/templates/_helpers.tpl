{{/* Name of everything that belongs to the operator. */}}
{{- define "moorage.operator" -}}
{{- printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Cluster-wide objects carry the namespace, so that two installations never meet. */}}
{{- define "moorage.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "moorage.operator" .) -}}
{{- end -}}

{{- define "moorage.selector" -}}
app.kubernetes.io/name: moorage-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "moorage.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: moorage
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "moorage.labels" -}}
{{ include "moorage.selector" . }}
{{ include "moorage.commonLabels" . }}
{{- end -}}

{{/* Of pods: what differs between installers would restart them. */}}
{{- define "moorage.podLabels" -}}
{{ include "moorage.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: moorage
{{- end -}}

{{/* Labels of the development servers: the argument is (list $ "postgres"). */}}
{{- define "moorage.dev.selector" -}}
app.kubernetes.io/name: moorage-dev-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end -}}

{{- define "moorage.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Restricted pod security, for every container that the chart makes. */}}
{{- define "moorage.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Name of the Secret with the administrator's DSN; empty: no database. */}}
{{- define "moorage.databaseSecret" -}}
{{- if .Values.database.adminSecretRef.name -}}
{{ .Values.database.adminSecretRef.name }}
{{- else if .Values.dev.postgres.enabled -}}
{{ include "moorage.dev.postgresSecret" . }}
{{- end -}}
{{- end -}}

{{- define "moorage.dev.postgresSecret" -}}
{{ .Values.dev.postgres.existingSecret | default "moorage-dev-postgres" }}
{{- end -}}

{{/* The edge's kind: as said, else what is configured. */}}
{{- define "moorage.edgeKind" -}}
{{- with .Values.edge -}}
{{- if .kind -}}{{ .kind }}
{{- else if .gateway.name -}}gateway
{{- else if or .ingress.className .ingress.annotations .ingress.tlsSecretName -}}ingress
{{- else -}}none
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The operator's settings; docs/operator.md has the reference, the operator validates them when it starts. */}}
{{- define "moorage.settings" -}}
{{- $v := .Values -}}
{{- $database := dict "adminDsnFile" (ternary "/etc/moorage/database/dsn" nil (ne (include "moorage.databaseSecret" .) "")) -}}
{{- $edge := dict "kind" (include "moorage.edgeKind" .) "publicUrl" $v.edge.publicUrl "ingress" $v.edge.ingress -}}
{{- if $v.edge.gateway.name -}}
{{- $gateway := dict "namespace" ($v.edge.gateway.namespace | default .Release.Namespace) -}}
{{- $_ := set $edge "gateway" (merge $gateway (pick $v.edge.gateway "name" "sectionName")) -}}
{{- end -}}
{{- $redis := dict "url" $v.redis.url -}}
{{- if and $v.dev.redis.enabled (not $v.redis.url) -}}
{{- $_ := set $redis "url" (printf "redis://moorage-dev-redis.%s.svc:6379/0" .Release.Namespace) -}}
{{- end -}}
{{- $sidecar := $v.images.sidecar | default (printf "moorage/gateway:%s" .Chart.AppVersion) -}}
{{- $settings := pick $v "installation" "namespaces" "issuer" "jwksUri" "localTokens" "kafka" "otlp" "allow" "trustedProxies" -}}
{{- /* Helm drops a value that is null: what is not there was switched off, and the operator must not fill it in. */ -}}
{{- $_ := set $settings "defaults" (merge (dict) $v.defaults) -}}
{{- $_ := set $settings.defaults "rateLimit" (index $v.defaults "rateLimit") -}}
{{- $_ := set $settings "coreNamespace" .Release.Namespace -}}
{{- $_ := set $settings "database" (merge $database (omit $v.database "adminSecretRef")) -}}
{{- $_ := set $settings "redis" $redis -}}
{{- $_ := set $settings "edge" $edge -}}
{{- $_ := set $settings "images" (dict "sidecar" $sidecar "pullPolicy" $v.images.pullPolicy) -}}
{{- toYaml $settings -}}
{{- end -}}
