{{/* Settings of `orch serve`. Nothing secret: secrets are files of their own, named here. */}}
{{- define "orchestrator.serveToml" -}}
data_dir = "/var/lib/orchestrator/data"
listen = "0.0.0.0:7443"
session_listen = "0.0.0.0:7444"
{{- with .Values.public.sessionAddress }}
session_address = {{ toJson . }}
{{- end }}
gateway = "0.0.0.0:8265"
gateway_names = {{ include "orchestrator.gatewayNames" . }}
gateway_url = {{ include "orchestrator.gatewayUrl" . | toJson }}
{{- if eq .Values.gateway.tls.mode "own" }}
gateway_tls = "own"
{{- else if eq .Values.gateway.tls.mode "secret" }}
gateway_certificate = "/etc/orchestrator/gateway/tls.crt"
gateway_key = "/etc/orchestrator/gateway/tls.key"
{{- else }}
gateway_plain = true
{{- end }}
metrics = "0.0.0.0:9464"
metrics_token_file = "/etc/orchestrator/metrics/token"
{{- if .Values.controlPlane.adminToken.existingSecret }}
admin_token_file = "/etc/orchestrator/admin/token"
{{- end }}
{{- if .Values.controlPlane.database.existingSecret }}
database_url_file = "/etc/orchestrator/database/url"
{{- end }}
{{- if not .Values.overlay.enabled }}
overlay_listen = "none"
{{- else }}
overlay_network = {{ toJson .Values.overlay.network }}
{{- if .Values.overlay.beacons }}
overlay_beacons = {{ toJson .Values.overlay.beacons }}
{{- else }}
overlay_listen = "0.0.0.0:4242"
{{- with .Values.overlay.address }}
overlay_address = {{ toJson . }}
{{- end }}
{{- end }}
{{- if .Values.overlay.bridge.enabled }}
overlay_bridge_listen = "0.0.0.0:7445"
overlay_bridge_address = {{ .Values.overlay.bridge.address | default (printf ":%d" (int .Values.overlay.bridge.port)) | toJson }}
{{- end }}
{{- end }}
{{- if .Values.controlPlane.runtimesConfigMap }}
runtimes_dir = "/etc/orchestrator/runtimes"
{{- end }}
{{- if .Values.controlPlane.pricesConfigMap }}
price_file = "/etc/orchestrator/prices/cloud-prices.toml"
{{- end }}
{{- include "orchestrator.tomlLines" .Values.controlPlane.settings }}
{{- end -}}

{{/* Settings of `orch worker join`, beside what each pod has of its own as variables. dict root, part, extra. */}}
{{- define "orchestrator.workerToml" -}}
control_plane = {{ include "orchestrator.joinAt" .root | toJson }}
data_dir = "/var/lib/orchestrator-agent/data"
{{- include "orchestrator.tomlLines" .own }}
{{- include "orchestrator.tomlLines" .settings }}
{{- end -}}
