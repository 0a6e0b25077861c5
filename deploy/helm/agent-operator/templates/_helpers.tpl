{{/* Prefix of every object's name: the release's name. Cut so that the longest suffix still fits a DNS label, and what
Kubernetes adds to the names of pods as well. */}}
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

{{/* One release a cluster. Offline (`helm template`) nothing is found, so nothing is refused. */}}
{{- define "ao.refuseSecondRelease" -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items }}
{{- $release := dig "metadata" "annotations" "meta.helm.sh/release-name" "" . }}
{{- $namespace := dig "metadata" "annotations" "meta.helm.sh/release-namespace" "" . }}
{{- $ours := eq (dig "metadata" "labels" "app.kubernetes.io/name" "" .) "agent-operator" }}
{{- if and $ours $release (or (ne $release $.Release.Name) (ne $namespace $.Release.Namespace)) }}
{{- fail (printf "agent-operator is installed in this cluster already, as release %s in namespace %s, and there can be only one: both would act on the same tasks. To serve more namespaces, add them to taskNamespaces of that release; to replace it, run first: helm uninstall %s --namespace %s" $release $namespace $release $namespace) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The release and the tasks each have a namespace. In one of both, roles of the same name would be made twice, and who may
read the Secrets of tasks could read the controller's key. */}}
{{- define "ao.refuseOwnNamespace" -}}
{{- if has .Release.Namespace .Values.taskNamespaces }}
{{- fail (printf "taskNamespaces names %s, the namespace of the release itself: tasks, their Secrets and their rights are kept apart from those of controller and supervisors. Name another one; a missing one is created" .Release.Namespace) }}
{{- end }}
{{- end }}

{{/* With its namespace the rights on a pod go, and then nobody takes our finalizer off it. The list of before is in the settings
that the release has now; offline (`helm template`) nothing is found, so nothing is refused. */}}
{{- define "ao.refuseToStrandPods" -}}
{{- $before := lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-controller" (include "ao.name" .)) }}
{{- range (dig "data" "settings.yaml" "" $before | fromYaml).taskNamespaces }}
{{- if not (has . $.Values.taskNamespaces) }}
{{- $pods := list }}
{{- range (lookup "v1" "Pod" . "").items }}
{{- if dig "metadata" "labels" "agents.wearn.dev/run" "" . }}{{ $pods = append $pods .metadata.name }}{{ end }}
{{- end }}
{{- if $pods }}
{{- fail (printf "taskNamespaces no longer names %s, where agent pods are left (%d, for example %s): without the release's rights there they could not end. Cancel its tasks, delete the pods that ended, and repeat this: kubectl -n %s annotate codingtasks --all agents.wearn.dev/cancel=moved; kubectl -n %s delete pods -l agents.wearn.dev/run" . (len $pods) (first $pods) . .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whether a priority class of ours is made for `system` or `agent`: its name, or nothing. */}}
{{- define "ao.priorityClass" -}}
{{- if .root.Values.priorityClasses.create }}{{ include "ao.name" .root }}-{{ .class }}{{ end }}
{{- end }}

{{/* Placement and pull secrets of a pod. Call with (dict "root" $ "own" .Values.controller). */}}
{{- define "ao.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.priorityClassName | default (include "ao.priorityClass" (dict "root" .root "class" "system")) }}
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

{{/* Environment of every process for logs and traces, as in src/telemetry/args.rs. */}}
{{- define "ao.telemetryEnv" -}}
- name: AO_LOG_FORMAT
  value: {{ .Values.logFormat }}
{{- with .Values.tracing.endpoint }}
- name: AO_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: AO_TRACE_RATIO
  value: {{ $.Values.tracing.ratio | quote }}
{{- end }}
{{- end }}

{{/* Arguments of `supervisor run`, as in supervisor/src/args.rs. */}}
{{- define "ao.supervisorArgs" -}}
- --controller-address={{ include "ao.name" . }}-controller.{{ .Release.Namespace }}.svc:8443
- --controller-ca-configmap={{ include "ao.name" . }}-ca
- --token-file=/var/run/secrets/agent-operator/token
- --gateway-service={{ include "ao.name" . }}-gateway.{{ .Release.Namespace }}.svc:8080
- --gateway-socket=/run/agent-operator/gateway.sock
- --data-dir=/var/lib/agent-operator/supervisor
- --http-address=[::]:8081
{{- if .Values.enforcer.enabled }}
- --enforcer-socket=/run/agent-operator-enforcer/enforcer.sock
{{- end }}
- --runner-image={{ .Values.images.runner }}
- --runner-delivery={{ .Values.runner.delivery }}
- --slots={{ .Values.supervisor.slots }}
- --stream-retention={{ .Values.supervisor.streams.retention }}
- --streams-mib={{ int .Values.supervisor.streams.maxMiB }}
- --pod-retention={{ .Values.limits.taskEndPodTTL }}
{{- with .Values.agent.priorityClassName | default (include "ao.priorityClass" (dict "root" . "class" "agent")) }}
- --agent-priority-class={{ . }}
{{- end }}
{{- range .Values.taskNamespaces }}
- --task-namespace={{ . }}
{{- end }}
{{- end }}
