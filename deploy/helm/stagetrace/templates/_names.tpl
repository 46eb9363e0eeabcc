{{- define "stagetrace.labels" -}}
app.kubernetes.io/name: stagetrace
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "stagetrace.selector" -}}
app.kubernetes.io/name: stagetrace
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "stagetrace.secret" -}}
{{ .Values.tokenSecret | default .Release.Name }}
{{- end }}

{{- define "stagetrace.pod-security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "stagetrace.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Not empty where services send to a Collector. */}}
{{- define "stagetrace.has-collector" -}}
{{- if or .Values.collector.enabled .Values.clickhouse.enabled }}true{{ end }}
{{- end }}

{{- /* The files of the Collector. The second is on top of the first. */}}
{{- define "stagetrace.collector-config" -}}
{{- if .Values.clickhouse.enabled -}}
clickhouse.yaml: |
  {{- .Files.Get "clickhouse.yaml" | nindent 2 }}
gateway.yaml: |
  {{- .Files.Get "gateway.yaml" | nindent 2 }}
{{- else -}}
collector.yaml: |
  {{- tpl (.Files.Get "collector.yaml") . | nindent 2 }}
{{- end }}
{{- end }}
