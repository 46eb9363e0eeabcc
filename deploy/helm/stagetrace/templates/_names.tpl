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
