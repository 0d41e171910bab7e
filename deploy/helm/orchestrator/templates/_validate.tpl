{{/* What the schema cannot say: keys that need or exclude each other. Each message names the key and what to do. */}}
{{- define "orchestrator.validate" -}}
{{- $v := .Values -}}
{{- $name := include "orchestrator.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "fullnameOverride: the release's name makes %q, and names of Services begin with a letter and have no dots; give one such as gpus" $name) -}}
{{- end -}}
{{- range $path, $labels := dict "commonLabels" $v.commonLabels "metrics.serviceMonitor.labels" $v.metrics.serviceMonitor.labels "metrics.scrapeConfig.labels" $v.metrics.scrapeConfig.labels "metrics.prometheusRule.labels" $v.metrics.prometheusRule.labels "metrics.dashboards.labels" $v.metrics.dashboards.labels -}}
{{- range $key, $_ := $labels -}}
{{- if has $key (list "helm.sh/chart" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/part-of" "app.kubernetes.io/managed-by") -}}
{{- fail (printf "%s: %s is the chart's own, and finds its pods; leave it out" $path $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $path, $annotations := dict "controlPlane.podAnnotations" $v.controlPlane.podAnnotations "headHosts.podAnnotations" $v.headHosts.podAnnotations "workers.podAnnotations" $v.workers.podAnnotations -}}
{{- range $key, $_ := $annotations -}}
{{- if has $key (list "orchestrator/settings-sha256" "kubectl.kubernetes.io/default-container") -}}
{{- fail (printf "%s: %s is the chart's own; leave it out" $path $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.metrics.prometheusRule.enabled (not (.Files.Glob "files/rules/*.yaml")) -}}
{{- fail "metrics.prometheusRule.enabled: this copy of the chart has no files/rules; take a whole one" -}}
{{- end -}}
{{- if and $v.metrics.dashboards.enabled (not (.Files.Glob "files/dashboards/*.json")) -}}
{{- fail "metrics.dashboards.enabled: this copy of the chart has no files/dashboards; take a whole one" -}}
{{- end -}}
{{- if and (not $v.controlPlane.enabled) (not $v.agents.controlPlane) -}}
{{- fail "agents.controlPlane: with controlPlane.enabled=false name the HOST:PORT of the control plane to join" -}}
{{- end -}}
{{- if and (eq $v.gateway.tls.mode "secret") (not $v.gateway.tls.existingSecret) -}}
{{- fail "gateway.tls.existingSecret: mode secret needs the name of a Secret of type kubernetes.io/tls" -}}
{{- end -}}
{{- if and (hasPrefix "http:" $v.gateway.url) (ne $v.gateway.tls.mode "plain") -}}
{{- fail "gateway.url: the gateway speaks HTTPS; name an https:// URL, or choose plain for gateway.tls.mode" -}}
{{- end -}}
{{- if and (eq $v.gateway.tls.mode "plain") (eq $v.gateway.service.type "LoadBalancer") -}}
{{- fail "gateway.tls.mode: tenants' tokens must not travel unencrypted; behind a LoadBalancer choose own or secret" -}}
{{- end -}}
{{- if and $v.gateway.ingress.enabled (not $v.gateway.ingress.host) -}}
{{- fail "gateway.ingress.host: name the host by which tenants come" -}}
{{- end -}}
{{- if and $v.gateway.ingress.enabled (ne $v.gateway.tls.mode "plain") (not (has "backend-protocol" (regexFindAll "backend-protocol" (toJson $v.gateway.ingress.annotations) 1))) -}}
{{- fail "gateway.tls.mode: an Ingress speaks HTTP to what is behind it; choose plain, or have it speak HTTPS by its backend-protocol annotation in gateway.ingress.annotations" -}}
{{- end -}}
{{- if and $v.overlay.bridge.enabled (not $v.overlay.enabled) -}}
{{- fail "overlay.bridge.enabled: there is no overlay that it could lead to; set overlay.enabled=true" -}}
{{- end -}}
{{- if and $v.overlay.bridge.enabled (has (int $v.overlay.bridge.port) (list 7443 7444)) -}}
{{- fail (printf "overlay.bridge.port: %d is one of the Service's own ports; choose another, such as 443" (int $v.overlay.bridge.port)) -}}
{{- end -}}
{{- if and $v.overlay.public.enabled (not (include "orchestrator.ownBeacon" .)) -}}
{{- fail "overlay.public.enabled: there is no lighthouse of this release that it could lead to" -}}
{{- end -}}
{{- if contains "@" $v.agents.packageIndex -}}
{{- fail "agents.packageIndex: a password would stand where everybody who may read pods sees it; name an index that takes none from this network" -}}
{{- end -}}
{{- if and $v.headHosts.replicas (not $v.headHosts.joinTokens.existingSecret) -}}
{{- fail "headHosts.joinTokens.existingSecret: name the Secret that holds a token for each pod; it may be made later, the pods wait" -}}
{{- end -}}
{{- if and $v.headHosts.replicas (not $v.overlay.enabled) -}}
{{- fail "headHosts.replicas: without overlay every cluster has one machine, and no head host has work; set overlay.enabled=true" -}}
{{- end -}}
{{- if and $v.workers.enabled (not $v.workers.joinTokens.existingSecret) (not $v.workers.openEnrolment) -}}
{{- fail "workers.joinTokens.existingSecret: name the Secret that holds a token for each node; it may be made later, the pods wait" -}}
{{- end -}}
{{- if and (eq $v.workers.isolation "none") (has (($v.workers.settings).overlay | default "none") (list "nebula")) -}}
{{- fail "workers.settings.overlay: with isolation none there is no overlay; leave it out" -}}
{{- end -}}
{{- if and (eq $v.workers.isolation "none") (eq (($v.workers.settings).egress | default "internet") "none") -}}
{{- fail "workers.settings.egress: with isolation none nothing keeps jobs off the internet; leave it out" -}}
{{- end -}}
{{- end -}}
