{{/* Prefix of every object's name: the release's name. Cut so that the longest suffix still fits a DNS label. */}}
{{- define "ao.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of every object. Call with (dict "root" $ "component" "controller"). */}}
{{- define "ao.labels" -}}
{{ include "ao.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: agent-operator
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that select the pods of a component; they never change. */}}
{{- define "ao.selector" -}}
app.kubernetes.io/name: agent-operator
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* User names of our two processes, as the API server sees them. */}}
{{- define "ao.controllerUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "ao.name" . }}-controller
{{- end }}
{{- define "ao.supervisorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "ao.name" . }}-supervisor
{{- end }}

{{/* Placement and pull secrets of a pod. Call with (dict "root" $ "own" .Values.controller). */}}
{{- define "ao.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .own.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Security context of a container that needs nothing. Call with the user id. */}}
{{- define "ao.restricted" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Standing user ids. Supervisor and gateway differ, so that neither can touch the other's files or memory. */}}
{{- define "ao.controllerUid" -}}65532{{- end }}
{{- define "ao.supervisorUid" -}}65532{{- end }}
{{- define "ao.gatewayUid" -}}65533{{- end }}

{{/* Arguments of `supervisor run`, as in supervisor/src/args.rs. */}}
{{- define "ao.supervisorArgs" -}}
- --controller-address={{ include "ao.name" . }}-controller.{{ .Release.Namespace }}.svc:8443
- --controller-ca-configmap={{ include "ao.name" . }}-ca
- --token-file=/var/run/secrets/agent-operator/token
- --gateway-service={{ include "ao.name" . }}-gateway.{{ .Release.Namespace }}.svc:8080
- --gateway-socket=/run/agent-operator/gateway.sock
- --data-dir=/var/lib/agent-operator/supervisor
- --http-address=0.0.0.0:8081
- --runner-image={{ .Values.images.runner }}
- --runner-delivery={{ .Values.runner.delivery }}
- --slots={{ .Values.supervisor.slots }}
- --stream-retention={{ .Values.supervisor.streams.retention }}
- --streams-mib={{ int .Values.supervisor.streams.maxMiB }}
- --pod-retention={{ .Values.limits.taskEndPodTTL }}
{{- range .Values.taskNamespaces }}
- --task-namespace={{ . }}
{{- end }}
{{- end }}
