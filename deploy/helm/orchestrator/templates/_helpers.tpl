{{/*
Names. Forty characters leave room for the longest suffix and for what controllers append; the schema holds the
overrides to them, and a release's name may be longer.
*/}}
{{- define "orchestrator.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{- define "orchestrator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := include "orchestrator.name" . -}}
{{- $whole := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $whole | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of this release; with a component, its own. Never changes over upgrades. */}}
{{- define "orchestrator.releaseSelector" -}}
app.kubernetes.io/name: {{ include "orchestrator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "orchestrator.selector" -}}
{{ include "orchestrator.releaseSelector" .root }}
app.kubernetes.io/component: {{ .component | quote }}
{{- end -}}

{{/*
Labels of a pod: dict root, component. Without versions: a pod whose labels change is made anew, and of a node's agent
that means to drain it.
*/}}
{{- define "orchestrator.podLabels" -}}
{{ include "orchestrator.selector" . }}
app.kubernetes.io/part-of: orchestrator
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of an object: dict root, component, labels (of the operator's, for this kind). */}}
{{- define "orchestrator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "orchestrator.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: orchestrator
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
{{- with merge (dict) (.labels | default dict) (.root.Values.commonLabels | default dict) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
name, namespace and labels of an object: dict root, component, suffix, labels. Whatever an operator names is quoted here
and everywhere: to YAML the names true, 123 and 1e3 would be something else.
*/}}
{{- define "orchestrator.metadata" -}}
name: {{ compact (list (include "orchestrator.fullname" .root) .suffix) | join "-" | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "orchestrator.labels" . | nindent 2 }}
{{- end -}}

{{- define "orchestrator.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "orchestrator.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Where pods may run: dict of a part's values. */}}
{{- define "orchestrator.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* A pod without rights. */}}
{{- define "orchestrator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
# Keys are their owner's only; a volume that was set right once must not be opened to the group again.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "orchestrator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where things are. */}}
{{- define "orchestrator.serviceHost" -}}
{{ include "orchestrator.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "orchestrator.joinAt" -}}
{{- .Values.agents.controlPlane | default (printf "%s:7443" (include "orchestrator.serviceHost" .)) -}}
{{- end -}}

{{- define "orchestrator.metricsSecret" -}}
{{- .Values.metrics.token.existingSecret | default (printf "%s-metrics-token" (include "orchestrator.fullname" .)) -}}
{{- end -}}

{{- define "orchestrator.metricsSecretKey" -}}
{{- ternary .Values.metrics.token.key "token" (ne .Values.metrics.token.existingSecret "") -}}
{{- end -}}

{{- define "orchestrator.ownBeacon" -}}
{{- if and .Values.overlay.enabled (not .Values.overlay.beacons) -}}true{{- end -}}
{{- end -}}

{{- define "orchestrator.bridge" -}}
{{- if and .Values.overlay.enabled .Values.overlay.bridge.enabled -}}true{{- end -}}
{{- end -}}

{{/* Names by which tenants come: given, the Ingress's, the Service's. */}}
{{- define "orchestrator.gatewayNames" -}}
{{- $service := printf "%s-gateway" (include "orchestrator.fullname" .) -}}
{{- $names := .Values.gateway.names -}}
{{- if .Values.gateway.ingress.enabled -}}{{- $names = append $names .Values.gateway.ingress.host -}}{{- end -}}
{{- $within := printf "%s.%s.svc" $service .Release.Namespace -}}
{{- $names = concat $names (list (printf "%s.%s" $within .Values.clusterDomain) $within (printf "%s.%s" $service .Release.Namespace) $service) -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/* What tenants set RAY_ADDRESS to. */}}
{{- define "orchestrator.gatewayUrl" -}}
{{- if .Values.gateway.url -}}
{{ .Values.gateway.url }}
{{- else if .Values.gateway.ingress.enabled -}}
https://{{ .Values.gateway.ingress.host }}
{{- else -}}
{{- $name := include "orchestrator.gatewayNames" . | fromJsonArray | first -}}
{{- $host := ternary (printf "[%s]" $name) $name (and (contains ":" $name) (not (hasPrefix "[" $name))) -}}
{{ ternary "http" "https" (eq .Values.gateway.tls.mode "plain") }}://{{ $host }}:{{ .Values.gateway.service.port }}
{{- end -}}
{{- end -}}

{{/*
A value as TOML has it. Numbers come as floats from YAML, and settings have whole ones; a JSON string is a TOML one,
and lists hold strings.
*/}}
{{- define "orchestrator.toml" -}}
{{- if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) -}}{{ int64 . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{- define "orchestrator.tomlLines" -}}
{{- range $name, $value := . }}
{{ $name }} = {{ include "orchestrator.toml" $value }}
{{- end }}
{{- end -}}

{{/* Seconds of a duration such as 30s, 2m or 1h, up to whole seconds. */}}
{{- define "orchestrator.seconds" -}}
{{- $count := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if eq $unit "ms" -}}{{ add (div $count 1000) 1 }}
{{- else -}}{{ mul $count (get (dict "s" 1 "m" 60 "h" 3600) $unit | int64) }}
{{- end -}}
{{- end -}}

{{/* How long an agent may take to leave: the notice that jobs get, and two minutes to end and to state. */}}
{{- define "orchestrator.agentGraceSeconds" -}}
{{- $notice := (.).notice | default "30s" -}}
{{ add (include "orchestrator.seconds" $notice | int64) 120 }}
{{- end -}}

{{/* Names are resolved. */}}
{{- define "orchestrator.dns" -}}
{{- with .Values.networkPolicy.dnsPorts -}}
- ports:
    {{- range . }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- end -}}

{{/* The internet without private networks, as a peer of NetworkPolicies. */}}
{{- define "orchestrator.internet" -}}
- ipBlock:
    cidr: 0.0.0.0/0
    {{- with .Values.networkPolicy.deniedNetworks }}
    except:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end -}}

{{/* Pods of some components of this release: dict root, components (as a list in YAML, without its brackets). */}}
{{- define "orchestrator.podsOf" -}}
matchLabels:
  {{- include "orchestrator.releaseSelector" .root | nindent 2 }}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: [{{ .components }}]}
{{- end -}}

{{/* Components that make boxes, and so have an overlay, as a list in YAML without its brackets; empty: none. */}}
{{- define "orchestrator.boxedComponents" -}}
{{- $found := list -}}
{{- if and .Values.workers.enabled (eq .Values.workers.isolation "box") -}}{{- $found = append $found "worker" -}}{{- end -}}
{{- if .Values.headHosts.replicas -}}{{- $found = append $found "head-host" -}}{{- end -}}
{{- join ", " $found -}}
{{- end -}}

{{/* HOST:PORT of the control plane over TCP, as far as values tell agents any. */}}
{{- define "orchestrator.toldAt" -}}
{{- $v := .Values -}}
{{- $found := list $v.agents.controlPlane -}}
{{- if $v.controlPlane.enabled -}}{{- $found = append $found $v.public.sessionAddress -}}{{- end -}}
{{- if include "orchestrator.bridge" . -}}{{- $found = append $found $v.overlay.bridge.address -}}{{- end -}}
{{- if $v.overlay.enabled -}}
{{- range $v.overlay.beacons -}}
{{- with splitList "," . -}}{{- if gt (len .) 1 -}}{{- $found = append $found (last .) -}}{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- compact $found | uniq | toJson -}}
{{- end -}}

{{/* Hosts of the control plane and of lighthouses, over TCP or UDP, as far as values tell agents any. */}}
{{- define "orchestrator.toldHosts" -}}
{{- $told := include "orchestrator.toldAt" . | fromJsonArray -}}
{{- if include "orchestrator.ownBeacon" . -}}{{- $told = append $told .Values.overlay.address -}}{{- end -}}
{{- if .Values.overlay.enabled -}}
{{- range .Values.overlay.beacons -}}
{{- $told = append $told (splitList "," . | first | splitList "=" | last) -}}
{{- end -}}
{{- end -}}
{{- $hosts := list -}}
{{- range compact $told -}}{{- $hosts = append $hosts (regexReplaceAll ":[0-9]+$" . "") -}}{{- end -}}
{{- $hosts | uniq | toJson -}}
{{- end -}}

{{- define "orchestrator.address" -}}
^[0-9]+([.][0-9]+){3}$
{{- end -}}

{{/* Those of them that are names, whose addresses the chart does not know; with commas between. */}}
{{- define "orchestrator.toldNames" -}}
{{- $names := list -}}
{{- range include "orchestrator.toldHosts" . | fromJsonArray -}}
{{- if not (regexMatch (include "orchestrator.address" $) .) -}}{{- $names = append $names . -}}{{- end -}}
{{- end -}}
{{- join ", " $names -}}
{{- end -}}

{{/*
Where agents find a control plane and lighthouses that are no pods of this release, as peers of NetworkPolicies: those
that are named, and addresses among what agents are told.
*/}}
{{- define "orchestrator.controlPlaneElsewhere" -}}
{{- $peers := .Values.networkPolicy.controlPlaneTo -}}
{{- range include "orchestrator.toldHosts" . | fromJsonArray -}}
{{- if regexMatch (include "orchestrator.address" $) . -}}
{{- $peers = append $peers (dict "ipBlock" (dict "cidr" (printf "%s/32" .))) -}}
{{- end -}}
{{- end -}}
{{- with $peers | uniq -}}{{- toYaml . -}}{{- end -}}
{{- end -}}

{{/* Its TCP ports: those that are named, and those that agents are told. */}}
{{- define "orchestrator.controlPlanePorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.controlPlanePorts -}}{{- $ports = append $ports (int .) -}}{{- end -}}
{{- range include "orchestrator.toldAt" . | fromJsonArray -}}
{{- $ports = append $ports (regexFind "[0-9]+$" . | int) -}}
{{- end -}}
{{- $lines := list -}}
{{- range $ports | uniq -}}{{- $lines = append $lines (printf "- {port: %d, protocol: TCP}" .) -}}{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}

{{- define "orchestrator.scrapeAuthorization" -}}
authorization:
  type: Bearer
  credentials:
    name: {{ include "orchestrator.metricsSecret" . | quote }}
    key: {{ include "orchestrator.metricsSecretKey" . | quote }}
{{- end -}}
